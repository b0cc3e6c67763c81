"""Choosing the next item: the first in the queue's order that fits every limit; and when none does, why, until when."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from perpetual_blocks.budget import BudgetMonitor, Expectation, Reading, Refusal, Status
from perpetual_blocks.clock import Clock
from perpetual_blocks.session.account import pool_spends
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.ports import Claim, Fence, Ledger, Misfit, Reserve
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.work import CutOff, Item

POLL_SECONDS = 0.25
MOST_WAITED_SECONDS = 30.0
"""How long a session waits for others to give back what they have reserved of a pool, before it ends."""


class Chooser:
    """Claims items for a session.

    Attributes:
        passed_over: Why items were not taken when others were, by id.
    """

    def __init__(self, ledger: Ledger, fence: Fence, monitor: BudgetMonitor, clock: Clock, stop: StopRequest) -> None:
        self._ledger = ledger
        self._fence = fence
        self._monitor = monitor
        self._clock = clock
        self._stop = stop
        self._pooled = [limit for limit in monitor.budget if limit.pool is not None]
        self._asked: dict[Any, tuple[Expectation, Refusal | None]] = {}
        self.passed_over: dict[str, str] = {}

    def claim(self, readings: Sequence[Reading]) -> Item | StopReason:
        """The next item; or why there is none, with the time when there will be one where that is known."""
        waited = 0.0
        while True:
            self._asked = {}
            claim = self._ledger.claim(self._fence, partial(self._misfit, readings), partial(self.reserves, readings))
            if claim.item is not None:
                self.passed_over |= claim.passed_over
                return claim.item
            if not claim.contended or waited >= MOST_WAITED_SECONDS:
                return self._nothing_claimed(claim)
            if self._stop.wait(self._clock, POLL_SECONDS):
                assert self._stop.reason is not None
                return self._stop.reason
            waited += POLL_SECONDS
            readings = self._monitor.readings()

    def reserves(self, readings: Sequence[Reading], item: Item) -> list[Reserve]:
        """What the item's next unit reserves of pools."""
        if not self._pooled:
            return []
        amounts = self._monitor.reservations(item.expectation, readings)
        return [Reserve(limit, amounts[limit.name]) for limit in self._pooled]

    def extend(self, item: Item, resource: str, amount: float) -> str | None:
        """Brings what a running unit has reserved of a resource's pools to this amount; why not, or None."""
        wanted = [Reserve(limit, amount) for limit in self._pooled if limit.resource == resource]
        return self._ledger.extend(self._fence, item, wanted)

    def out_of_room(self, item: Item, error: CutOff) -> StopReason:
        """Why the session ends after a unit was cut off: what is left of its budget is too little for more."""
        ready = self.ready_at([item.expectation])
        if ready is None:
            return StopReason(f"exhausted:{error.resource}", str(error))
        return StopReason(f"budget:{error.resource}", str(error), ready if ready > self._clock.now() else None)

    def ready_at(self, units: list[Expectation]) -> float | None:
        """When the first of these fits into a fresh session, in seconds since the Unix epoch; None for never."""
        for limit in self._pooled:
            self._monitor.refresh(limit, pool_spends(self._ledger, limit, self._clock.now()))
        moments = [moment for unit in units if (moment := self._monitor.ready_at(unit)) is not None]
        return min(moments, default=None)

    def _misfit(self, readings: Sequence[Reading], item: Item) -> Misfit | None:
        """Why an item does not fit what is left; those of which the same is said are asked about once."""
        unit = item.expectation
        if unit.key not in self._asked:
            self._asked[unit.key] = (unit, self._monitor.refuse(unit, readings))
        refusal = self._asked[unit.key][1]
        if refusal is None:
            return None
        gone = any(reading.limit.scope == "total" for reading in refusal.readings)
        return Misfit(refusal.why, patient=not gone)

    def _nothing_claimed(self, claim: Claim) -> StopReason:
        if not claim.passed_over:
            return StopReason("queue-empty", "nothing is left that can be claimed")
        item, why = next(iter(claim.passed_over.items()))
        refusals = [refusal for _, refusal in self._asked.values() if refusal is not None]
        # What only a pool's reservations refused was not refused by the monitor.
        limit = refusals[0].readings[0].limit if refusals else self._pooled[0]
        ready, now = self.ready_at([unit for unit, _ in self._asked.values()]), self._clock.now()
        if ready is None:
            return StopReason(f"exhausted:{limit.resource}", why)
        if claim.contended:
            ready = max(ready, now + MOST_WAITED_SECONDS)
        resume_at = ready if ready > now else None
        if resume_at is None and self._monitor.units == 0:
            return StopReason("too-large", f"{item} does not fit into a fresh session ({why})")
        if self._monitor.verdict().status is Status.WRAP_NOW or not refusals:
            return StopReason(f"budget:{limit.resource}", why, resume_at)
        others = len(claim.passed_over) - 1 + claim.others
        more = f", nor do {others} others" if others else ""
        return StopReason("nothing-fits", f"{item} does not fit into what is left ({why}){more}", resume_at)
