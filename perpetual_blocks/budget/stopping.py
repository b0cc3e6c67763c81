"""When to stop: pure functions from what has been used to a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from perpetual_blocks.budget.limits import Limit
from perpetual_blocks.usage import show

HEALTHY_BELOW = 0.75
SHUTDOWN_RESERVE = 0.02
"""The share of a limit that no unit may be expected to use: it is kept for the minimal save."""


class Status(StrEnum):
    """How a budget stands: HEALTHY below 75 %, WARNING below the threshold, WRAP_NOW from there on."""

    HEALTHY = "healthy"
    WARNING = "warning"
    WRAP_NOW = "wrap_now"


@dataclass(frozen=True, slots=True)
class Reading:
    """A limit and how much of it is used at this moment.

    Attributes:
        amount: The limit's amount, or less where the machine itself allows less (a container's memory).
    """

    limit: Limit
    used: float
    amount: float

    @property
    def fraction(self) -> float:
        """The used share of the amount; above 1 when it was overrun."""
        return self.used / self.amount

    @property
    def remaining(self) -> float:
        """What a unit may still use: the amount without the shutdown's reserve and what is used, at least 0."""
        return max(0.0, self.amount * (1 - SHUTDOWN_RESERVE) - self.used)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to go on.

    Attributes:
        reading: The limit that decided: the fullest one against its threshold. None without limits.
        reason: One sentence for people.
    """

    status: Status
    reason: str
    reading: Reading | None = None


class StopRule(Protocol):
    """A policy: from readings to a verdict. It has no state and does no I/O."""

    def __call__(self, readings: Sequence[Reading]) -> Verdict: ...


def fixed_thresholds(readings: Sequence[Reading]) -> Verdict:
    """Wraps as soon as one limit's used share reaches that limit's threshold."""
    if not readings:
        return Verdict(Status.HEALTHY, "no limits")
    fullest = max(readings, key=lambda reading: reading.fraction / reading.limit.threshold)
    limit = fullest.limit
    if fullest.fraction >= limit.threshold:
        status, verb = Status.WRAP_NOW, "reached"
    elif fullest.fraction >= min(HEALTHY_BELOW, limit.threshold):
        status, verb = Status.WARNING, "is near"
    else:
        status, verb = Status.HEALTHY, "is below"
    used = f"{show(limit.resource, fullest.used)} of {show(limit.resource, fullest.amount)}"
    return Verdict(status, f"{used} ({fullest.fraction:.0%}) {verb} the {limit.threshold:.0%} threshold", fullest)


def misfit(estimate: Mapping[str, float], readings: Sequence[Reading]) -> str | None:
    """Why work of this estimate does not fit into what remains, or None when it fits."""
    for reading in readings:
        name = reading.limit.resource
        needed = estimate.get(name, 0.0)
        if needed > reading.remaining:
            return f"needs {show(name, needed)}, {show(name, reading.remaining)} left"
    return None
