"""When to stop: pure functions from what has been used, and what is expected, to a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from perpetual_blocks.budget.fit import overrun_risk, reserve, worth_trying
from perpetual_blocks.budget.forecast import Forecast, Hint, Node
from perpetual_blocks.budget.limits import Limit
from perpetual_blocks.usage import show

HEALTHY_BELOW = 0.75
COMFORTABLE_UNITS = 3
MINIMAL_SAVE = 0.02
"""The share of a session's time that no unit may use: in it the ledger's transaction closes the session."""

RESERVED_ABOVE = 0.05
UNKNOWN_SHARE = 0.1

ADAPTIVE = {"simple": 0.90, "normal": 0.85, "complex": 0.80}


class Status(StrEnum):
    """How a budget stands.

    HEALTHY; WARNING when only about three more typical units fit, or, with a threshold, from 75 % on; WRAP_NOW when
    the next unit should not be started.
    """

    HEALTHY = "healthy"
    WARNING = "warning"
    WRAP_NOW = "wrap_now"


@dataclass(frozen=True, slots=True)
class Reading:
    """A limit and how much of it is used at this moment.

    Attributes:
        amount: The limit's amount, or less where the machine itself allows less (a container's memory).
        forecast: What units, and the shutdown, of this resource cost.
        shutdown: The law of the shutdown's cost, as it was when the session began.
        cancellable: Whether a unit that uses too much is cut off.
    """

    limit: Limit
    used: float
    amount: float
    forecast: Forecast = field(default_factory=Forecast)
    shutdown: tuple[Node, ...] = (Node(0.0, 1.0),)
    cancellable: bool = False

    @property
    def fraction(self) -> float:
        """The used share of the amount; above 1 when it was overrun."""
        return self.used / self.amount

    @property
    def reserve(self) -> float:
        """What a unit must leave for the shutdown: in time at least the minimal save's."""
        if self.limit.scope != "session":
            return 0.0
        minimal = self.amount * MINIMAL_SAVE if self.limit.resource == "seconds" else 0.0
        return reserve(self.forecast, minimal)

    @property
    def remaining(self) -> float:
        """What a unit may still use: the amount without the reserve and what is used, at least 0."""
        return max(0.0, self.amount - self.reserve - self.used)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is said of a unit before it runs.

    Attributes:
        estimate: What it will probably cost, by resource.
        bound: What it cannot exceed, by resource.
        complexity: simple, normal or complex.
    """

    kind: str = ""
    estimate: Mapping[str, float] = field(default_factory=dict)
    bound: Mapping[str, float] = field(default_factory=dict)
    complexity: str = "normal"

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for expectations that say the same, and hashable."""
        return (self.kind, self.complexity, *sorted(self.estimate.items()), None, *sorted(self.bound.items()))

    def at_least(self, resource: str, amount: float) -> "Expectation":
        """The same, of a unit that is known to need so much of a resource."""
        return replace(self, bound={**self.bound, resource: max(amount, self.bound.get(resource, 0.0))})

    def hint(self, resource: str) -> Hint:
        """What it says of one resource."""
        return Hint(self.kind, self.estimate.get(resource) or None, self.bound.get(resource))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a unit is not started.

    Attributes:
        readings: The limits that it would probably overrun, the worst first.
        why: A sentence for people.
    """

    readings: tuple[Reading, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to go on.

    Attributes:
        reading: The limit that decided. None without limits.
        reason: One sentence for people.
    """

    status: Status
    reason: str
    reading: Reading | None = None


def refuse(readings: Iterable[Reading], unit: Expectation, *, risk: float, first: bool = False) -> Refusal | None:
    """Why this unit should not be started now; None when it should.

    A limit whose rule is fixed or adaptive refuses from its threshold on, and what is declared not to fit. All limits
    whose rule is predictive share one risk: the unit runs if the sum of theirs is at most `risk` (union bound). Where a
    unit can be cut off, the question is instead whether an attempt is worth its possible waste.

    Args:
        first: Whether it is the session's first unit. A fresh session, like an untouched window or total, is all the
            room there will ever be, so there only a declared need that is larger refuses.
    """
    risks: list[tuple[float, Reading]] = []
    for reading in readings:
        limit, hint = reading.limit, unit.hint(reading.limit.resource)
        declared = max(hint.bound or 0.0, hint.estimate or 0.0)
        if limit.pool is not None:
            wanted = reservation(reading, unit)
            if wanted > reading.amount - reading.used:
                return Refusal((reading,), _needs(reading, wanted))
            continue
        fresh = first if limit.scope == "session" else reading.used <= 0
        room = reading.amount if first and limit.scope == "session" else reading.amount - reading.used
        if declared > (room if fresh else reading.remaining) and declared > 0:
            return Refusal((reading,), _needs(reading, declared))
        if fresh:
            continue
        if limit.rule != "predictive":
            threshold = _threshold(limit, unit)
            if reading.fraction >= threshold:
                return Refusal((reading,), f"{describe(reading)} reached the {threshold:.0%} threshold")
        elif reading.cancellable:
            if not worth_trying(reading.forecast, hint, reading.remaining, reading.amount):
                return Refusal((reading,), _forecast(reading, hint))
        else:
            left = reading.amount - reading.used
            risks.append((overrun_risk(reading.forecast, hint, left, reading.amount, reading.shutdown), reading))
    if sum(value for value, _ in risks) <= risk:
        return None
    worst = sorted(risks, key=lambda pair: -pair[0])
    deciding = tuple(reading for value, reading in worst if value > risk / len(risks)) or (worst[0][1],)
    return Refusal(deciding, _forecast(deciding[0], unit.hint(deciding[0].limit.resource)))


def too_large(readings: Iterable[Reading], unit: Expectation) -> str | None:
    """Why this unit would not be started even if nothing had been used yet; None when it would.

    A total is left out: what it has no room for is asked of a person. So is a pool: no unit reserves more than all.
    """
    for reading in readings:
        limit, hint = reading.limit, unit.hint(reading.limit.resource)
        declared = max(hint.bound or 0.0, hint.estimate or 0.0)
        if limit.pool is None and limit.scope != "total" and declared > reading.amount:
            needed, whole = show(limit.resource, declared), show(limit.resource, reading.amount)
            return f"it needs {needed}, and there are {whole}{limit.per}"
    return None


def reservation(reading: Reading, unit: Expectation) -> float:
    """What a unit reserves of a pool: what it cannot exceed, or what 19 of 20 such units do not; a tenth of the limit
    when nothing is known. More can be reserved while it runs."""
    hint = unit.hint(reading.limit.resource)
    bound, law = reading.forecast.bound(hint), reading.forecast.law(hint)
    if bound is None:
        bound = law.quantile(RESERVED_ABOVE) if law is not None else hint.estimate or UNKNOWN_SHARE * reading.amount
    return min(bound, reading.amount)


def unasked_units(readings: Iterable[Reading], unit: Expectation) -> float:
    """How many such units may run one after the other before the budget is asked again.

    So many that half of what is left of each limit would do even if each of them cost what one in a hundred does: what
    is checked so seldom can overrun nothing. 0 where nothing is known of them.
    """
    most = math.inf
    for reading in readings:
        hint = unit.hint(reading.limit.resource)
        law = reading.forecast.law(hint)
        if law is None:
            return 0.0
        if (large := max(law.quantile(0.01), hint.estimate or 0.0)) > 0:
            most = min(most, reading.remaining / 2 / large)
    return most


def judge(readings: Sequence[Reading], *, risk: float, first: bool = False) -> Verdict:
    """How the budget stands for a typical unit; `first` as for `refuse`."""
    if not readings:
        return Verdict(Status.HEALTHY, "no limits")
    fullest = max(readings, key=_fullness)
    refusal = refuse(readings, Expectation(), risk=risk, first=first)
    if refusal is not None:
        return Verdict(Status.WRAP_NOW, refusal.why, refusal.readings[0])
    near = [reading for reading in readings if _is_near(reading)]
    if near:
        reading = max(near, key=_fullness)
        return Verdict(Status.WARNING, f"{describe(reading)}; the end is near", reading)
    return Verdict(Status.HEALTHY, describe(fullest), fullest)


def _fullness(reading: Reading) -> float:
    return reading.fraction / (1.0 if reading.limit.rule == "predictive" else reading.limit.threshold)


def _is_near(reading: Reading) -> bool:
    if reading.limit.rule != "predictive":
        return reading.fraction >= min(HEALTHY_BELOW, reading.limit.threshold)
    law = reading.forecast.law()
    if law is None:
        return reading.fraction >= HEALTHY_BELOW
    return reading.remaining < COMFORTABLE_UNITS * law.mean() + law.quantile(0.05)


def _threshold(limit: Limit, unit: Expectation) -> float:
    return ADAPTIVE[unit.complexity] if limit.rule == "adaptive" else limit.threshold


def describe(reading: Reading) -> str:
    """How full a limit is, as a person reads it."""
    name = reading.limit.resource
    return f"{show(name, reading.used)} of {show(name, reading.amount)}{reading.limit.per} ({reading.fraction:.0%})"


def _needs(reading: Reading, declared: float) -> str:
    name = reading.limit.resource
    left, whole = show(name, reading.remaining), show(name, reading.amount)
    return f"needs {show(name, declared)}; {left} left of {whole}{reading.limit.per}"


def _forecast(reading: Reading, hint: Hint) -> str:
    name, law = reading.limit.resource, reading.forecast.law(hint)
    left = show(name, max(0.0, reading.amount - reading.used))
    text = f"{left} left of {show(name, reading.amount)}{reading.limit.per}"
    if law is not None:
        usual, large = show(name, law.quantile(0.5)), show(name, law.quantile(0.01))
        text += f"; a unit takes about {usual}, one in a hundred over {large}"
    kept = max(node.cost for node in reading.shutdown if node.weight >= 0.05)
    return text + (f"; {show(name, kept)} are kept for the shutdown" if kept else "")
