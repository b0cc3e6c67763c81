"""A session's life in the ledger: it opens, keeps its lease, and closes."""

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, delete, insert, literal, select, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import (
    OVER,
    UPDATE_SESSION,
    bury,
    entry,
    find_entry,
    give_back,
    latest_session,
    lock_chain,
    new_chain,
    of_session,
    record_follow_on,
    reopen,
    session,
    settle_follow_on,
)
from perpetual_blocks.adapters.database.control import all_stopped
from perpetual_blocks.adapters.database.engine import insert_if_new
from perpetual_blocks.adapters.database.patient import DoneBefore, patient
from perpetual_blocks.adapters.database.queues import has_work, held_by, is_elsewhere, lock_queue
from perpetual_blocks.adapters.database.rows import find_chain, pool_key
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.errors import Ahead, Fenced, Superseded
from perpetual_blocks.faults import reached
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    Expected,
    SessionRecord,
    SessionRequest,
    SessionState,
    is_ahead,
    is_resumed,
    refusal,
    wanted_status,
)
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import Closing, Fence, FollowOn, Opened
from perpetual_blocks.session.program import check_kinds, check_program, code_change

_NOTHING_LEFT = ("queue-empty", "blocked")  # the ends of a session that had nothing to do any more


@patient(once=["heartbeat"])
class SessionWriter(LedgerWriter):
    """The transactions of a session as a whole."""

    def open_session(self, request: SessionRequest) -> Opened:
        self._pause_before_other_code(request)
        with self._writing() as connection:
            now = self._now(connection)
            chain = lock_chain(connection, request.chain) or _new_chain(connection, request, now)
            queue = chain if chain.owns_queue else find_chain(connection, chain.queue)
            assert queue is not None
            check_program(chain, request)
            check_kinds(chain, queue, request)
            latest = latest_session(connection, request.chain)
            if (mine := _opened_before(connection, chain, queue, latest, request, now)) is not None:
                return mine
            stopped, expected = all_stopped(connection), _expected(connection, chain)
            ran_before = _ran_before(connection, request)
            reason = refusal(chain, latest, request, now, ran_before=ran_before, all_stopped=stopped, expected=expected)
            if reason is not None and stopped is None and is_ahead(chain, latest, request, expected):
                raise Ahead(reason)
            if reason is not None:
                raise Superseded(reason)
            took_over = latest is not None and latest.state is SessionState.RUNNING
            if latest is not None and took_over:
                bury(connection, chain, latest.ordinal, now, "it was found dead when the next session began")
            fence = Fence(request.chain, chain.ordinal + 1, chain.epoch + 1, request.holder, chain.queue)
            over = chain.owns_queue and chain.status in OVER
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
                    planned=chain.planned and not over,
                    settings=request.settings,
                    context_version=chain.context_version if chain.ordinal else request.context_version,
                    code=request.code,
                    resume_at=None,
                    asks_until=None,
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
                    waited=request.waited or None,
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
        queue = opened if opened.owns_queue else queue
        return Opened(
            fence=fence,
            chain=opened,
            queue=queue,
            previous=previous,
            took_over=took_over,
            code_changed=said,
            gap=_gap(chain, latest, now),
        )

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
            ran_before, expected = _ran_before(connection, request), _expected(connection, chain)
            if refusal(chain, latest, request, now, ran_before=ran_before, expected=expected) is not None:
                return
            if latest is not None and latest.state is SessionState.RUNNING:
                bury(connection, chain, latest.ordinal, now, "it was found dead when the next session began")
            paused = {"status": ChainStatus.PAUSED, "reason": change.what, "holder": None, "lease_until": 0.0}
            connection.execute(
                update(t.chains).where(t.chains.c.name == request.chain).values(**paused, updated_at=now)
            )
        raise Superseded(f"chain {request.chain} is paused: {change.what}")

    def announce(self, fence: Fence, ends_at: float, follow_on: FollowOn | None) -> bool:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            chain = lock_chain(connection, fence.chain)
            assert chain is not None
            if chain.wanted is not None:
                return False
            connection.execute(UPDATE_SESSION, {**of_session(fence), "ends_at": ends_at})
            if follow_on is not None and find_entry(connection, fence.chain, follow_on.ordinal) is None:
                record_follow_on(connection, follow_on, now)
            return True

    def heartbeat(self, fence: Fence) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (shared := self._shared(connection, fence)).limits:
                pools.renew(connection, shared.uid, now + self._lease_seconds, now)

    def resumed(self, fence: Fence, resume_seconds: float, verified: tuple[int, int] | None) -> None:
        with self._writing() as connection:
            self._pass_fence(connection, fence)
            resumed = {"resume_seconds": resume_seconds, "verified": list(verified) if verified else None}
            connection.execute(UPDATE_SESSION, {**of_session(fence), **resumed})

    def upgrade_context(self, fence: Fence, context: dict[str, Any], version: int) -> None:
        with self._writing() as connection:
            self._pass_fence(connection, fence, context=context, context_version=version)

    def close_session(self, fence: Fence, closing: Closing) -> None:
        reached("session.closing")
        with suppress(DoneBefore), self._writing(synced=True) as connection:
            free = {"holder": None, "lease_until": 0.0, "resume_at": closing.stop.resume_at}
            try:
                now = self._pass_fence(connection, fence, **free)
            except Fenced:
                if _closed_before(connection, fence, closing):
                    raise DoneBefore from None
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
            connection.execute(UPDATE_SESSION, {**of_session(fence), **ended})
            if closing.forecasts is not None:
                connection.execute(delete(t.forecasts).where(t.forecasts.c.chain == fence.chain))
                connection.execute(
                    insert(t.forecasts).values(chain=fence.chain, session=fence.ordinal, state=closing.forecasts)
                )
            give_back(connection, held_by(fence.queue, fence.chain, fence.ordinal), now)
            self._give_back_reserved(connection, fence)
            follow_on = closing.follow_on
            if closing.stop.code in _NOTHING_LEFT and _more_comes(connection, chain):
                reopen(connection, fence.chain, now)  # it came while the session was ending
                follow_on, status = _next(connection, chain), ChainStatus.WAITING if status in OVER else status
            settle_follow_on(connection, chain, follow_on, status, now)
        reached("session.closed")


def _next(connection: Connection, chain: Chain) -> FollowOn | None:
    """The follow-on of the chain's latest session; None without a deployment."""
    template = session(connection, chain.name, chain.ordinal).template
    if template is None:
        return None
    return RunTemplate.from_json(template).follow_on(chain.name, chain.uid, chain.ordinal + 1, None)


def _expected(connection: Connection, chain: Chain) -> Expected | None:
    """Who is to be the chain's next session, as the outbox says."""
    found = find_entry(connection, chain.name, chain.ordinal + 1)
    return Expected(found["idempotency_key"], found["not_before"]) if found else None


def _new_chain(connection: Connection, request: SessionRequest, now: float) -> Chain:
    insert_if_new(
        connection,
        t.chains,
        name=request.chain,
        **new_chain(now, request.settings),
        planned=False,
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


def _opened_before(
    connection: Connection,
    chain: Chain,
    queue: Chain,
    latest: SessionRecord | None,
    request: SessionRequest,
    now: float,
) -> Opened | None:
    """The session that this very request has opened already, and was not told of."""
    if latest is None or latest.state is not SessionState.RUNNING:
        return None
    if chain.holder != request.holder or chain.lease_until <= now:
        return None
    fence = Fence(chain.name, chain.ordinal, chain.epoch, request.holder, chain.queue)
    previous = session(connection, chain.name, latest.ordinal - 1) if latest.ordinal > 1 else None
    # Whoever takes over buries the dead session at the moment at which its own begins.
    died = previous is not None and previous.state is SessionState.CRASHED
    took_over = previous is not None and died and previous.ended_at == latest.started_at
    return Opened(fence=fence, chain=chain, queue=queue, previous=previous, took_over=took_over)


def _gap(chain: Chain, latest: SessionRecord | None, now: float) -> float | None:
    """For how long a chain, as it was before this moment, has waited for nothing but its follow-on."""
    if latest is None or latest.ended_at is None or chain.status is not ChainStatus.WAITING:
        return None
    return max(0.0, now - max(latest.ended_at, chain.resume_at or 0.0))


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
        rows = rows.where(select(literal(1)).where(entry(fence.chain, fence.ordinal + 1)).exists())
    return connection.execute(rows).first() is not None


def _more_comes(connection: Connection, chain: Chain) -> bool:
    """Whether a chain has more to do after all, or may get it from others; nothing is on its way into the queue."""
    lock_queue(connection, chain.queue)
    return has_work(connection, chain.queue, chain.selector) or is_elsewhere(connection, chain)
