"""Working: claims batches of units, has them run, and commits what comes of them, until something says stop."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from perpetual_blocks.budget import BudgetMonitor, Reading, Status
from perpetual_blocks.errors import InvalidInput, LedgerUnavailable, PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.allowance import Allowances
from perpetual_blocks.session.batch import Batch, Failed, Unlimited
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.choosing import Chooser
from perpetual_blocks.session.context import merged_context
from perpetual_blocks.session.continuation import OUTAGE, outage, outages_in_a_row
from perpetual_blocks.session.crew import Crew, LeftBehind
from perpetual_blocks.session.documents import UnitKeys, levels_now
from perpetual_blocks.session.ledger import Claim, Finished, Opened
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.pace import BatchSize, Pace
from perpetual_blocks.session.ports import RunPaused
from perpetual_blocks.session.services import ServiceWatch
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.successor import Successor
from perpetual_blocks.session.world import Agent, World
from perpetual_blocks.telemetry import BudgetRead, BudgetWarned, ItemDiscarded, UnitCompleted, UnitCutOff, UnitFailed
from perpetual_blocks.usage import add
from perpetual_blocks.work import CutOff, Item, ItemStatus

LEARNED = 32
"""From how many units of a batch, spread over it, the forecasts learn: to learn from each would cost more than tiny
units do, and these are as good a sample."""

TELL_SECONDS = 1.0
"""How often at most it is told how the limits stand."""


class Working:
    """The work of one session.

    Batches run in the threads of a crew; they are claimed and committed in this one, each when it ends.

    Args:
        context: The agent's context as the session finds it.
        successor: Is told how the budget stands, and creates the follow-on ahead of the end.
        manners: Whose quiet hours end the work.
        concurrency: How many batches run at once at most.

    Attributes:
        passed_over: Why items were not taken when others were, by id.
        choices: What was chosen automatically, a line for each.
    """

    def __init__(
        self,
        agent: Agent,
        opened: Opened,
        context: dict[str, Any],
        world: World,
        monitor: BudgetMonitor,
        stop: StopRequest,
        successor: Successor,
        manners: Manners,
        concurrency: int,
    ) -> None:
        self._agent = agent
        self._fence = opened.fence
        self._may_be_left = opened.previous is not None and not opened.previous.graceful
        self._keys = UnitKeys(opened.queue.name, opened.queue.uid)
        self._context = context
        self._world = world
        self._ledger = world.ledger
        self._monitor = monitor
        self._stop = stop
        self._successor = successor
        self._manners = manners
        self._quiet_from = manners.quiet_from(world.clock.now())
        self._chooser = Chooser(world.ledger, opened.fence, monitor, world.clock, stop)
        self.passed_over = self._chooser.passed_over
        self.choices: list[str] = []
        self._allowances = Allowances(
            monitor,
            self._chooser,
            self._fence.chain,
            world,
            stop,
            agent.ladder,
            self.choices,
            concurrent=concurrency > 1,
        )
        self._crew: Crew[Batch] = Crew(world.clock, stop)
        self._pace = Pace(concurrency)
        was_away = opened.previous is not None and opened.previous.stop_reason == OUTAGE
        self._service = ServiceWatch(concurrency, was_away=was_away)
        self._size = BatchSize()
        self._spent: dict[str, float] = {}
        self._warned: set[str] = set()
        self._tell_next = -inf

    def run(self) -> StopReason:
        """Works until something says stop: what that was."""
        if self._may_be_left:
            self._apply_left()
        reason: StopReason | None = None
        while True:
            if is_free := self._is_free():
                self._successor.consider()
            with self._monitor.lock:
                readings = self._monitor.readings()
                reason = reason or self._reason_to_stop(readings)
            self._tell_levels(readings)
            if reason is None and is_free:
                chosen = self._chooser.claim(readings, self._size.most, patient=not self._crew.running)
                if isinstance(chosen, Claim):
                    reason = self._begin(chosen)
                    continue
                if not self._crew.running:
                    return chosen
                # Units that still run may add items, unblock some, or give back what they had reserved.
            elif not self._crew.running:
                assert reason is not None
                return reason
            reason = self._settle_next() or reason

    def _apply_left(self) -> None:
        """Commits what a session before has persisted and could not commit, before anything else is done.

        What those units made of the context was made of it as it still is: another unit would change it meanwhile.
        """
        claim = self._ledger.claim_begun(self._fence)
        if not claim.items:
            return
        limits = Unlimited(self._monitor.count)
        batch = Batch(claim, self._keys, self._context, limits, self._world.clock, chain=self._fence.chain)
        try:
            self._world.runner.find(batch)
        except PerpetualError:
            with suppress(PerpetualError):
                self._ledger.release(self._fence, claim.items, begun=False)
            raise
        if batch.finished:
            reached("unit.persisted")
        found = {one.item.id for one in batch.finished}
        self._commit(batch.finished, [item for item in claim.items if item.id not in found])

    def _is_free(self) -> bool:
        running = self._crew.running
        if not running:
            return True
        alone = any(batch.alone for batch in running) or self._monitor.is_blind()
        return len(running) < self._pace.limit and not alone

    def _begin(self, claim: Claim) -> StopReason | None:
        """Starts a batch; a reason to stop where there was one before it could be started."""
        reached("unit.claimed")
        for item, why in self._chooser.discarded.items():
            self._world.tell(ItemDiscarded(self._fence.chain, item, why))
        allowance = self._allowances.batch(claim.items[0], beside_others=bool(self._crew.running))
        if allowance is None:
            self._ledger.release(self._fence, claim.items, begun=False)
            return self._settle_next()
        batch = Batch(
            claim,
            self._keys,
            self._context,
            allowance,
            self._world.clock,
            chain=self._fence.chain,
            fresh=self._monitor.units == 0 and not self._crew.running,
            phase=self._pace.phase,
        )
        reason: StopReason | None = None
        while batch.alone and self._crew.running:
            reason = self._settle_next() or reason
        if reason is not None:
            self._ledger.release(self._fence, batch.items, begun=False)
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
            self.choices.append(f"session length: {enough}")
            return StopReason("session-length", enough)
        verdict = self._monitor.verdict(readings)
        if verdict.reading is not None and verdict.status is not Status.HEALTHY:
            name = verdict.reading.limit.name
            if name not in self._warned:
                self._warned.add(name)
                self._world.tell(BudgetWarned(self._fence.chain, verdict.reading.limit.resource, verdict.reason))
        return None

    def _tell_levels(self, readings: Sequence[Reading]) -> None:
        now = self._world.clock.monotonic()
        if now >= self._tell_next:
            self._tell_next = now + TELL_SECONDS
            self._world.tell(BudgetRead(self._fence.chain, levels_now(readings)))

    def _settle_next(self) -> StopReason | None:
        """Waits for the next batch that ends, and commits what came of it; a reason to stop where it was one."""
        try:
            batch, error = self._crew.next(self._world.runner.interrupt, self._monitor.shutdown_seconds)
        except LeftBehind:
            # Keys stay as they are: should one still end before the process does, the next session finds its outcome.
            left = [item for batch in self._crew.running for item in batch.items]
            self._crew.running.clear()
            self._ledger.release(self._fence, left, begun=True)
            for item in left:
                why = f"{item.id}: unit {item.units + 1} could not be waited for, as the process is about to end"
                self._world.tell(UnitCutOff(self._fence.chain, item.id, why, discarded=False))
            return self._stop.reason
        if isinstance(error, RunPaused):
            self._ledger.release(self._fence, batch.items, begun=True)
            return self._stop.reason or StopReason("paused", "its flow run was paused")
        if isinstance(error, PerpetualError):
            # The world failed, not the unit: no attempt is counted.
            with suppress(PerpetualError):
                self._ledger.release(self._fence, batch.items, begun=True)
        if error is not None:
            raise error
        self.check_reachable()
        self._settle(batch)
        if batch.cut_off is None:
            return self._stop.reason if self._crew.interrupted else self._outage()
        failed = batch.cut_off
        assert isinstance(failed.error, CutOff)
        with self._monitor.lock:
            fresh = batch.fresh and failed.item is batch.items[0]
            fresh = fresh and self._monitor.had_all(failed.error.resource, failed.usage)
        self._cut_off(failed, failed.error, fresh=fresh)
        return self._stop.reason or self._chooser.out_of_room(failed.item, failed.error)

    def _settle(self, batch: Batch) -> None:
        with self._monitor.lock:
            for one in batch.finished[:: max(1, len(batch.finished) // LEARNED)]:
                self._monitor.learn(one.outcome.usage, one.item.expectation, peaks=batch.peaks)
        self._commit(batch.finished, batch.left)
        for failed in batch.failed:
            if self._crew.interrupted:
                self._cut_off(failed, failed.unit.interrupted(), fresh=False)
                continue
            self._pace.failed(failed.error, batch.phase)
            if self._service.is_to_blame(failed.item, failed.error):
                why = f"unit {failed.item.units + 1} cannot be done while a service is away"
                self._give_back(failed, f"{failed.item.id}: {why}: {described(failed.error)}", fresh=False)
            else:
                self._count_failure(failed.item, failed.usage, failed.error)
        self._size.ran(len(batch.finished) + len(batch.failed))

    def _commit(self, finished: Sequence[Finished], unbegun: Sequence[Item]) -> None:
        """Commits outcomes together; one by one where the ledger refuses what one of them wants."""
        try:
            if finished:
                context = self._merged(finished)
                spent = self._spent_with(*(one.outcome.usage for one in finished))
                self._ledger.commit_units(self._fence, finished, spent, context=context, unbegun=unbegun)
                self._spent = spent
                self._context = self._context if context is None else context
            elif unbegun:
                self._ledger.release(self._fence, unbegun, begun=False)
        except InvalidInput as refused:
            if len(finished) == 1:
                self._count_failure(finished[0].item, finished[0].outcome.usage, refused)
                finished = ()
            for one in finished:
                self._commit([one], ())
            self._commit((), unbegun)
            return
        for one in finished:
            self._pace.succeeded()
            self._service.succeeded()
            done, progress, usage = one.outcome.done, one.outcome.progress, one.outcome.usage
            self._world.tell(UnitCompleted(self._fence.chain, one.item.id, one.item.units + 1, done, progress, usage))

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

    def _cut_off(self, failed: Failed, error: CutOff, *, fresh: bool) -> None:
        with self._monitor.lock:
            self._monitor.learn(failed.usage, failed.item.expectation, finished=False)
        self._give_back(failed, str(error), fresh=fresh)

    def _give_back(self, failed: Failed, why: str, *, fresh: bool) -> None:
        """Counts no attempt, but what was spent."""
        why = self._world.redactor(why)
        self._spent = self._spent_with(failed.usage)
        status = self._ledger.cut_off(self._fence, failed.item, why, failed.usage, self._spent, fresh=fresh)
        discarded = status is ItemStatus.DISCARDED
        self._world.tell(UnitCutOff(self._fence.chain, failed.item.id, why, discarded, failed.usage))

    def _count_failure(self, item: Item, usage: dict[str, float], error: BaseException) -> None:
        text = self._world.redactor(described(error))
        self._spent = self._spent_with(usage)
        status = self._ledger.fail_unit(self._fence, item, text, usage, self._spent)
        discarded = status is ItemStatus.DISCARDED
        told = UnitFailed(self._fence.chain, item.id, item.attempts + 1, item.max_attempts, text, discarded, usage)
        self._world.tell(told)

    def _outage(self) -> StopReason | None:
        """Why the session ends when a service that its units use is away."""
        if self._service.away is None:
            return None
        *before, this = self._ledger.sessions(self._fence.chain)
        why = f"a service is away, and no unit gets on without it: {described(self._service.away)}"
        return outage(self._world.redactor(why), 0 if this.units else outages_in_a_row(before), self._world.clock.now())

    def _spent_with(self, *usages: dict[str, float]) -> dict[str, float]:
        """What the ledger is to hold of the session's usage. The budget counts what is not committed yet, too."""
        return add(self._spent, *usages)

    def check_reachable(self) -> None:
        """Commits nothing after the lease: what a unit has done since is persisted, and found by whoever comes next."""
        if self._stop.reason is not None and self._stop.reason.code == "unreachable":
            raise LedgerUnavailable(self._stop.reason.message)

    def drain(self, error: Exception) -> None:
        """Lets the units end that run beside one that could not be committed: nobody else may begin them meanwhile."""
        self._stop.ask(StopReason("failed", described(error)))
        while self._crew.running and not isinstance(error, LedgerUnavailable):
            with suppress(PerpetualError):
                self._settle_next()

    def close(self) -> None:
        """Lets the crew go."""
        self._crew.close()
