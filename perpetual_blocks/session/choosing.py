"""Choosing the next item: the first in the queue's order that fits every limit; and when none does, why, until when."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from perpetual_blocks.budget import BudgetMonitor, Expectation, Reading, Refusal, Status
from perpetual_blocks.clock import Clock
from perpetual_blocks.session.account import pool_spends
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.continuation import WAITING, wait_for_others
from perpetual_blocks.session.ledger import Claim, Fence, Ledger, Misfit, Reserve
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.usage import show_duration
from perpetual_blocks.work import CutOff, Item

BATCH_SECONDS = 1.0
"""How long a batch takes: a stop is never farther away, and no more is repeated when a session dies."""

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.25, 2.0
MOST_WAITED_SECONDS = 30.0
"""How long a session waits before it ends: for others to give back what they have reserved of a pool, for the next
attempt of an item that has failed, or for what other chains of its queue may leave to it."""


class Chooser:
    """Claims items for a session.

    Attributes:
        passed_over: Why items were not taken when others were, by id.
        discarded: Why items were given up at the latest claim, by id.
    """

    def __init__(self, ledger: Ledger, fence: Fence, monitor: BudgetMonitor, clock: Clock, stop: StopRequest) -> None:
        self._ledger = ledger
        self._fence = fence
        self._monitor = monitor
        self._clock = clock
        self._stop = stop
        self._pooled = [limit for limit in monitor.budget if limit.pool is not None]
        self._gone: StopReason | None = None
        self._asked: dict[Any, tuple[Expectation, Refusal | None]] = {}
        self._fits: Item | None = None  # the latest that does
        self._needs: dict[str, Expectation] = {}  # of items that were cut off, more than was declared
        self.passed_over: dict[str, str] = {}
        self.discarded: dict[str, str] = {}

    def claim(self, readings: Sequence[Reading], most: int = 1, *, patient: bool = True) -> Claim | StopReason:
        """The items of the next batch; or why there are none, with the time when there will be some where it is known.

        Args:
            most: How many at most; so many that they take about a second.
            patient: Whether to wait a moment for what will be there soon.
        """
        waited = 0.0
        while True:
            self._asked, self._fits = {}, None
            misfit, reserves = partial(self._misfit, readings), partial(self.reserves, readings)
            claim = self._ledger.claim(self._fence, misfit, reserves, _Batch(self._monitor, most).wants, expected=most)
            if claim.items:
                self.passed_over |= claim.passed_over
                self.discarded = claim.discarded
                return claim
            seconds, why = POLL_SECONDS, None
            if not claim.contended or waited >= MOST_WAITED_SECONDS or not patient:
                why = self._nothing_claimed(claim)
                if why.code == WAITING and patient:
                    seconds = min(LONGEST_POLL_SECONDS, POLL_SECONDS + waited / 8)
                elif why.code == "backing-off" and why.resume_at is not None and patient:
                    seconds = max(POLL_SECONDS, why.resume_at - self._clock.now())
                else:
                    return why
                # Waiting must not use up the time that is kept for the shutdown either.
                left = self._monitor.room(readings).get("seconds", MOST_WAITED_SECONDS)
                if seconds > min(MOST_WAITED_SECONDS - waited, left):
                    return why
            if self._stop.wait(self._clock, seconds):
                assert self._stop.reason is not None
                return self._stop.reason
            waited += seconds
            readings = self._monitor.readings()

    def reserves(self, readings: Sequence[Reading], item: Item) -> list[Reserve]:
        """What the item's next unit reserves of pools."""
        if not self._pooled:
            return []
        with self._monitor.lock:
            amounts = self._monitor.reservations(item.expectation, readings)
        return [Reserve(limit, amounts[limit.name]) for limit in self._pooled]

    def extend(self, item: Item, resource: str, amount: float) -> str | None:
        """Brings what a running unit has reserved of a resource's pools to this amount; why not, or None."""
        wanted = [Reserve(limit, amount) for limit in self._pooled if limit.resource == resource]
        return self._ledger.extend(self._fence, item, wanted)

    def out_of_room(self, item: Item, error: CutOff) -> StopReason | None:
        """Why the session ends after a unit was cut off: what is left of its budget is too little for more.

        None where the item will never have room again: then the next claim says whether others have.
        """
        if error.needed is not None:
            self._needs[item.id] = item.expectation.at_least(error.resource, error.needed)
        ready = self.ready_at([self._expectation(item)])
        if ready is None:
            self._gone = StopReason(f"exhausted:{error.resource}", str(error))
            return None
        return StopReason(f"budget:{error.resource}", str(error), ready if ready > self._clock.now() else None)

    def ready_at(self, units: list[Expectation]) -> float | None:
        """When the first of these fits into a fresh session, in seconds since the Unix epoch; None for never."""
        for limit in self._pooled:
            self._monitor.refresh(limit, pool_spends(self._ledger, limit, self._clock.now()))
        moments = [moment for unit in units if (moment := self._monitor.ready_at(unit)) is not None]
        return min(moments, default=None)

    def _misfit(self, readings: Sequence[Reading], item: Item) -> Misfit | None:
        """Why an item does not fit what is left; those of which the same is said are asked about once."""
        if self._fits is not None and item.is_like(self._fits) and item.id not in self._needs:
            return None
        unit = self._expectation(item)
        with self._monitor.lock:
            if unit.key not in self._asked:
                self._asked[unit.key] = (unit, self._monitor.refuse(unit, readings))
            refusal = self._asked[unit.key][1]
            if refusal is None:
                if item.id not in self._needs:
                    self._fits = item
                return None
            gone = any(reading.limit.scope == "total" for reading in refusal.readings)
            return Misfit(refusal.why, patient=not gone, never=self._monitor.too_large(unit, readings))

    def _expectation(self, item: Item) -> Expectation:
        return self._needs.get(item.id) or item.expectation

    def _nothing_claimed(self, claim: Claim) -> StopReason:
        empty = StopReason("queue-empty", "nothing is left that can be claimed")
        if claim.elsewhere:
            again = self._clock.now() + wait_for_others(self._ledger.sessions(self._fence.chain))
            empty = StopReason(WAITING, f"what is left is with other chains of {self._fence.queue}", again)
        why, retry_at = self._nothing_fits(claim) if claim.passed_over else empty, claim.retry_at
        if retry_at is None:
            return why
        sooner = why.resume_at is not None and retry_at < why.resume_at
        if sooner or why.code in ("queue-empty", WAITING, "too-large") or why.code.startswith("exhausted:"):
            wait = show_duration(max(0.0, retry_at - self._clock.now()))
            text = f"what has failed is tried again in {wait}, and nothing else can be done before"
            return StopReason("backing-off", text, retry_at)
        return why

    def _nothing_fits(self, claim: Claim) -> StopReason:
        item, why = next(iter(claim.passed_over.items()))
        # What fits into no session at all is waited for by nobody, as long as there is anything else.
        asked = [one for one in self._asked.values() if self._monitor.too_large(one[0]) is None]
        asked = asked or list(self._asked.values())
        refusals = [refusal for _, refusal in asked if refusal is not None]
        # What only a pool's reservations refused was not refused by the monitor.
        limit = refusals[0].readings[0].limit if refusals else self._pooled[0]
        ready, now = self.ready_at([unit for unit, _ in asked]), self._clock.now()
        if ready is None:
            gone = [
                reading.limit for refusal in refusals for reading in refusal.readings if reading.limit.scope == "total"
            ]
            limit = next(iter(gone), limit)
            # What a unit has run into says more than what is foretold of the others.
            return self._gone or StopReason(f"exhausted:{limit.resource}", refusals[0].why if refusals else why)
        if claim.contended:
            ready = max(ready, now + MOST_WAITED_SECONDS)
        resume_at = ready if ready > now else None
        if resume_at is None and self._monitor.units == 0:
            return StopReason("too-large", f"{item} does not fit into a fresh session ({why})")
        if self._monitor.verdict().status is Status.WRAP_NOW or not refusals:
            return StopReason(f"budget:{limit.resource}", refusals[0].why if refusals else why, resume_at)
        others = len(claim.passed_over) - 1 + claim.others
        more = f", nor do {others} others" if others else ""
        return StopReason("nothing-fits", f"{item} does not fit into what is left ({why}){more}", resume_at)


class _Batch:
    """A batch as it is put together.

    Args:
        most: How many items at most.
    """

    def __init__(self, monitor: BudgetMonitor, most: int) -> None:
        self._monitor = monitor
        self._most = most
        self._units = 1
        self._seconds = 0.0
        self._expected: float | None = None
        self._asked: Item | None = None

    def wants(self, last: Item, item: Item) -> bool:
        """Whether this item goes into the batch, too, of which that was the last so far."""
        before = self._expect(last)
        if before is None or self._units >= self._most or last.crashes or item.crashes:
            return False  # one during whose units a process has died is tried by itself
        self._units += 1
        self._seconds += before
        expected = self._expect(item)
        return expected is not None and self._seconds + expected <= BATCH_SECONDS

    def _expect(self, item: Item) -> float | None:
        if self._asked is None or not item.is_like(self._asked):
            with self._monitor.lock:
                self._asked, self._expected = item, self._monitor.expected_seconds(item.expectation)
        return self._expected
