"""The monitor: how much of each limit this session has used."""

from collections.abc import Mapping
from typing import Protocol

from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.stopping import Reading, StopRule, Verdict, fixed_thresholds
from perpetual_blocks.clock import Clock
from perpetual_blocks.usage import RESOURCES, add


class Meter(Protocol):
    """Reads the level of a gauge."""

    def level(self) -> float:
        """The level now, in the resource's unit."""

    def capacity(self) -> float | None:
        """The most that the machine allows; None where it sets no limit of its own."""


class BudgetMonitor:
    """Adds up what units report, reads clocks and meters, and asks the stop rule.

    Args:
        meters: By resource; every gauge that the budget limits needs one.
        elapsed: Seconds that the session has been at work already, where it spans several processes.
    """

    def __init__(
        self,
        budget: Budget,
        clock: Clock,
        meters: Mapping[str, Meter],
        rule: StopRule = fixed_thresholds,
        elapsed: float = 0.0,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._meters = meters
        self._rule = rule
        self._started = clock.monotonic() - elapsed
        self._spent: dict[str, float] = {}

    @property
    def spent(self) -> dict[str, float]:
        """What the session's units have spent, by resource, seconds of work included."""
        return dict(self._spent)

    def record(self, usage: Mapping[str, float]) -> None:
        """Counts what a unit has spent."""
        self._spent = add(self._spent, usage)

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self._clock.monotonic() - self._started

    def readings(self) -> list[Reading]:
        """Every limit with what is used of it now."""
        return [self._read(limit) for limit in self._budget]

    def verdict(self) -> Verdict:
        """What the stop rule says of the budget as it is now."""
        return self._rule(self.readings())

    def _read(self, limit: Limit) -> Reading:
        resource = limit.resource
        if RESOURCES[resource].kind == "gauge":
            meter = self._meters[resource]
            return Reading(limit, meter.level(), min(limit.amount, meter.capacity() or limit.amount))
        # Time is the session's own, from its start to now: restoring and shutting down use it up too.
        used = self.elapsed() if resource == "seconds" else self._spent.get(resource, 0.0)
        return Reading(limit, used, limit.amount)
