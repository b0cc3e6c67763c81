"""The session: owns the chain, works through the queue until something says stop, and ends in order."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from perpetual_blocks.budget import Budget, BudgetMonitor, Reading, Status, check_metered
from perpetual_blocks.budget.room import Room
from perpetual_blocks.errors import Fenced, InvalidInput, LedgerUnavailable, PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.chain import Chain, SessionRequest, SessionState, StopReason
from perpetual_blocks.session.choosing import Chooser
from perpetual_blocks.session.completion import complete
from perpetual_blocks.session.context import upgraded_context
from perpetual_blocks.session.continuation import after_error, outages_in_a_row
from perpetual_blocks.session.documents import checkpoint_now, limits_now, unit_key
from perpetual_blocks.session.follow_on import FollowOnMaker, create_follow_ons, jitter
from perpetual_blocks.session.heartbeat import Heartbeat
from perpetual_blocks.session.ledger import Closing, Fence, Opened
from perpetual_blocks.session.manners import Manners, restrain
from perpetual_blocks.session.ports import RunPaused, UnitRaised
from perpetual_blocks.session.restore import Restored, restore
from perpetual_blocks.session.shutdown import Shutdown
from perpetual_blocks.session.steps import STEP_SECONDS, within
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.successor import Successor
from perpetual_blocks.session.turn import open_in_turn
from perpetual_blocks.session.unit_thread import LeftBehind, UnitThread
from perpetual_blocks.session.watch import Look, Watch, wishes
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import (
    BudgetWarned,
    CodeChanged,
    ItemDiscarded,
    ItemsAdded,
    SessionEnded,
    SessionStarted,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)
from perpetual_blocks.work import CutOff, Item, Outcome, Unit, WorkItem
from perpetual_blocks.work.item import ItemStatus


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
    ) -> None:
        check_metered(budget, world.meters)
        self._agent = agent
        self._request = replace(request, context_version=agent.context_version, on_code_change=agent.on_code_change)
        self._world = world
        self._ledger = world.ledger
        self._task = task
        self._follow_on = follow_on
        self._stop = stop or StopRequest()
        self._units = UnitThread(world.clock, self._stop)
        self._budget = budget
        self._until = until
        self._began = world.clock.monotonic()
        self._monitor = BudgetMonitor(budget, world.clock, world.meters)
        self._quotas = tuple(limit.name for limit in budget if limit.window is not None)
        self._warned: set[str] = set()
        self._rung: str | None = None
        self._passed_over: dict[str, str] = {}
        self._choices: list[str] = []
        self._manners = Manners.of(request.settings)
        self._quiet_from = self._manners.quiet_from(world.clock.now())
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
                self._successor = watched.enter_context(ahead)
                reason = self._work(opened)
                if reason.code == "fenced":
                    raise Fenced(reason.message)
                self._check_reachable()
                end = Shutdown(
                    agent=self._agent,
                    world=self._world,
                    fence=fence,
                    uid=opened.chain.uid,
                    task=self._task,
                    monitor=self._monitor,
                    resumed=restored.notes,
                    follow_on=self._follow_on,
                    passed_over=self._passed_over,
                    choices=self._choices,
                    stop=self._stop,
                ).run(reason)
            except Fenced:
                raise
            except Exception as error:
                self._fail(opened, error)
                raise
            finally:
                self._units.close()
        self._world.tell(SessionEnded(fence.chain, fence.ordinal, end.session, end.reason.message))
        return SessionEnd(fence.ordinal, end.session, end.reason)

    def _resume(self, opened: Opened) -> Restored:
        fence, previous, world = opened.fence, opened.previous, self._world
        record = budget_record(self._ledger, opened.chain, self._budget, world.clock.now(), before=fence.ordinal)
        self._monitor = BudgetMonitor(
            self._budget,
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
            restored = restore(checkpoints, self._world.documents, now, graceful=previous.graceful, signer=world.signer)
            if opened.took_over:
                note = f"session {previous.ordinal} was found dead; what it had committed stands, its claims are free"
                restored = Restored(restored.verified, (note, *restored.notes))
        if opened.code_changed is not None:
            world.tell(CodeChanged(fence.chain, fence.ordinal, opened.code_changed))
        self._context, upgraded = upgraded_context(self._agent, self._ledger, opened)
        news = tuple(filter(None, (opened.code_changed, upgraded)))
        restored = Restored(restored.verified, (*restored.notes, *news))
        self._world.tell(SessionStarted(fence.chain, fence.ordinal, opened.took_over, restored.notes))
        if not opened.chain.planned:
            added = self._ledger.add_items(fence.chain, self._plan(), planned_by=fence)
            self._world.tell(ItemsAdded(fence.chain, added))
        self._ledger.resumed(fence, self._monitor.elapsed(), restored.verified)
        return restored

    def _complete(self, chain: Chain) -> None:
        world, now = self._world, self._world.clock.now()
        with suppress(Exception):  # it is about reading; the work goes on without
            written = complete(self._ledger, world.documents, chain, now, signer=world.signer, redactor=world.redactor)
            for ordinal, handoff in written.items():
                world.saved_work.publish(chain.name, ordinal, handoff, "written by whoever came next")

    def _plan(self) -> Iterator[WorkItem]:
        for item in self._agent.plan():
            if isinstance(item, WorkItem):  # what is none, the ledger refuses
                self._world.redactor.refuse(item.id, "WorkItem.id")
                self._world.redactor.refuse(item.payload, f"WorkItem({item.id!r}).payload")
            yield item

    def _work(self, opened: Opened) -> StopReason:
        context = self._context
        chooser = Chooser(self._ledger, opened.fence, self._monitor, self._world.clock, self._stop)
        self._passed_over = chooser.passed_over
        while (reason := self._reason_to_stop(readings := self._monitor.readings())) is None:
            chosen = chooser.claim(readings)
            if isinstance(chosen, StopReason):
                return chosen
            reached("unit.claimed")
            for item, why in chooser.discarded.items():
                self._world.tell(ItemDiscarded(opened.fence.chain, item, why))
            outcome = self._run_unit(opened, chosen, self._unit(chooser, chosen, context), chooser)
            if isinstance(outcome, StopReason):
                return outcome
            if outcome is not None and outcome.context is not None:
                context = outcome.context
        return reason

    def _unit(self, chooser: Chooser, item: Item, context: dict[str, Any]) -> Unit:
        readings = self._monitor.readings()  # the claim may have waited
        rung = self._monitor.rung(self._agent.ladder, readings)
        if rung is not None and rung[0] != self._rung:
            self._rung = rung[0]
            self._choices.append(f"rung {rung[0]!r}: {rung[1]}")
        room = Room(
            self._monitor.room(readings),
            self._world.clock,
            stopping=lambda: self._stop.reason is not None,
            rung=self._rung,
            quotas=self._quotas,
            reserved={reserve.limit.resource: reserve.amount for reserve in chooser.reserves(readings, item)},
            extend=partial(chooser.extend, item),
        )
        return Unit(item, context, room, price=self._world.price)

    def _reason_to_stop(self, readings: Sequence[Reading]) -> StopReason | None:
        """Asks every stop source but the budget, which is asked for each item; the first reason wins."""
        self._successor.consider(readings)
        if self._stop.reason is not None:
            return self._stop.reason
        if self._quiet_from is not None and self._world.clock.now() >= self._quiet_from:
            return StopReason("quiet-hours", "its quiet hours begin", self._manners.quiet_until(self._quiet_from))
        if (enough := self._monitor.long_enough(readings)) is not None:
            self._choices.append(f"session length: {enough}")
            return StopReason("session-length", enough)
        verdict = self._monitor.verdict(readings)
        if verdict.reading is not None and verdict.status is not Status.HEALTHY:
            name = verdict.reading.limit.name
            if name not in self._warned:
                self._warned.add(name)
                self._world.tell(BudgetWarned(self._request.chain, verdict.reading.limit.resource, verdict.reason))
        return None

    def _run_unit(  # noqa: PLR0911 - one for each way in which a unit ends
        self, opened: Opened, item: Item, unit: Unit, chooser: Chooser
    ) -> Outcome | StopReason | None:
        """Runs one unit and commits what came of it; None when it failed, a reason when it had no room or time."""
        fence = opened.fence
        key = unit_key(fence.chain, opened.chain.uid, item)
        fresh = self._monitor.units == 0
        started = self._world.clock.monotonic()
        try:
            with self._monitor.watch():
                outcome = self._units.run(
                    partial(self._world.runner.run, key, unit),
                    self._world.runner.interrupt,
                    self._monitor.shutdown_seconds,
                )
        except RunPaused:
            self._ledger.release(fence, item)
            return self._stop.reason or StopReason("paused", "its flow run was paused")
        except LeftBehind:
            # Its key stays as it is: should it still end before the process does, the next session finds its outcome.
            self._ledger.release(fence, item)
            why = f"{item.id}: unit {unit.number} could not be waited for, as the process is about to end"
            self._world.tell(UnitCutOff(fence.chain, item.id, why, discarded=False))
            return self._stop.reason
        except UnitRaised as raised:
            if self._units.interrupted:
                spent = {**unit.usage, "seconds": self._world.clock.monotonic() - started}
                self._cut_off(fence, item, spent, unit.interrupted(), fresh=False)
                return self._stop.reason
            if isinstance(raised.__cause__, CutOff):
                spent = {**unit.usage, "seconds": self._world.clock.monotonic() - started}
                self._cut_off(fence, item, spent, raised.__cause__, fresh=fresh)
                return chooser.out_of_room(item, raised.__cause__)
            self._monitor.record(unit.usage)
            self._count_failure(fence, item, unit.usage, raised.__cause__ or raised)
            return None
        except PerpetualError:
            # The world failed, not the unit: no attempt is counted.
            with suppress(PerpetualError):
                self._ledger.release(fence, item)
            raise
        self._check_reachable()
        self._monitor.record(outcome.usage, item.expectation)
        for name, quota in outcome.quotas.items():
            self._monitor.report(name, quota)
        try:
            self._ledger.commit_unit(fence, item, outcome, key, self._monitor.spent)
        except InvalidInput as refused:  # the ledger refuses items that the unit added, and so the unit
            self._count_failure(fence, item, outcome.usage, refused)
            return None
        self._world.tell(
            UnitCompleted(fence.chain, item.id, unit.number, outcome.done, outcome.progress, outcome.usage)
        )
        return outcome

    def _cut_off(self, fence: Fence, item: Item, usage: dict[str, float], error: CutOff, *, fresh: bool) -> None:
        self._monitor.record(usage, item.expectation, finished=False)
        why = self._world.redactor(str(error))
        status = self._ledger.cut_off(fence, item, why, usage, self._monitor.spent, fresh=fresh)
        self._world.tell(UnitCutOff(fence.chain, item.id, why, discarded=status is ItemStatus.DISCARDED))

    def _count_failure(self, fence: Fence, item: Item, usage: dict[str, float], error: BaseException) -> None:
        text = self._world.redactor(described(error))
        self._ledger.fail_unit(fence, item, text, usage, self._monitor.spent)
        self._world.tell(UnitFailed(fence.chain, item.id, item.attempts + 1, item.max_attempts, text))

    def _check_reachable(self) -> None:
        """Commits nothing after the lease: what a unit has done since is persisted, and found by whoever comes next."""
        if self._stop.reason is not None and self._stop.reason.code == "unreachable":
            raise LedgerUnavailable(self._stop.reason.message)

    def _fail(self, opened: Opened, error: Exception) -> None:
        """Records a session that cannot go on. Where the ledger itself is away, the lease runs out instead."""
        fence, message = opened.fence, self._world.redactor(described(error))
        if not isinstance(error, LedgerUnavailable):
            with suppress(PerpetualError):
                self._close_failed(opened, error)
        self._world.tell(SessionEnded(fence.chain, fence.ordinal, SessionState.FAILED, message))

    def _close_failed(self, opened: Opened, error: Exception) -> None:
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
