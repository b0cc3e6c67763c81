"""The session: owns the chain, works through the queue until something says stop, and ends in order."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from perpetual_blocks.budget import Budget, BudgetMonitor, Reading, Status, check_metered
from perpetual_blocks.errors import Fenced, InvalidInput, LedgerUnavailable, PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.allowance import Allowances
from perpetual_blocks.session.batch import Batch, Failed
from perpetual_blocks.session.chain import Chain, SessionRequest, SessionState, StopReason
from perpetual_blocks.session.choosing import Chooser
from perpetual_blocks.session.completion import complete
from perpetual_blocks.session.context import merged_context, upgraded_context
from perpetual_blocks.session.continuation import after_error, outages_in_a_row
from perpetual_blocks.session.crew import Crew, LeftBehind
from perpetual_blocks.session.documents import UnitKeys, checkpoint_now, limits_now
from perpetual_blocks.session.follow_on import create_follow_ons, jitter
from perpetual_blocks.session.heartbeat import Heartbeat
from perpetual_blocks.session.ledger import Claim, Closing, Fence, Finished, Opened
from perpetual_blocks.session.manners import Manners, restrain
from perpetual_blocks.session.pace import BatchSize, Pace
from perpetual_blocks.session.ports import RunPaused
from perpetual_blocks.session.restore import Restored, restore
from perpetual_blocks.session.shutdown import FollowOnMaker, Shutdown
from perpetual_blocks.session.steps import STEP_SECONDS, within
from perpetual_blocks.session.stop import StopRequest
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
from perpetual_blocks.usage import add
from perpetual_blocks.work import CutOff, Item, ItemStatus, WorkItem

LEARNED = 32
"""From how many units of a batch, spread over it, the forecasts learn: to learn from each would cost more than tiny
units do, and these are as good a sample."""


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
        self._crew: Crew[Batch] = Crew(world.clock, self._stop)
        self._pace = Pace(concurrency)
        self._size = BatchSize()
        self._budget = budget
        self._until = until
        self._began = world.clock.monotonic()
        self._monitor = BudgetMonitor(budget, world.clock, world.meters)
        self._warned: set[str] = set()
        self._passed_over: dict[str, str] = {}
        self._choices: list[str] = []
        self._manners = Manners.of(request.settings)
        self._quiet_from = self._manners.quiet_from(world.clock.now())
        self._context: dict[str, Any] = {}
        self._spent: dict[str, float] = {}

    def run(self) -> SessionEnd:
        """Works until something says stop.

        Raises:
            Superseded: another session works on the chain, or it is paused; nothing was done.
            InvalidInput: the chain is not one of this agent; nothing was done.
            Fenced: another session took over in between; what was committed until then stands.
            LedgerUnavailable: the ledger was away for longer than the lease; whoever comes next takes the chain over.
            PerpetualError: an essential step failed; the session is recorded as failed where the ledger allows it.
        """
        began = self._world.clock.monotonic()
        opened = self._ledger.open_session(self._request)
        reached("session.opened")
        fence = opened.fence
        with ExitStack() as watched:
            watched.enter_context(Heartbeat(self._ledger, fence, self._stop, self._world.clock, began))
            asked: dict[str, Look] = {"wishes": partial(wishes, self._ledger, fence.chain), **self._world.watched}
            for name, look in asked.items():
                watched.enter_context(Watch(look, self._stop, f"{name} {fence.chain}"))
            try:
                restored = self._resume(opened)
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
                self._drain(opened, error)
                self._fail(opened, error)
                raise
            finally:
                self._crew.close()
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
        chooser = Chooser(self._ledger, opened.fence, self._monitor, self._world.clock, self._stop)
        self._passed_over = chooser.passed_over
        allowances = Allowances(
            self._monitor, chooser, self._world, self._stop, self._agent.ladder, self._choices, self._pace.most > 1
        )
        keys = UnitKeys(opened.fence.chain, opened.chain.uid)
        reason: StopReason | None = None
        while True:
            with self._monitor.lock:
                readings = self._monitor.readings()
                reason = reason or self._reason_to_stop(readings)
            if reason is None and self._is_free():
                chosen = chooser.claim(readings, self._size.most, patient=not self._crew.running)
                if isinstance(chosen, Claim):
                    reason = self._begin(opened, chosen, chooser, allowances, keys)
                    continue
                if not self._crew.running:
                    return chosen
                # Units that still run may add items, unblock some, or give back what they had reserved.
            elif not self._crew.running:
                assert reason is not None
                return reason
            reason = self._settle_next(opened, chooser) or reason

    def _is_free(self) -> bool:
        running = self._crew.running
        return len(running) < self._pace.limit and not any(batch.alone for batch in running)

    def _begin(
        self, opened: Opened, claim: Claim, chooser: Chooser, allowances: Allowances, keys: UnitKeys
    ) -> StopReason | None:
        """Starts a batch; a reason to stop where there was one before it could be started."""
        reached("unit.claimed")
        for item, why in chooser.discarded.items():
            self._world.tell(ItemDiscarded(opened.fence.chain, item, why))
        batch = Batch(
            claim,
            keys,
            self._context,
            allowances.batch(),
            self._world.clock,
            fresh=self._monitor.units == 0 and not self._crew.running,
            phase=self._pace.phase,
        )
        reason: StopReason | None = None
        while batch.alone and self._crew.running:
            reason = self._settle_next(opened, chooser) or reason
        if reason is not None:
            self._ledger.release(opened.fence, batch.items, begun=False)
            return reason
        self._crew.start(batch, partial(self._run, batch))
        return None

    def _run(self, batch: Batch) -> None:
        """Runs a batch, in a thread of the crew."""
        with self._monitor.watch() as peaks:
            self._world.runner.run(batch)
        batch.peaks = peaks

    def _reason_to_stop(self, readings: Sequence[Reading]) -> StopReason | None:
        """Asks every stop source but the budget, which is asked for each item; the first reason wins."""
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

    def _settle_next(self, opened: Opened, chooser: Chooser) -> StopReason | None:
        """Waits for the next batch that ends, and commits what came of it; a reason to stop where it was one."""
        fence = opened.fence
        try:
            batch, error = self._crew.next(self._world.runner.interrupt, self._monitor.shutdown_seconds)
        except LeftBehind:
            # Keys stay as they are: should one still end before the process does, the next session finds its outcome.
            left = [item for batch in self._crew.running for item in batch.items]
            self._crew.running.clear()
            self._ledger.release(fence, left, begun=True)
            for item in left:
                why = f"{item.id}: unit {item.units + 1} could not be waited for, as the process is about to end"
                self._world.tell(UnitCutOff(fence.chain, item.id, why, discarded=False))
            return self._stop.reason
        if isinstance(error, RunPaused):
            self._ledger.release(fence, batch.items, begun=True)
            return self._stop.reason or StopReason("paused", "its flow run was paused")
        if isinstance(error, PerpetualError):
            # The world failed, not the unit: no attempt is counted.
            with suppress(PerpetualError):
                self._ledger.release(fence, batch.items, begun=True)
        if error is not None:
            raise error
        self._check_reachable()
        self._settle(opened, batch)
        if batch.cut_off is None:
            return self._stop.reason if self._crew.interrupted else None
        failed = batch.cut_off
        assert isinstance(failed.error, CutOff)
        self._cut_off(fence, failed, failed.error, fresh=batch.fresh and failed.item is batch.items[0])
        return self._stop.reason or chooser.out_of_room(failed.item, failed.error)

    def _settle(self, opened: Opened, batch: Batch) -> None:
        fence = opened.fence
        with self._monitor.lock:
            for one in batch.finished[:: max(1, len(batch.finished) // LEARNED)]:
                self._monitor.learn(one.outcome.usage, one.item.expectation, peaks=batch.peaks)
            for one in batch.finished:
                for name, quota in one.outcome.quotas.items():
                    self._monitor.report(name, quota)
        self._commit(fence, batch.finished, batch.left)
        for failed in batch.failed:
            if self._crew.interrupted:
                self._cut_off(fence, failed, failed.unit.interrupted(), fresh=False)
            else:
                self._pace.failed(failed.error, batch.phase)
                self._count_failure(fence, failed.item, failed.usage, failed.error)
        self._size.ran(len(batch.finished) + len(batch.failed))

    def _commit(self, fence: Fence, finished: Sequence[Finished], unbegun: Sequence[Item]) -> None:
        """Commits outcomes together; one by one where the ledger refuses what one of them wants."""
        try:
            if finished:
                context = self._merged(finished)
                spent = self._spent_with(*(one.outcome.usage for one in finished))
                self._ledger.commit_units(fence, finished, spent, context=context, unbegun=unbegun)
                self._spent = spent
                self._context = self._context if context is None else context
            elif unbegun:
                self._ledger.release(fence, unbegun, begun=False)
        except InvalidInput as refused:
            if len(finished) == 1:
                self._count_failure(fence, finished[0].item, finished[0].outcome.usage, refused)
                finished = ()
            for one in finished:
                self._commit(fence, [one], ())
            self._commit(fence, (), unbegun)
            return
        for one in finished:
            self._pace.succeeded()
            done, progress, usage = one.outcome.done, one.outcome.progress, one.outcome.usage
            self._world.tell(UnitCompleted(fence.chain, one.item.id, one.item.units + 1, done, progress, usage))

    def _merged(self, finished: Sequence[Finished]) -> dict[str, Any] | None:
        """The context with what these units have changed of it; None where they have not.

        Raises:
            InvalidInput: the agent cannot merge it, or what it makes of it is no context.
        """
        context: dict[str, Any] | None = None
        for one in finished:
            if one.outcome.context is not None:
                before = self._context if context is None else context
                context = merged_context(self._agent, before, one.outcome.context)
        return context

    def _cut_off(self, fence: Fence, failed: Failed, error: CutOff, *, fresh: bool) -> None:
        with self._monitor.lock:
            self._monitor.learn(failed.usage, failed.item.expectation, finished=False)
        why = self._world.redactor(str(error))
        self._spent = self._spent_with(failed.usage)
        status = self._ledger.cut_off(fence, failed.item, why, failed.usage, self._spent, fresh=fresh)
        self._world.tell(UnitCutOff(fence.chain, failed.item.id, why, discarded=status is ItemStatus.DISCARDED))

    def _count_failure(self, fence: Fence, item: Item, usage: dict[str, float], error: BaseException) -> None:
        text = self._world.redactor(described(error))
        self._spent = self._spent_with(usage)
        self._ledger.fail_unit(fence, item, text, usage, self._spent)
        self._world.tell(UnitFailed(fence.chain, item.id, item.attempts + 1, item.max_attempts, text))

    def _spent_with(self, *usages: dict[str, float]) -> dict[str, float]:
        """What the ledger is to hold of the session's usage. The budget counts what is not committed yet, too."""
        spent = self._spent
        for usage in usages:
            spent = add(spent, usage)
        return spent

    def _check_reachable(self) -> None:
        """Commits nothing after the lease: what a unit has done since is persisted, and found by whoever comes next."""
        if self._stop.reason is not None and self._stop.reason.code == "unreachable":
            raise LedgerUnavailable(self._stop.reason.message)

    def _drain(self, opened: Opened, error: Exception) -> None:
        """Lets the units end that run beside one that could not be committed: nobody else may begin them meanwhile."""
        self._stop.ask(StopReason("failed", described(error)))
        chooser = Chooser(self._ledger, opened.fence, self._monitor, self._world.clock, self._stop)
        while self._crew.running and not isinstance(error, LedgerUnavailable):
            with suppress(PerpetualError):
                self._settle_next(opened, chooser)

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
