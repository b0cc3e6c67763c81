"""The ledger: every promise that is a transaction is a method here.

Each writing method takes a lock first and then looks, so what it decides on cannot change before it commits: SQLite's
write lock, or the lock of the chain's row, which every writer of that chain takes. A session's own commits begin with
the fence: one UPDATE of the chain's row that matches only while the epoch and holder are the session's own, and that
moves the lease on. Where it matches nothing, another session owns the chain, and the transaction is rolled back.

A transaction that was lost on the way is tried again (see `patient`), though it may have been committed: each method
finds out what it has done already, and leaves it at that.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, func, insert, literal, or_, select, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import (
    bury,
    give_back,
    latest_session,
    lock_chain,
    record_follow_on,
    session,
)
from perpetual_blocks.adapters.database.control import ChainControl, all_stopped
from perpetual_blocks.adapters.database.engine import insert_if_new
from perpetual_blocks.adapters.database.examine import repair_items
from perpetual_blocks.adapters.database.export import pause_restored, put_rows
from perpetual_blocks.adapters.database.items import add_items
from perpetual_blocks.adapters.database.patient import patient, patiently
from perpetual_blocks.adapters.database.rows import (
    CLAIM_ORDER,
    find_chain,
    item_of,
    pool_key,
)
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.clock import Clock, SystemClock
from perpetual_blocks.errors import Fenced, InvalidInput, LedgerError, Superseded, UnknownChain
from perpetual_blocks.faults import reached
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.attempts import back_off, quarantine
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    SessionRecord,
    SessionRequest,
    SessionState,
    is_resumed,
    refusal,
    wanted_status,
)
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ports import Claim, Closing, Document, Fence, FollowOn, Misfit, Opened, Reserve, Row
from perpetual_blocks.session.program import check_program, code_change
from perpetual_blocks.work import Item, ItemStatus, Outcome, WorkItem, sources

DEFAULT_LEASE_SECONDS = 60.0
PAGE = 64
PASSED_OVER_SHOWN = 10
MOST_LOOKED_AT = 1000  # items, at each claim
PATIENCE = 3  # sessions in which something else is taken in an item's place
MOST_CUT_OFFS = 2  # whole sessions that a unit may use up in vain
_NOTHING_LEFT = ("queue-empty", "blocked")  # the ends of a session that had nothing to do any more


@patient(but=["lease_seconds", "claim", "forget_checkpoints"], once=["heartbeat"])
class SqlLedger(ChainControl):
    """The ledger in an SQLite file (or in memory, `sqlite://`), or in a PostgreSQL database.

    Args:
        address: A path, or a database URL: `sqlite:///path`, `postgresql://user@host/database`.
        clock: Tells the time of leases and records; by default the database's own where it has one (PostgreSQL), so
            that machines with wrong clocks agree, else this machine's.
        lease_seconds: How long a session owns its chain without a heartbeat.
        durability: `normal`: commits survive the death of the process, and closing a session is synced to disk.
            `full`: every commit is synced, for machines that lose power. PostgreSQL syncs every commit as it is.
        patience_seconds: For how long each transaction is tried again while the database is away; at most until the
            session's lease has run out, if that is shorter.

    Raises:
        InvalidInput: not an address, or of a database whose driver is not installed.
        LedgerUnavailable: the database cannot be reached now.
        LedgerError: the database cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        clock: Clock | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        durability: Literal["normal", "full"] = "normal",
        patience_seconds: float = 0.0,
    ) -> None:
        patience = Patience(patience_seconds, clock or SystemClock())
        super().__init__(address, clock, patience, synced=durability == "full")
        self._lease_seconds = lease_seconds
        self._shared_limits: tuple[tuple[str, int], _Shared] | None = None

    def lease_seconds(self) -> float:
        return self._lease_seconds

    # Transactions ---------------------------------------------------------------------------------------------------

    def _pass_fence(self, connection: Connection, fence: Fence, **changes: Any) -> float:
        """Moves the lease on and sets more of the chain's row, if it is still ours; returns the time."""
        now = self._now(connection)
        ours = {"of_chain": fence.chain, "of_epoch": fence.epoch, "of_holder": fence.holder}
        lease = {"lease_until": now + self._lease_seconds, "updated_at": now}
        if connection.execute(_PASS_FENCE, {**ours, **lease, **changes}).rowcount != 1:
            raise Fenced(f"session {fence.ordinal} of {fence.chain} does not own the chain any more")
        return now

    # Sessions -------------------------------------------------------------------------------------------------------

    def open_session(self, request: SessionRequest) -> Opened:
        self._pause_before_other_code(request)
        with self._writing() as connection:
            now = self._now(connection)
            chain = lock_chain(connection, request.chain) or _new_chain(connection, request, now)
            check_program(chain, request)
            latest = latest_session(connection, request.chain)
            if (mine := _opened_before(connection, chain, latest, request, now)) is not None:
                return mine
            reason = refusal(
                chain,
                latest,
                request,
                now,
                ran_before=_ran_before(connection, request),
                all_stopped=all_stopped(connection),
            )
            if reason is not None:
                raise Superseded(reason)
            took_over = latest is not None and latest.state is SessionState.RUNNING
            if latest is not None and took_over:
                bury(connection, request.chain, latest.ordinal, now, "it was found dead when the next session began")
            fence = Fence(request.chain, chain.ordinal + 1, chain.epoch + 1, request.holder)
            attended = request.attended or is_resumed(chain, latest, request)
            connection.execute(
                update(t.chains)
                .where(t.chains.c.name == request.chain)
                .values(
                    agent=request.agent,
                    status=ChainStatus.RUNNING,
                    reason=f"session {fence.ordinal} is at work",
                    ordinal=fence.ordinal,
                    epoch=fence.epoch,
                    holder=fence.holder,
                    lease_until=now + self._lease_seconds,
                    # Whoever starts a chain that is over asks for its plan again: there may be new work.
                    planned=chain.planned and chain.status not in (ChainStatus.FINISHED, ChainStatus.STALLED),
                    settings=request.settings,
                    code=request.code,
                    resume_at=None,
                    attended=fence.ordinal if attended else chain.attended,
                    updated_at=now,
                )
            )
            # What was recorded for this session and not yet created is not needed any more.
            connection.execute(
                delete(t.outbox).where(
                    t.outbox.c.chain == request.chain,
                    t.outbox.c.ordinal <= fence.ordinal,
                    t.outbox.c.created_at.is_(None),
                )
            )
            connection.execute(
                insert(t.sessions).values(
                    chain=request.chain,
                    ordinal=fence.ordinal,
                    epoch=fence.epoch,
                    holder=fence.holder,
                    state=SessionState.RUNNING,
                    flow_run_id=request.flow_run_id,
                    deployment_id=request.deployment_id,
                    host=request.host,
                    machine=request.machine,
                    pid=request.pid,
                    process_started=request.process_started,
                    template=request.template,
                    started_at=now,
                    graceful=False,
                    units=0,
                    usage={},
                    limits=[],
                    steps=[],
                    passed_over={},
                    choices=[],
                )
            )
            self._shared_limits = None  # of a start that was rolled back, under the same epoch
            shared = self._shared(connection, fence).limits
            pools.release_all(connection, chain.uid, [(pool_key(limit), limit.resource) for limit in shared])
            for limit in shared:
                pool, share, priority = pool_key(limit), limit.share, limit.priority
                pools.join(connection, pool, limit.resource, chain.uid, share=share, priority=priority)
            opened = find_chain(connection, request.chain)
            previous = session(connection, request.chain, latest.ordinal) if latest else None
        assert opened is not None
        change = code_change(chain, request)
        said = change.what if change else None
        return Opened(fence=fence, chain=opened, previous=previous, took_over=took_over, code_changed=said)

    def _pause_before_other_code(self, request: SessionRequest) -> None:
        """Pauses the chain where the session could start but for its code, which its agent wants a person to see."""
        if request.on_code_change != "refuse":
            return
        with self._writing() as connection:
            now = self._now(connection)
            chain = lock_chain(connection, request.chain)
            change = code_change(chain, request) if chain else None
            if chain is None or change is None:
                return
            latest = latest_session(connection, request.chain)
            if refusal(chain, latest, request, now, ran_before=_ran_before(connection, request)) is not None:
                return
            if latest is not None and latest.state is SessionState.RUNNING:
                bury(connection, request.chain, latest.ordinal, now, "it was found dead when the next session began")
            paused = {"status": ChainStatus.PAUSED, "reason": change.what, "holder": None, "lease_until": 0.0}
            connection.execute(
                update(t.chains).where(t.chains.c.name == request.chain).values(**paused, updated_at=now)
            )
        raise Superseded(f"chain {request.chain} is paused: {change.what}")

    def heartbeat(self, fence: Fence) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (shared := self._shared(connection, fence)).limits:
                pools.renew(connection, shared.uid, now + self._lease_seconds, now)

    def resumed(self, fence: Fence, resume_seconds: float, verified: tuple[int, int] | None) -> None:
        with self._writing() as connection:
            self._pass_fence(connection, fence)
            resumed = {"resume_seconds": resume_seconds, "verified": list(verified) if verified else None}
            connection.execute(_UPDATE_SESSION, {**_of_session(fence), **resumed})

    def close_session(self, fence: Fence, closing: Closing) -> None:
        reached("session.closing")
        with suppress(_DoneBefore), self._writing(synced=True) as connection:
            free = {"holder": None, "lease_until": 0.0, "resume_at": closing.stop.resume_at}
            try:
                now = self._pass_fence(connection, fence, **free)
            except Fenced:
                if _closed_before(connection, fence, closing):
                    raise _DoneBefore from None
                raise
            chain = lock_chain(connection, fence.chain)
            assert chain is not None
            # What a person wants may have come after the session had looked for the last time.
            status, reason = wanted_status(chain, closing.chain_status, closing.stop.message)
            connection.execute(
                update(t.chains).where(t.chains.c.name == fence.chain).values(status=status, reason=reason)
            )
            ended = {
                "state": closing.state,
                "ended_at": now,
                "stop_reason": closing.stop.code,
                "stop_message": closing.stop.message,
                "graceful": closing.graceful,
                "limits": closing.limits,
                "steps": closing.steps,
                "passed_over": closing.passed_over,
                "choices": closing.choices,
            }
            connection.execute(_UPDATE_SESSION, {**_of_session(fence), **ended})
            if closing.forecasts is not None:
                connection.execute(delete(t.forecasts).where(t.forecasts.c.chain == fence.chain))
                connection.execute(
                    insert(t.forecasts).values(chain=fence.chain, session=fence.ordinal, state=closing.forecasts)
                )
            give_back(connection, fence.chain, fence.ordinal, now)
            self._give_back_reserved(connection, fence)
            if closing.stop.code in _NOTHING_LEFT and _has_work(connection, fence.chain):
                self._go_on(connection, fence, now)  # it came while the session was ending
            if closing.follow_on is not None:
                record_follow_on(connection, closing.follow_on, now)
        reached("session.closed")

    def _go_on(self, connection: Connection, fence: Fence, now: float) -> None:
        _reopen(connection, fence.chain, now)
        template = session(connection, fence.chain, fence.ordinal).template
        if template is not None:
            uid = self._shared(connection, fence).uid
            made = RunTemplate.from_json(template).follow_on(fence.chain, uid, fence.ordinal + 1, None)
            record_follow_on(connection, made, now)

    # Units ----------------------------------------------------------------------------------------------------------

    def add_items(self, chain: str, items: Iterable[WorkItem], *, planned_by: Fence | None = None) -> int:
        items = list(items)  # whatever makes them, a file or an agent's plan, must not run within the write lock
        with self._writing() as connection:
            if planned_by is not None:
                self._pass_fence(connection, planned_by, planned=True)
            row = lock_chain(connection, chain)
            if row is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
            added = add_items(connection, row, items, self._now(connection))
            if added:
                _reopen(connection, chain, self._now(connection))
            return added

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = lambda item: [],
    ) -> Claim:
        return self._claim(fence, misfit, reserves, _Claiming())

    @patiently
    def _claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]],
        claiming: _Claiming,
    ) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (mine := claiming.done_before(connection, fence)) is not None:
                return Claim(mine)
            passed_over: dict[str, str] = {}
            never: dict[str, str] = {}
            others = 0
            contended = False
            for row in _queue(connection, fence.chain, now):
                item = item_of(row)
                reason = misfit(item)
                wanted = reserves(item) if reason is None else []
                if wanted and (refused := self._reserve(connection, fence, item, wanted, now)) is not None:
                    reason = Misfit(refused.reason)
                    contended = contended or refused.contended
                if reason is None:
                    _move(
                        connection,
                        fence.chain,
                        item.id,
                        ItemStatus.CLAIMED,
                        now,
                        claimed_by=fence.ordinal,
                        claim=claiming.token,
                        passed_over=0,
                    )
                    for hopeless, why in never.items():
                        _move(connection, fence.chain, hopeless, ItemStatus.DISCARDED, now, error=why)
                        passed_over.pop(hopeless, None)
                    if passed_over:
                        _count_passed_over(connection, fence, list(passed_over), now)
                    return Claim(item, passed_over, others, discarded=never)
                if len(passed_over) < PASSED_OVER_SHOWN:
                    passed_over[item.id] = reason.why
                else:
                    others += 1
                waited_long = item.passed_over >= PATIENCE and row["passed_over_in"] != fence.ordinal
                if waited_long and reason.never is not None:
                    never[item.id] = reason.never
                elif (waited_long and reason.patient) or len(passed_over) + others >= MOST_LOOKED_AT:
                    break
            left_alone = {"of_chain": fence.chain, "now": now}
            retry_at: float | None = connection.execute(_NEXT_RETRY, left_alone).scalar()
            return Claim(None, passed_over, others, contended, retry_at)

    def extend(self, fence: Fence, item: Item, reserves: Sequence[Reserve]) -> str | None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            refused = self._reserve(connection, fence, item, reserves, now)
            return None if refused is None else refused.reason

    def commit_unit(
        self, fence: Fence, item: Item, outcome: Outcome, result_key: str, spent: Mapping[str, float]
    ) -> None:
        reached("unit.committing")
        with suppress(_DoneBefore), self._writing() as connection:
            changes: dict[str, Any] = {} if outcome.context is None else {"context": outcome.context}
            if outcome.quotas:
                quotas = connection.execute(
                    select(t.chains.c.quotas).where(t.chains.c.name == fence.chain)
                ).scalar_one()
                changes["quotas"] = {**quotas, **{name: list(quota) for name, quota in outcome.quotas.items()}}
            now = self._pass_fence(connection, fence, **changes)
            target = ItemStatus.COMPLETED if outcome.done else ItemStatus.AVAILABLE
            _end_unit(
                connection,
                fence,
                item,
                target,
                now,
                units=item.units + 1,
                attempts=0,
                cut_offs=0,
                crashes=0,
                retry_at=None,
                error=None,
                progress=list(outcome.progress) if outcome.progress else None,
                cursor=outcome.cursor,
                next_action=outcome.next_action,
                result_key=result_key,
            )
            _count_usage(connection, fence, item, 0, outcome.usage, now)
            self._settle(connection, fence, item, 0, outcome.usage, now)
            connection.execute(_COUNT_UNIT, {**_of_session(fence), "usage": dict(spent)})
            if outcome.done:
                _unblock(connection, fence.chain, item.id, now)
            if outcome.added:
                chain = find_chain(connection, fence.chain)
                assert chain is not None
                add_items(connection, chain, outcome.added, now)
        reached("unit.committed")

    def fail_unit(
        self, fence: Fence, item: Item, error: str, usage: Mapping[str, float], spent: Mapping[str, float]
    ) -> ItemStatus:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (before := _ended_before(connection, fence, item)) is not None:
                return before
            attempts, failures = item.attempts + 1, item.failures + 1
            _count_failure(connection, fence, item, error, usage, now, cut_off=False)
            too_dear = quarantine(_wasted(connection, fence.chain, item.id, attempts), _budget(connection, fence))
            given_up = too_dear is not None or attempts >= item.max_attempts
            target = ItemStatus.DISCARDED if given_up else ItemStatus.AVAILABLE
            text = error if too_dear is None else f"{too_dear}: {error}"
            retry_at = None if given_up else now + back_off(attempts)
            counted = {"attempts": attempts, "failures": failures, "retry_at": retry_at}
            _end_unit(connection, fence, item, target, now, error=text, **counted)
            self._settle(connection, fence, item, failures, usage, now)
            connection.execute(_COUNT_ATTEMPT, {**_of_session(fence), "usage": dict(spent)})
            return target

    def cut_off(
        self, fence: Fence, item: Item, why: str, usage: Mapping[str, float], spent: Mapping[str, float], *, fresh: bool
    ) -> ItemStatus:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (before := _ended_before(connection, fence, item)) is not None:
                return before
            cut_offs, failures = item.cut_offs + fresh, item.failures + 1
            hopeless = cut_offs >= MOST_CUT_OFFS
            target = ItemStatus.DISCARDED if hopeless else ItemStatus.AVAILABLE
            error = f"it had a whole session {cut_offs} times and could not finish: {why}" if hopeless else None
            counted = {"cut_offs": cut_offs, "failures": failures, "interruptions": item.interruptions + 1}
            _end_unit(connection, fence, item, target, now, error=error, **counted)
            _count_failure(connection, fence, item, why, usage, now, cut_off=True)
            self._settle(connection, fence, item, failures, usage, now)
            connection.execute(_COUNT_ATTEMPT, {**_of_session(fence), "usage": dict(spent)})
            return target

    def release(self, fence: Fence, item: Item) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            give_back(connection, fence.chain, fence.ordinal, now, only=item)
            self._give_back_reserved(connection, fence)

    # Pools ----------------------------------------------------------------------------------------------------------

    def _shared(self, connection: Connection, fence: Fence) -> _Shared:
        """The limits of a session that are shared with other chains."""
        key = (fence.chain, fence.epoch)
        if self._shared_limits is None or self._shared_limits[0] != key:
            chain = find_chain(connection, fence.chain)
            assert chain is not None
            budget = Budget.from_json(chain.settings.get("budget") or [])
            # Everybody locks several pools in the same order, so that no two wait for each other.
            limits = sorted((limit for limit in budget if limit.pool), key=lambda x: (pool_key(x), x.resource))
            self._shared_limits = (key, _Shared(chain.uid, tuple(limits)))
        return self._shared_limits[1]

    def _reserve(
        self, connection: Connection, fence: Fence, item: Item, wanted: Sequence[Reserve], now: float
    ) -> pools.Refused | None:
        """All of them, or none and why."""
        uid = self._shared(connection, fence).uid
        several = connection.begin_nested() if len(wanted) > 1 else None
        for one in sorted(wanted, key=lambda reserve: (pool_key(reserve.limit), reserve.limit.resource)):
            limit = one.limit
            request = pools.PoolRequest(
                unit=_pool_unit(limit, uid, item),
                wanted=one.amount,
                amount=limit.amount,
                since=limit.window.since(now) if limit.window else None,
                expires_at=now + self._lease_seconds,
            )
            answer = pools.reserve(connection, request, now)
            if isinstance(answer, pools.Refused):
                if several is not None:
                    several.rollback()
                return answer
        if several is not None:
            several.commit()
        return None

    def _settle(
        self, connection: Connection, fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float
    ) -> None:
        shared = self._shared(connection, fence)
        for limit in shared.limits:
            unit = _pool_unit(limit, shared.uid, item)
            pools.settle(connection, unit, usage.get(limit.resource, 0.0), now, failure)

    def _give_back_reserved(self, connection: Connection, fence: Fence) -> None:
        if (shared := self._shared(connection, fence)).limits:
            pools.release_all(connection, shared.uid)

    # Documents and follow-ons ---------------------------------------------------------------------------------------

    def record_document(self, fence: Fence, document: Document) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if document.kind == "backup":
                # Its place is one of two that are written in turn, so what the row before says does not hold any more.
                connection.execute(
                    delete(t.documents).where(t.documents.c.chain == fence.chain, t.documents.c.kind == "backup")
                )
            this = {"chain": fence.chain, "kind": document.kind, "ordinal": document.ordinal}
            content = {"key": document.key, "digest": document.digest, "size": document.size}
            if insert_if_new(connection, t.documents, **this, **content, at=now):
                return
            rows = select(literal(1)).where(
                *(t.documents.c[name] == value for name, value in {**this, **content}.items())
            )
            if connection.execute(rows).first() is None:
                has = f"session {document.ordinal} of {fence.chain} has another {document.kind}"
                raise LedgerError(f"ledger: {has} than {document.key}")

    def forget_checkpoints(self, fence: Fence, keep: int) -> list[str]:
        forgotten: dict[str, None] = {}
        self._forget_checkpoints(fence, keep, forgotten)
        return list(forgotten)

    @patiently
    def _forget_checkpoints(self, fence: Fence, keep: int, forgotten: dict[str, None]) -> None:
        checkpoints = and_(t.documents.c.chain == fence.chain, t.documents.c.kind == "checkpoint")
        rows = select(t.documents.c.key, t.documents.c.pinned).where(checkpoints)
        latest_first = rows.order_by(t.documents.c.ordinal.desc())
        with self._writing() as connection:
            self._pass_fence(connection, fence)
            older = connection.execute(latest_first).all()[max(1, keep) :]
            old = [key for key, pinned in older if not pinned]
            forgotten.update(dict.fromkeys(old))
            connection.execute(delete(t.documents).where(t.documents.c.key.in_(old)))

    def pin_checkpoint(self, chain: str, ordinal: int, *, pinned: bool) -> bool:
        of_session = and_(t.documents.c.chain == chain, t.documents.c.ordinal == ordinal)
        with self._writing() as connection:
            lock_chain(connection, chain)
            changed = connection.execute(
                update(t.documents).where(of_session, t.documents.c.kind == "checkpoint").values(pinned=pinned)
            )
            return changed.rowcount == 1

    def upgrade_context(self, fence: Fence, context: dict[str, Any], version: int) -> None:
        with self._writing() as connection:
            self._pass_fence(connection, fence, context=context, context_version=version)

    def follow_on_created(self, follow_on: FollowOn, flow_run_id: str) -> None:
        with self._writing() as connection:
            connection.execute(
                update(t.outbox)
                .where(t.outbox.c.chain == follow_on.chain, t.outbox.c.ordinal == follow_on.ordinal)
                .values(created_at=self._now(connection), flow_run_id=flow_run_id)
            )

    def follow_on_moved(self, follow_on: FollowOn, not_before: float) -> None:
        with self._writing() as connection:
            this = and_(t.outbox.c.chain == follow_on.chain, t.outbox.c.ordinal == follow_on.ordinal)
            connection.execute(update(t.outbox).where(this).values(not_before=not_before))
            connection.execute(update(t.chains).where(t.chains.c.name == follow_on.chain).values(resume_at=not_before))

    def rebuild(self, chain: str, segments: Iterable[Iterable[Row]], reason: str) -> None:
        with self._writing(synced=True) as connection:
            if lock_chain(connection, chain) is not None:
                raise InvalidInput.of("chain", chain, "a chain that this ledger does not have")
            put_rows(connection, segments)
            pause_restored(connection, chain, reason, self._now(connection))

    def repair_items(self, chain: str, ids: Sequence[str]) -> None:
        with self._writing() as connection:
            self._at_rest(connection, chain)
            repair_items(connection, chain, ids, self._now(connection))

    def forget_document(self, chain: str, document: Document) -> None:
        with self._writing() as connection:
            self._at_rest(connection, chain)
            connection.execute(
                delete(t.documents).where(t.documents.c.chain == chain, t.documents.c.key == document.key)
            )

    def _at_rest(self, connection: Connection, chain: str) -> None:
        """Refuses to change the rows of a chain that a session works on."""
        # Not as a `Chain`, which a row that is broken may not make.
        row = select(t.chains.c.lease_until).where(t.chains.c.name == chain).with_for_update()
        lease_until = connection.execute(row).scalar() or 0.0
        running = select(literal(1)).where(t.sessions.c.chain == chain, t.sessions.c.state == SessionState.RUNNING)
        if lease_until > self._now(connection) and connection.execute(running).first():
            raise Superseded(f"a session of {chain} is at work; nothing is repaired meanwhile")

    # A person's decisions -------------------------------------------------------------------------------------------

    def retry_items(self, chain: str, ids: Sequence[str]) -> int:
        with self._writing() as connection:
            lock_chain(connection, chain)
            now = self._now(connection)
            afresh = {"attempts": 0, "cut_offs": 0, "passed_over": 0, "passed_over_in": None, "retry_at": None}
            afresh["crashes"] = 0
            these = and_(t.items.c.chain == chain, t.items.c.id.in_(ids))
            rows = connection.execute(
                select(t.items.c.id, t.items.c.blockers).where(these, t.items.c.status == ItemStatus.DISCARDED)
            ).all()
            left_alone = and_(these, t.items.c.status == ItemStatus.AVAILABLE, t.items.c.retry_at > now)
            sooner = connection.execute(update(t.items).where(left_alone).values(updated_at=now, **afresh)).rowcount
            for item, blockers in rows:
                target = ItemStatus.BLOCKED if blockers else ItemStatus.AVAILABLE
                _move(connection, chain, item, target, now, **afresh)
            if rows:
                _reopen(connection, chain, now)
            return len(rows) + sooner

    def discard_items(self, chain: str, ids: Sequence[str], reason: str) -> int:
        with self._writing() as connection:
            lock_chain(connection, chain)
            open_items = [ItemStatus.AVAILABLE, ItemStatus.BLOCKED]
            found = connection.execute(
                select(t.items.c.id).where(
                    t.items.c.chain == chain, t.items.c.status.in_(open_items), t.items.c.id.in_(ids)
                )
            ).scalars()
            wanted = list(found)
            for item in wanted:
                _move(connection, chain, item, ItemStatus.DISCARDED, self._now(connection), error=reason, retry_at=None)
            return len(wanted)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The chain's uid, by which pools know it, and its limits that have one."""

    uid: str
    limits: tuple[Limit, ...]


def _pool_unit(limit: Limit, uid: str, item: Item) -> pools.PoolUnit:
    return pools.PoolUnit(pool=pool_key(limit), resource=limit.resource, holder=uid, item=item.id, unit=item.units + 1)


class _DoneBefore(Exception):
    """What a transaction was to do is done: it was tried again after it had been committed. It is rolled back."""


@dataclass(slots=True)
class _Claiming:
    """One claim, however often it is tried.

    Attributes:
        token: Tells it from the session's other claims.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    tried: bool = False

    def done_before(self, connection: Connection, fence: Fence) -> Item | None:
        """What it has claimed already, if it is tried again; as it was found."""
        if not self.tried:
            self.tried = True
            return None
        of_session = and_(t.items.c.chain == fence.chain, t.items.c.claimed_by == fence.ordinal)
        rows = select(t.items).where(of_session, t.items.c.status == ItemStatus.CLAIMED, t.items.c.claim == self.token)
        row = connection.execute(rows).mappings().first()
        return replace(item_of(row), status=ItemStatus.AVAILABLE) if row else None


def _opened_before(
    connection: Connection, chain: Chain, latest: SessionRecord | None, request: SessionRequest, now: float
) -> Opened | None:
    """The session that this very request has opened already, and was not told of."""
    if latest is None or latest.state is not SessionState.RUNNING:
        return None
    if chain.holder != request.holder or chain.lease_until <= now:
        return None
    fence = Fence(chain.name, chain.ordinal, chain.epoch, request.holder)
    previous = session(connection, chain.name, latest.ordinal - 1) if latest.ordinal > 1 else None
    # Whoever takes over buries the dead session at the moment at which its own begins.
    died = previous is not None and previous.state is SessionState.CRASHED
    took_over = previous is not None and died and previous.ended_at == latest.started_at
    return Opened(fence=fence, chain=chain, previous=previous, took_over=took_over)


def _closed_before(connection: Connection, fence: Fence, closing: Closing) -> bool:
    """Whether the session has been closed in this very way, with this follow-on."""
    rows = select(literal(1)).where(
        t.sessions.c.chain == fence.chain,
        t.sessions.c.ordinal == fence.ordinal,
        t.sessions.c.epoch == fence.epoch,
        t.sessions.c.holder == fence.holder,
        t.sessions.c.state == closing.state,
        t.sessions.c.stop_reason == closing.stop.code,
        t.sessions.c.stop_message == closing.stop.message,
    )
    if closing.follow_on is not None:
        key = closing.follow_on.idempotency_key
        rows = rows.where(select(literal(1)).where(t.outbox.c.idempotency_key == key).exists())
    return connection.execute(rows).first() is not None


# The statements of each claim and commit, built once: building them again would cost more than the database does.
# What an UPDATE sets are the other names that it is executed with.
_PASS_FENCE = update(t.chains).where(
    t.chains.c.name == bindparam("of_chain"),
    t.chains.c.epoch == bindparam("of_epoch"),
    t.chains.c.holder == bindparam("of_holder"),
)
_UPDATE_SESSION = update(t.sessions).where(
    t.sessions.c.chain == bindparam("of_chain"), t.sessions.c.ordinal == bindparam("of_ordinal")
)
_COUNT_ATTEMPT = _UPDATE_SESSION.values(attempts=t.sessions.c.attempts + 1, usage=bindparam("usage"))
_COUNT_UNIT = _UPDATE_SESSION.values(units=t.sessions.c.units + 1, usage=bindparam("usage"))
_MOVE = {
    target: update(t.items).where(
        t.items.c.chain == bindparam("of_chain"),
        t.items.c.id == bindparam("of_item"),
        t.items.c.status.in_(sources(target)),
    )
    for target in ItemStatus
}
# Of the unit that the item was claimed for, and no later one.
_END_UNIT = {
    target: statement.where(
        t.items.c.claimed_by == bindparam("of_session"),
        t.items.c.units == bindparam("of_units"),
        t.items.c.failures == bindparam("of_failures"),
    )
    for target, statement in _MOVE.items()
}
_QUEUE = (
    select(t.items)
    .where(
        t.items.c.chain == bindparam("of_chain"),
        t.items.c.status == ItemStatus.AVAILABLE,
        or_(t.items.c.retry_at.is_(None), t.items.c.retry_at <= bindparam("now")),
    )
    .order_by(*CLAIM_ORDER)
    .limit(bindparam("many"))
    .offset(bindparam("after"))
)
_NEXT_RETRY = select(func.min(t.items.c.retry_at)).where(
    t.items.c.chain == bindparam("of_chain"),
    t.items.c.status == ItemStatus.AVAILABLE,
    t.items.c.retry_at > bindparam("now"),
)
_COUNT_USAGE = insert(t.usage)
_DEPENDENTS = select(t.dependencies.c.item).where(
    t.dependencies.c.chain == bindparam("of_chain"), t.dependencies.c.depends_on == bindparam("of_item")
)


def _count_passed_over(connection: Connection, fence: Fence, ids: Sequence[str], now: float) -> None:
    """Counts once a session that something was taken in place of these."""
    not_yet = func.coalesce(t.items.c.passed_over_in, 0) != fence.ordinal
    connection.execute(
        update(t.items)
        .where(t.items.c.chain == fence.chain, t.items.c.id.in_(ids), not_yet)
        .values(passed_over=t.items.c.passed_over + 1, passed_over_in=fence.ordinal, updated_at=now)
    )


def _new_chain(connection: Connection, request: SessionRequest, now: float) -> Chain:
    insert_if_new(
        connection,
        t.chains,
        name=request.chain,
        uid=secrets.token_hex(8),
        agent=request.agent,
        status=ChainStatus.WAITING,
        reason="new",
        ordinal=0,
        epoch=0,
        holder=None,
        lease_until=0.0,
        planned=False,
        context={},
        settings=request.settings,
        context_version=request.context_version,
        quotas={},
        created_at=now,
        updated_at=now,
    )
    # Another process may have made it at the same moment; it is then that one's chain that is looked at.
    chain = lock_chain(connection, request.chain)
    assert chain is not None
    return chain


def _ran_before(connection: Connection, request: SessionRequest) -> bool:
    if request.flow_run_id is None:
        return False
    rows = select(literal(1)).where(
        t.sessions.c.chain == request.chain, t.sessions.c.flow_run_id == request.flow_run_id
    )
    return connection.execute(rows.limit(1)).first() is not None


def _of_session(fence: Fence) -> dict[str, Any]:
    return {"of_chain": fence.chain, "of_ordinal": fence.ordinal}


def _move(connection: Connection, chain: str, item: str, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item along an edge of the transition table; anything else is a mistake of this program."""
    changes = {"of_chain": chain, "of_item": item, "status": target, "updated_at": now, **values}
    if connection.execute(_MOVE[target], changes).rowcount != 1:
        raise LedgerError(f"item {item} of {chain} cannot become {target}")


def _end_unit(connection: Connection, fence: Fence, item: Item, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item whose running unit is over.

    Raises:
        _DoneBefore: it was finished in this way already.
    """
    unit = {"of_session": fence.ordinal, "of_units": item.units, "of_failures": item.failures}
    of_item = {"of_chain": fence.chain, "of_item": item.id, **unit}
    changes = {"status": target, "updated_at": now, "claimed_by": None, **values}
    if connection.execute(_END_UNIT[target], {**of_item, **changes}).rowcount == 1:
        return
    rows = select(t.items).where(t.items.c.chain == fence.chain, t.items.c.id == item.id)
    row = connection.execute(rows).mappings().first()
    if row is not None and "result_key" in values:
        # While the fence is this session's, nobody else can have moved it on.
        here, after = row["units"] == values["units"], row["units"] > values["units"]
        if after or (here and row["result_key"] == values["result_key"]):
            raise _DoneBefore
    raise LedgerError(f"item {item.id} of {fence.chain} cannot become {target}")


def _ended_before(connection: Connection, fence: Fence, item: Item) -> ItemStatus | None:
    """What became of an item whose failed unit has been counted already; None if it has not."""
    columns = select(t.items.c.status, t.items.c.failures)
    row = connection.execute(columns.where(t.items.c.chain == fence.chain, t.items.c.id == item.id)).first()
    return ItemStatus(row[0]) if row is not None and row[1] > item.failures else None


def _unblock(connection: Connection, chain: str, completed: str, now: float) -> None:
    dependents = connection.execute(_DEPENDENTS, {"of_chain": chain, "of_item": completed}).scalars()
    waiting = list(dependents)
    if not waiting:
        return
    connection.execute(
        update(t.items)
        .where(t.items.c.chain == bindparam("of"), t.items.c.id == bindparam("item"))
        .values(blockers=t.items.c.blockers - 1, updated_at=now),
        [{"of": chain, "item": item} for item in waiting],
    )
    connection.execute(
        update(t.items)
        .where(
            t.items.c.chain == chain,
            t.items.c.status == ItemStatus.BLOCKED,
            t.items.c.blockers == 0,
            t.items.c.id.in_(waiting),
        )
        .values(status=ItemStatus.AVAILABLE, updated_at=now)
    )


def _count_usage(
    connection: Connection, fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float
) -> None:
    rows = [
        {
            "chain": fence.chain,
            "item": item.id,
            "unit": item.units,
            "failure": failure,
            "resource": resource,
            "session": fence.ordinal,
            "amount": amount,
            "at": now,
        }
        for resource, amount in usage.items()
    ]
    if rows:
        connection.execute(_COUNT_USAGE, rows)


def _count_failure(
    connection: Connection,
    fence: Fence,
    item: Item,
    error: str,
    usage: Mapping[str, float],
    now: float,
    *,
    cut_off: bool,
) -> None:
    """Writes down an attempt that came to nothing, and what it spent."""
    failure = item.failures + 1
    row = {"item": item.id, "failure": failure, "unit": item.units, "error": error, "cut_off": cut_off}
    connection.execute(insert(t.failures).values(chain=fence.chain, session=fence.ordinal, at=now, **row))
    _count_usage(connection, fence, item, failure, usage, now)


def _wasted(connection: Connection, chain: str, item: str, attempts: int) -> dict[str, float]:
    """What an item's last failed attempts have used together: as many as its next unit has had since it was retried."""
    of_item = and_(t.failures.c.chain == chain, t.failures.c.item == item, t.failures.c.cut_off.is_(False))
    last = select(t.failures.c.failure).where(of_item).order_by(t.failures.c.failure.desc()).limit(attempts)
    used = (
        select(t.usage.c.resource, func.sum(t.usage.c.amount))
        .where(t.usage.c.chain == chain, t.usage.c.item == item, t.usage.c.failure.in_(last))
        .group_by(t.usage.c.resource)
    )
    return {resource: amount for resource, amount in connection.execute(used)}


def _budget(connection: Connection, fence: Fence) -> Budget:
    chain = find_chain(connection, fence.chain)
    return Budget.from_json(chain.settings.get("budget") or []) if chain else Budget()


def _queue(connection: Connection, chain: str, now: float) -> Iterator[RowMapping]:
    """Available items in the order of claiming, page by page: usually the first row is the one."""
    offset, limit = 0, 1
    while True:
        page = (
            connection.execute(_QUEUE, {"of_chain": chain, "now": now, "many": limit, "after": offset}).mappings().all()
        )
        yield from page
        if len(page) < limit:
            return
        offset, limit = offset + limit, PAGE


def _has_work(connection: Connection, chain: str) -> bool:
    rows = select(literal(1)).where(t.items.c.chain == chain, t.items.c.status == ItemStatus.AVAILABLE)
    return connection.execute(rows.limit(1)).first() is not None


def _reopen(connection: Connection, chain: str, now: float) -> None:
    """A chain that was over has work again."""
    over = [ChainStatus.FINISHED, ChainStatus.STALLED]
    connection.execute(
        update(t.chains)
        .where(t.chains.c.name == chain, t.chains.c.status.in_(over))
        .values(status=ChainStatus.WAITING, reason="it has new work; start a run to go on", updated_at=now)
    )
