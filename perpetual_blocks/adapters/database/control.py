"""What is done to a chain from outside of its sessions: rescue, its follow-ons, and what a person wants of it.

Whatever decides something locks the chain's row first and looks whether its reason still holds, so any number of
rescuers may come at the same moment: the first one acts, and the others find nothing left to do.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Update, and_, delete, select, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import (
    bury,
    entry,
    find_entry,
    latest_session,
    lock_chain,
    new_chain,
    record_follow_on,
    renew_entry,
    settle_follow_on,
)
from perpetual_blocks.adapters.database.engine import insert_if_new, reading
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.adapters.database.queues import has_work, is_elsewhere, lock_queue
from perpetual_blocks.adapters.database.rows import find_chain, follow_on_of, session_of
from perpetual_blocks.adapters.database.tallies import counts_of
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    SessionRecord,
    SessionState,
    StopReason,
    Wanted,
    check_chain_name,
    wanted_status,
)
from perpetual_blocks.session.continuation import Ending, ending
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.work import EVERYTHING, Selector

STOP_ALL = "stop-all"
MOST_RENEWALS = 5  # runs that may come to nothing, one after the other, before they have started a session


@patient()
class ChainControl(LedgerWriter):
    """The transactions of rescuers and of people."""

    # Rescue ---------------------------------------------------------------------------------------------------------

    def declare_dead(self, chain: str, ordinal: int) -> bool:
        with self._writing() as connection:
            lock_chain(connection, chain)
            latest = latest_session(connection, chain)
            if latest is None or (latest.ordinal, latest.state) != (ordinal, SessionState.RUNNING):
                return False
            connection.execute(_chain_row(chain).values(lease_until=0.0))
            return True

    def rescue(
        self, chain: str, ordinal: int, why: str, decide: Callable[[Chain, Sequence[SessionRecord]], Ending]
    ) -> Ending | None:
        with self._writing(synced=True) as connection:
            now, row = self._now(connection), lock_chain(connection, chain)
            latest = latest_session(connection, chain)
            if row is None or latest is None or (latest.ordinal, latest.state) != (ordinal, SessionState.RUNNING):
                return None
            if row.lease_until > now:
                return None
            bury(connection, row, ordinal, now, why)
            rows = select(t.sessions).where(t.sessions.c.chain == chain).order_by(t.sessions.c.ordinal)
            sessions = [session_of(one) for one in connection.execute(rows).mappings()]
            end = decide(row, sessions)
            status, reason = wanted_status(row, end.chain, end.reason.message)
            connection.execute(
                _chain_row(chain).values(
                    status=status,
                    reason=reason,
                    # Should the process live after all, it can commit nothing any more.
                    epoch=row.epoch + 1,
                    holder=None,
                    lease_until=0.0,
                    resume_at=end.reason.resume_at,
                    updated_at=now,
                )
            )
            pools.release_all(connection, row.uid)
            template, made = sessions[-1].template, None
            if end.goes_on and template is not None:
                made = RunTemplate.from_json(template).follow_on(chain, row.uid, ordinal + 1, end.reason.resume_at)
            settle_follow_on(connection, row, made, status, now)
            return end

    def hold(self, chain: str, ordinal: int, status: ChainStatus, reason: str) -> bool:
        with self._writing() as connection:
            now, row = self._now(connection), lock_chain(connection, chain)
            if row is None or (row.ordinal, row.status) != (ordinal, ChainStatus.WAITING):
                return False
            connection.execute(_chain_row(chain).values(status=status, reason=reason, updated_at=now))
            return True

    # Follow-ons -------------------------------------------------------------------------------------------------------

    def follow_on(self, chain: str, ordinal: int) -> tuple[FollowOn, float | None, int] | None:
        with reading(self._engine) as connection:
            found = find_entry(connection, chain, ordinal)
            return (follow_on_of(found), found["created_at"], found["renewals"]) if found else None

    def renew_follow_on(self, follow_on: FollowOn, why: str, not_before: float | None) -> bool:
        chain, ordinal = follow_on.chain, follow_on.ordinal
        with self._writing() as connection:
            now, row = self._now(connection), lock_chain(connection, chain)
            found = find_entry(connection, chain, ordinal)
            going = (ChainStatus.RUNNING, ChainStatus.WAITING)
            due = row is not None and row.status in going and row.ordinal == ordinal - 1
            if row is None or found is None or not due or found["idempotency_key"] != follow_on.idempotency_key:
                return False
            if row.status is ChainStatus.RUNNING:
                renew_entry(connection, row, ordinal, not_before)
                return True
            if found["renewals"] >= MOST_RENEWALS:
                reason = f"{MOST_RENEWALS + 1} runs in a row came to nothing before session {ordinal} began; {why}"
                stalled = {"status": ChainStatus.STALLED, "reason": reason, "updated_at": now}
                connection.execute(_chain_row(chain).values(**stalled))
                return False
            renew_entry(connection, row, ordinal, not_before)
            connection.execute(_chain_row(chain).values(reason=why, resume_at=not_before, updated_at=now))
            return True

    def follow_on_created(self, follow_on: FollowOn, flow_run_id: str) -> None:
        with self._writing() as connection:
            # Of this very run: another may have taken its place while it was being created.
            this = and_(
                entry(follow_on.chain, follow_on.ordinal), t.outbox.c.idempotency_key == follow_on.idempotency_key
            )
            ticked = {"created_at": self._now(connection), "flow_run_id": flow_run_id}
            connection.execute(update(t.outbox).where(this).values(**ticked))

    def wait_at_fence(self, chain: str, key: str, seconds: float) -> None:
        with self._writing() as connection:
            this = and_(t.outbox.c.chain == chain, t.outbox.c.idempotency_key == key)
            connection.execute(update(t.outbox).where(this).values(waits_until=self._now(connection) + seconds))

    def follow_on_moved(self, follow_on: FollowOn, not_before: float) -> None:
        with self._writing() as connection:
            this = entry(follow_on.chain, follow_on.ordinal)
            connection.execute(update(t.outbox).where(this).values(not_before=not_before))
            connection.execute(_chain_row(follow_on.chain).values(resume_at=not_before))

    # Chains of one queue --------------------------------------------------------------------------------------------

    def add_chain(
        self,
        name: str,
        *,
        queue: str | None = None,
        selector: Selector = EVERYTHING,
        template: dict[str, Any] | None = None,
    ) -> Chain:
        check_chain_name(name)
        with self._writing(synced=True) as connection:
            now, owner = self._now(connection), queue or name
            settings = {} if owner == name else _check_owner(connection, owner).settings
            added = insert_if_new(
                connection,
                t.chains,
                name=name,
                **new_chain(now, settings),
                # The plan is the owner's.
                planned=owner != name,
                queue=None if owner == name else owner,
                selector=selector.to_json(),
            )
            row = lock_chain(connection, name)
            assert row is not None
            if added and owner != name:
                # It may have been forgotten meanwhile: from here on it is not, as this chain works on it.
                lock_queue(connection, owner, shared=True)
                _check_owner(connection, owner)
            if row.queue != owner:
                raise InvalidInput.of("chain", name, f"one of the queue of {owner}; it works on that of {row.queue}")
            if added and template is not None:
                record_follow_on(connection, RunTemplate.from_json(template).follow_on(name, row.uid, 1, None), now)
            connection.execute(_chain_row(name).values(selector=selector.to_json()))
            return replace(row, selector=selector)

    def wake(self, chain: str) -> bool:
        with self._writing() as connection:
            now, row = self._now(connection), lock_chain(connection, chain)
            latest = latest_session(connection, chain)
            if row is None or row.status is ChainStatus.RUNNING or row.wanted not in (None, Wanted.REST):
                return False
            over = row.status is ChainStatus.FINISHED or (
                row.status is ChainStatus.STALLED and latest is not None and latest.stop_reason == "blocked"
            )
            waits = row.status is ChainStatus.WAITING and row.resume_at is None
            has_more = has_work(connection, row.queue, row.selector)
            if not (row.wanted is Wanted.REST or waits or (over and has_more)):
                return False
            awake = {"status": ChainStatus.WAITING, "reason": "there is work for it", "resume_at": None}
            connection.execute(_chain_row(chain).values(**awake, wanted=None, wanted_why=None, updated_at=now))
            self._record_next(connection, row, latest, now)
            return True

    def finish(self, chain: str) -> bool:
        with self._writing() as connection:
            now, row = self._now(connection), lock_chain(connection, chain)
            if row is None or not (row.status is ChainStatus.WAITING or row.wanted is Wanted.REST):
                return False
            lock_queue(connection, row.queue)
            if row.status is ChainStatus.RUNNING or has_work(connection, row.queue, row.selector):
                return False
            if is_elsewhere(connection, row):
                return False
            end = ending(StopReason("queue-empty", ""), counts_of(connection, row.queue, row.selector))
            over = {"status": end.chain, "reason": end.reason.message, "resume_at": None}
            connection.execute(_chain_row(chain).values(**over, wanted=None, wanted_why=None, updated_at=now))
            connection.execute(delete(t.outbox).where(entry(chain, row.ordinal + 1)))
            return True

    # What a person wants --------------------------------------------------------------------------------------------

    def wanted(self, chain: str) -> tuple[Wanted, str] | None:
        with reading(self._engine) as connection:
            columns = select(t.chains.c.wanted, t.chains.c.wanted_why).where(t.chains.c.name == chain)
            found = connection.execute(columns).first()
            return (Wanted(found[0]), found[1] or "") if found and found[0] else None

    def want(self, chain: str, wanted: Wanted, why: str) -> FollowOn | None:
        with self._writing() as connection:
            row = lock_chain(connection, chain)
            if row is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
            can = {ChainStatus.RUNNING, ChainStatus.WAITING, ChainStatus.PAUSED}
            if wanted is Wanted.CANCEL:
                can |= {ChainStatus.STALLED, ChainStatus.EXHAUSTED}
            if row.status not in can:
                raise InvalidInput.of("chain", chain, f"one that can be stopped; this one is {row.status}")
            if wanted is Wanted.REST and (row.wanted is not None or row.status is ChainStatus.PAUSED):
                return None  # what a person wants goes before
            return self._want(connection, row, wanted, why)

    def _want(self, connection: Connection, row: Chain, wanted: Wanted, why: str) -> FollowOn | None:
        now = self._now(connection)
        values: dict[str, Any] = {"wanted": wanted, "wanted_why": why, "updated_at": now}
        scheduled: FollowOn | None = None
        if row.status is not ChainStatus.RUNNING:
            held = ChainStatus.CANCELLED if wanted is Wanted.CANCEL else ChainStatus.PAUSED
            values |= {"status": held, "reason": why, "resume_at": None, "asks_until": None}
            found = find_entry(connection, row.name, row.ordinal + 1)
            if found is not None and found["created_at"] is not None:
                scheduled = follow_on_of(found)
                renew_entry(connection, row, row.ordinal + 1, None)
        connection.execute(_chain_row(row.name).values(**values))
        return scheduled

    def resume(self, chain: str) -> Chain:
        with self._writing() as connection:
            row = lock_chain(connection, chain)
            if row is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
            if row.status in (ChainStatus.WAITING, ChainStatus.FINISHED):
                raise InvalidInput.of("chain", chain, f"one that does not go on by itself; this one is {row.status}")
            self._resume(connection, row)
            found = lock_chain(connection, chain)
            assert found is not None
            return found

    def _resume(self, connection: Connection, row: Chain) -> None:
        now = self._now(connection)
        values: dict[str, Any] = {
            "wanted": None,
            "wanted_why": None,
            "attended": row.ordinal,
            "code": None,
            "asks_until": None,
            "updated_at": now,
        }
        if row.status is not ChainStatus.RUNNING:
            latest = latest_session(connection, row.name)
            goes_on = self._record_next(connection, row, latest, now)
            reason = "a person lets it go on" + ("" if goes_on else "; start a run of it")
            values |= {"status": ChainStatus.WAITING, "reason": reason, "resume_at": None}
        connection.execute(_chain_row(row.name).values(**values))

    def _record_next(self, connection: Connection, row: Chain, latest: SessionRecord | None, now: float) -> bool:
        """Records the chain's next session, unless it is; whether it can be created."""
        there = find_entry(connection, row.name, row.ordinal + 1)
        template = latest.template if latest is not None else None
        if there is None and template is not None:
            renewal = secrets.token_hex(4)
            made = RunTemplate.from_json(template).follow_on(row.name, row.uid, row.ordinal + 1, None, renewal)
            record_follow_on(connection, made, now)
        return there is not None or template is not None

    def stop_all(self, why: str) -> list[FollowOn]:
        with self._writing(synced=True) as connection:
            insert_if_new(connection, t.switches, name=STOP_ALL, reason=why, since=self._now(connection))
            going = [ChainStatus.RUNNING, ChainStatus.WAITING]
            names = select(t.chains.c.name).where(t.chains.c.status.in_(going)).order_by(t.chains.c.name)
            scheduled = []
            for name in list(connection.execute(names).scalars()):
                row = lock_chain(connection, name)
                if row is not None and row.status in going and row.wanted is None:
                    scheduled.append(self._want(connection, row, Wanted.STOP_ALL, why))
            return [follow_on for follow_on in scheduled if follow_on is not None]

    def resume_all(self) -> list[str]:
        with self._writing() as connection:
            connection.execute(delete(t.switches).where(t.switches.c.name == STOP_ALL))
            stopped = select(t.chains.c.name).where(t.chains.c.wanted == Wanted.STOP_ALL).order_by(t.chains.c.name)
            names = list(connection.execute(stopped).scalars())
            for name in names:
                row = lock_chain(connection, name)
                if row is not None and row.wanted is Wanted.STOP_ALL:
                    self._resume(connection, row)
            return names

    def all_stopped(self) -> str | None:
        with reading(self._engine) as connection:
            return all_stopped(connection)


def all_stopped(connection: Connection) -> str | None:
    """Why all chains are stopped; None if they are not."""
    return connection.execute(select(t.switches.c.reason).where(t.switches.c.name == STOP_ALL)).scalar()


def _check_owner(connection: Connection, name: str) -> Chain:
    row = find_chain(connection, name)
    if row is None:
        raise UnknownChain(f"queue: got {name!r}; expected one of the ledger's chains")
    if not row.owns_queue:
        raise InvalidInput.of("queue", name, f"a chain with a queue of its own; it works on that of {row.queue}")
    return row


def _chain_row(name: str) -> Update:
    return update(t.chains).where(t.chains.c.name == name)
