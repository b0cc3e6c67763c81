"""The session: owns the chain, works through the queue until something says stop, and ends in order."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from perpetual_blocks.budget import Budget, BudgetMonitor, Status, misfit
from perpetual_blocks.errors import Fenced, InvalidInput, PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState, StopReason
from perpetual_blocks.session.documents import checkpoint_now, limits_now, unit_key
from perpetual_blocks.session.heartbeat import Heartbeat
from perpetual_blocks.session.ports import Closing, Fence, Opened, UnitRaised
from perpetual_blocks.session.restore import Restored, restore
from perpetual_blocks.session.shutdown import FollowOnMaker, Shutdown
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import (
    BudgetWarned,
    ItemsAdded,
    SessionEnded,
    SessionStarted,
    UnitCompleted,
    UnitFailed,
)
from perpetual_blocks.work import Item, Outcome, Unit


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
    ) -> None:
        self._agent = agent
        self._request = request
        self._world = world
        self._ledger = world.ledger
        self._task = task
        self._follow_on = follow_on
        self._stop = stop or StopRequest()
        self._monitor = BudgetMonitor(budget, world.clock, world.meters)
        self._warned: set[str] = set()
        self._attempts = 0

    def run(self) -> SessionEnd:
        """Works until something says stop.

        Raises:
            Superseded: another session works on the chain; nothing was done.
            Fenced: another session took over in between; what was committed until then stands.
            PerpetualError: an essential step failed; the session is recorded as failed where the ledger allows it.
        """
        opened = self._ledger.open_session(self._request)
        reached("session.opened")
        fence = opened.fence
        with Heartbeat(self._ledger, fence, self._stop):
            try:
                restored = self._resume(opened)
                reason = self._work(opened)
                if reason.code == "fenced":
                    raise Fenced(reason.message)
                end = Shutdown(
                    agent=self._agent,
                    world=self._world,
                    fence=fence,
                    uid=opened.chain.uid,
                    task=self._task,
                    monitor=self._monitor,
                    resumed=restored.notes,
                    follow_on=self._follow_on,
                ).run(reason)
            except Fenced:
                raise
            except Exception as error:
                self._fail(fence, error)
                raise
        self._world.tell(SessionEnded(fence.chain, fence.ordinal, end.session, end.reason.message))
        return SessionEnd(fence.ordinal, end.session, end.reason)

    def _resume(self, opened: Opened) -> Restored:
        fence, previous = opened.fence, opened.previous
        restored = Restored(None, ())
        if previous is not None:
            now = checkpoint_now(self._ledger, fence, self._task, self._world.clock.now())
            checkpoints = self._ledger.documents(fence.chain, "checkpoint")
            restored = restore(checkpoints, self._world.documents, now, graceful=previous.graceful)
            if opened.took_over:
                note = f"session {previous.ordinal} was found dead; what it had committed stands, its claims are free"
                restored = Restored(restored.verified, (note, *restored.notes))
        self._world.tell(SessionStarted(fence.chain, fence.ordinal, opened.took_over, restored.notes))
        if not opened.chain.planned:
            added = self._ledger.add_items(fence.chain, self._agent.plan(), planned_by=fence)
            self._world.tell(ItemsAdded(fence.chain, added))
        self._ledger.resumed(fence, self._monitor.elapsed(), restored.verified)
        return restored

    def _work(self, opened: Opened) -> StopReason:
        context = opened.chain.context
        while (reason := self._reason_to_stop()) is None:
            readings = self._monitor.readings() if self._attempts else []
            # The first unit of a session always runs: a fresh session is all the room that there will ever be.
            claim = self._ledger.claim(opened.fence, lambda estimate, left=readings: misfit(estimate, left))  # type: ignore[misc]
            if claim.item is None:
                return _nothing_claimed(claim.passed_over)
            reached("unit.claimed")
            outcome = self._run_unit(opened, claim.item, Unit(claim.item, context))
            if outcome is not None and outcome.context is not None:
                context = outcome.context
        return reason

    def _reason_to_stop(self) -> StopReason | None:
        """Asks every stop source; the first reason wins."""
        if self._stop.reason is not None:
            return self._stop.reason
        verdict = self._monitor.verdict()
        if verdict.reading is None or verdict.status is Status.HEALTHY:
            return None
        resource = verdict.reading.limit.resource
        if verdict.status is Status.WRAP_NOW and self._attempts:
            return StopReason(f"budget:{resource}", verdict.reason)
        if resource not in self._warned:
            self._warned.add(resource)
            self._world.tell(BudgetWarned(self._request.chain, resource, verdict.reason))
        return None

    def _run_unit(self, opened: Opened, item: Item, unit: Unit) -> Outcome | None:
        """Runs one unit and commits what came of it; None when it failed."""
        fence = opened.fence
        key = unit_key(fence.chain, opened.chain.uid, item)
        self._attempts += 1
        try:
            outcome = self._world.runner.run(key, unit)
        except UnitRaised as raised:
            self._monitor.record(unit.usage)
            self._count_failure(fence, item, unit.usage, raised.__cause__ or raised)
            return None
        except PerpetualError:
            # The world failed, not the unit: no attempt is counted.
            with suppress(PerpetualError):
                self._ledger.release(fence, item)
            raise
        self._monitor.record(outcome.usage)
        try:
            self._ledger.commit_unit(fence, item, outcome, key, self._monitor.spent)
        except InvalidInput as refused:  # the ledger refuses items that the unit added, and so the unit
            self._count_failure(fence, item, outcome.usage, refused)
            return None
        self._world.tell(
            UnitCompleted(fence.chain, item.id, unit.number, outcome.done, outcome.progress, outcome.usage)
        )
        return outcome

    def _count_failure(self, fence: Fence, item: Item, usage: dict[str, float], error: BaseException) -> None:
        text = described(error)
        self._ledger.fail_unit(fence, item, text, usage, self._monitor.spent)
        self._world.tell(UnitFailed(fence.chain, item.id, item.attempts + 1, item.max_attempts, text))

    def _fail(self, fence: Fence, error: Exception) -> None:
        """Records a session that cannot go on. Where the ledger itself is away, the lease runs out instead."""
        reason = StopReason("error", described(error))
        limits: list[dict[str, Any]] = []
        with suppress(Exception):  # it may be a meter that failed
            limits = limits_now(self._monitor.readings())
        closing = Closing(
            state=SessionState.FAILED,
            stop=reason,
            graceful=False,
            chain_status=ChainStatus.STALLED,
            limits=limits,
            steps=[],
        )
        with suppress(PerpetualError):
            self._ledger.close_session(fence, closing)
        self._world.tell(SessionEnded(fence.chain, fence.ordinal, SessionState.FAILED, reason.message))


def _nothing_claimed(passed_over: dict[str, str]) -> StopReason:
    if not passed_over:
        return StopReason("queue-empty", "nothing is left that can be claimed")
    item, why = next(iter(passed_over.items()))
    others = f", nor do {len(passed_over) - 1} others" if len(passed_over) > 1 else ""
    return StopReason("nothing-fits", f"{item} does not fit into what is left ({why}){others}")
