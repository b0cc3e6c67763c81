"""The session: owns the chain, resumes, works until something says stop, and ends in order."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from perpetual_blocks.budget import Budget, BudgetMonitor, check_metered
from perpetual_blocks.errors import Fenced, LedgerUnavailable, PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.agents_files import set_aside
from perpetual_blocks.session.approval import granted
from perpetual_blocks.session.chain import Chain, SessionRequest, SessionState, StopReason
from perpetual_blocks.session.completion import complete
from perpetual_blocks.session.context import upgraded_context
from perpetual_blocks.session.continuation import Ending, after_error, outages_in_a_row
from perpetual_blocks.session.documents import checkpoint_now, levels_now, limits_now
from perpetual_blocks.session.follow_on import FollowOnMaker, create_follow_ons, jitter
from perpetual_blocks.session.heartbeat import Heartbeat
from perpetual_blocks.session.ledger import Closing, Fence, Opened
from perpetual_blocks.session.manners import Manners, restrain
from perpetual_blocks.session.pages import publish
from perpetual_blocks.session.restore import Restored, handoff_reader, restore
from perpetual_blocks.session.shutdown import Shutdown
from perpetual_blocks.session.steps import STEP_SECONDS, within
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.successor import Successor
from perpetual_blocks.session.turn import open_in_turn
from perpetual_blocks.session.watch import Look, Watch, wishes
from perpetual_blocks.session.working import Working
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import (
    BudgetRead,
    CodeChanged,
    ItemsAdded,
    SessionEnded,
    SessionStarted,
)
from perpetual_blocks.work import WorkItem


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended, for the flow run's state."""

    ordinal: int
    state: SessionState
    reason: StopReason


class Session:
    """One session of a chain.

    Args:
        task: What the agent is for, in a sentence or a paragraph.
        follow_on: Makes the follow-on; None where the run has no deployment that could go on.
        stop: Where others ask the session to stop.
        until: When this process will be ended, in seconds since the Unix epoch, where that is known.
        concurrency: How many units, or batches of small ones, run at once at most.

    Raises:
        InvalidInput: the budget limits a gauge that the world has no meter for.
    """

    def __init__(
        self,
        agent: Agent,
        request: SessionRequest,
        budget: Budget,
        world: World,
        *,
        task: str,
        follow_on: FollowOnMaker | None = None,
        stop: StopRequest | None = None,
        until: float | None = None,
        concurrency: int = 1,
    ) -> None:
        check_metered(budget, world.meters)
        self._agent = agent
        self._request = replace(request, context_version=agent.context_version, on_code_change=agent.on_code_change)
        self._world = world
        self._ledger = world.ledger
        self._task = task
        self._follow_on = follow_on
        self._stop = stop or StopRequest()
        self._concurrency = concurrency
        self._working: Working | None = None
        self._budget = budget
        self._until = until
        self._began = world.clock.monotonic()
        self._monitor = BudgetMonitor(budget, world.clock, world.meters)
        self._context: dict[str, Any] = {}

    def run(self) -> SessionEnd:
        """Works until something says stop.

        Raises:
            Superseded: another session works on the chain, it is paused, or this run was created ahead and is not
                needed; nothing was done.
            InvalidInput: the chain is not one of this agent; nothing was done.
            Fenced: another session took over in between; what was committed until then stands.
            LedgerUnavailable: the ledger was away for longer than the lease; whoever comes next takes the chain over.
            PerpetualError: an essential step failed; the session is recorded as failed where the ledger allows it.
        """
        opened, self._began = open_in_turn(self._world, self._request, self._stop)
        reached("session.opened")
        fence = opened.fence
        with ExitStack() as watched:
            watched.enter_context(Heartbeat(self._ledger, fence, self._stop, self._world.clock, self._began))
            asked: dict[str, Look] = {"wishes": partial(wishes, self._ledger, fence.chain), **self._world.watched}
            for name, look in asked.items():
                watched.enter_context(Watch(look, self._stop, f"{name} {fence.chain}"))
            try:
                restored = self._resume(opened)
                ahead = Successor(self._world, opened, self._monitor, self._follow_on, self._stop)
                working = self._working = self._begin_work(opened, watched.enter_context(ahead))
                reason = working.run()
                if reason.code == "fenced":
                    raise Fenced(reason.message)
                working.check_reachable()
                end = Shutdown(
                    agent=self._agent,
                    world=self._world,
                    fence=fence,
                    uid=opened.chain.uid,
                    task=self._task,
                    monitor=self._monitor,
                    resumed=restored.notes,
                    follow_on=self._follow_on,
                    passed_over=working.passed_over,
                    choices=working.choices,
                    stop=self._stop,
                ).run(reason)
            except Fenced:
                raise
            except Exception as error:
                if self._working is not None:
                    self._working.drain(error)
                self._fail(opened, error)
                raise
            finally:
                if self._working is not None:
                    self._working.close()
        self._tell_end(fence, end)
        return SessionEnd(fence.ordinal, end.session, end.reason)

    def _resume(self, opened: Opened) -> Restored:
        fence, previous, world = opened.fence, opened.previous, self._world
        budget = self._budget.with_more(granted(opened.chain.approvals))
        record = budget_record(self._ledger, opened.chain, budget, world.clock.now(), before=fence.ordinal)
        self._monitor = BudgetMonitor(
            budget,
            world.clock,
            world.meters,
            record,
            cancellable=self._agent.cut_off_in(),
            elapsed=world.clock.monotonic() - self._began,
            until=self._until,
        )
        restored = Restored(None, ())
        if previous is not None:
            self._complete(opened.chain)
            now = checkpoint_now(self._ledger, fence.chain, fence.ordinal, self._task, self._world.clock.now())
            checkpoints = self._ledger.documents(fence.chain, "checkpoint")
            restored = restore(
                checkpoints,
                self._world.documents,
                now,
                graceful=previous.graceful,
                shared=len(self._ledger.chains(fence.queue)) > 1,
                signer=world.signer,
            )
            if opened.took_over:
                note = f"session {previous.ordinal} was found dead; what it had committed stands, its claims are free"
                restored = Restored(restored.verified, (note, *restored.notes))
        self._agent.take_over(handoff_reader(self._ledger, world.documents, previous, fence.chain))
        if opened.code_changed is not None:
            world.tell(CodeChanged(fence.chain, fence.ordinal, opened.code_changed))
        self._context, upgraded = upgraded_context(self._agent, self._ledger, opened)
        approved = [str(one) for one in opened.chain.approvals if one.goes_on and one.session == fence.ordinal - 1]
        crashed = previous is not None and previous.state is SessionState.CRASHED
        aside = set_aside(self._agent, world, fence, previous) if previous is not None and crashed else None
        news = tuple(filter(None, (aside, opened.code_changed, upgraded, *approved)))
        restored = Restored(restored.verified, (*restored.notes, *news))
        world.tell(
            SessionStarted(
                fence.chain, fence.ordinal, opened.took_over, restored.notes, after_crash=crashed, gap=opened.gap
            )
        )
        if not opened.chain.planned:
            added = self._ledger.add_items(fence.chain, self._plan(), planned_by=fence)
            self._world.tell(ItemsAdded(fence.chain, added))
        self._ledger.resumed(fence, self._monitor.elapsed(), restored.verified)
        return restored

    def _begin_work(self, opened: Opened, successor: Successor) -> Working:
        return Working(
            self._agent,
            opened,
            self._context,
            self._world,
            self._monitor,
            self._stop,
            successor,
            Manners.of(self._request.settings),
            self._concurrency,
        )

    def _complete(self, chain: Chain) -> None:
        world, now = self._world, self._world.clock.now()
        with suppress(Exception):  # it is about reading; the work goes on without
            written = complete(self._ledger, world.documents, chain, now, signer=world.signer, redactor=world.redactor)
            for handoff in written.values():
                publish(handoff, world.saved_work, world.redactor)

    def _plan(self) -> Iterator[WorkItem]:
        for item in self._agent.plan():
            if isinstance(item, WorkItem):  # what is none, the ledger refuses
                self._world.redactor.refuse(item.id, "WorkItem.id")
                self._world.redactor.refuse(item.payload, f"WorkItem({item.id!r}).payload")
            yield item

    def _fail(self, opened: Opened, error: Exception) -> None:
        """Records a session that cannot go on. Where the ledger itself is away, the lease runs out instead."""
        fence, message = opened.fence, self._world.redactor(described(error))
        end = after_error(error, 0, self._world.clock.now())
        if not isinstance(error, LedgerUnavailable):
            with suppress(PerpetualError):
                end = self._close_failed(opened, error)
        reason = replace(end.reason, message=message)
        self._tell_end(fence, replace(end, session=SessionState.FAILED, reason=reason))

    def _tell_end(self, fence: Fence, end: Ending) -> None:
        with suppress(Exception):  # it may be a meter that failed
            self._world.tell(BudgetRead(fence.chain, levels_now(self._monitor.readings())))
        self._world.tell(
            SessionEnded(
                fence.chain,
                fence.ordinal,
                end.session,
                end.reason.message,
                code=end.reason.code,
                resume_at=end.reason.resume_at,
                seconds=self._monitor.elapsed(),
                units=self._monitor.units,
                usage=self._monitor.spent,
                items={str(status): count for status, count in end.items.items()},
                status=end.chain,
            )
        )

    def _close_failed(self, opened: Opened, error: Exception) -> Ending:
        world, fence, uid = self._world, opened.fence, opened.chain.uid
        *before, this = self._ledger.sessions(fence.chain)
        now = world.clock.now()
        end = after_error(error, 0 if this.units else outages_in_a_row(before), now)
        end = replace(end, reason=replace(end.reason, message=world.redactor(end.reason.message)))
        this = replace(this, state=end.session, stop_reason=end.reason.code, ended_at=now)
        end = restrain(end, opened.chain, [*before, this], now)
        follow_on = None
        if end.goes_on and self._follow_on is not None and end.reason.resume_at is not None:
            wait = end.reason.resume_at - now
            follow_on = self._follow_on(uid, fence, end.reason.resume_at + jitter(uid, wait))
        limits: list[dict[str, Any]] = []
        with suppress(Exception):  # it may be a meter that failed
            limits = limits_now(self._monitor.readings())
        closing = Closing(
            state=end.session,
            stop=end.reason,
            graceful=False,
            chain_status=end.chain,
            limits=limits,
            steps=[],
            follow_on=follow_on,
        )
        self._ledger.close_session(fence, closing)
        if follow_on is not None and (runs := world.runs) is not None:
            with suppress(Exception):  # it stays in the outbox for whoever comes by next
                within(STEP_SECONDS, lambda: create_follow_ons(self._ledger, runs, fence.chain))
        return end
