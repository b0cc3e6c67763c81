"""When a session will end: how many units, and seconds, there still are until its budget stops it.

A session ends at the end of a unit, and each limit is used up at the pace at which it was used until now: as measured,
once a few units were, and before that as units of earlier sessions have cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf

from perpetual_blocks.budget.forecast import RISK, Forecast
from perpetual_blocks.budget.stopping import ADAPTIVE, Reading
from perpetual_blocks.usage import RESOURCES

MEASURED_UNITS = 3
"""So many units of this session say more of the next ones than those of earlier sessions do."""

TYPICAL = 0.5
FAR_SECONDS = 86_400.0
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Sight:
    """How far a session had come at one moment.

    Attributes:
        at: Seconds, by a clock that only ever goes up.
        units: How many it had finished.
        used: What it had used of each limit, by the limit's name.
    """

    at: float
    units: int
    used: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Horizon:
    """How many more units a session will have, and how many seconds they will take."""

    units: int
    seconds: float


def horizon(
    readings: Sequence[Reading], seconds: Forecast, before: Sight, now: Sight, *, most_units: float = inf
) -> Horizon | None:
    """How far it is to the end of a session that a limit of its own will end.

    None where no such limit will within a day: nothing is known yet, nothing is limited, or what ends it first is a
    window or a total, after which the chain would have to wait, or a gauge: a next process beside this one would take
    of the memory that there is too little of.

    Args:
        seconds: What units have cost of time.
        before: An earlier moment of the session.
        most_units: After how many more units it ends in any case.
    """
    done = now.units - before.units
    each = _each(now.at - before.at, done, seconds)
    if not each:
        return None
    ends, waits = most_units, inf
    for reading in readings:
        limit = reading.limit
        grown = reading.used - before.used.get(limit.name, reading.used)
        cost = each if limit.name == "seconds" else _each(grown, done, reading.forecast)
        if cost is None or cost <= 0:
            continue
        units = _units(reading, cost)
        if limit.scope == "session" and RESOURCES[limit.resource].kind != "gauge":
            ends = min(ends, units)
        else:
            waits = min(waits, units)
    if waits <= ends or ends * each > FAR_SECONDS:
        return None
    units = ceil(ends - ROUNDING)
    return Horizon(units, units * each)


def _each(amount: float, units: int, forecast: Forecast) -> float | None:
    """What a unit uses; None where nothing is known."""
    law = forecast.law()
    if units >= MEASURED_UNITS or (units and law is None):
        return amount / units
    return law.mean() if law is not None else None


def _units(reading: Reading, cost: float) -> float:
    """How many units a limit has room for, the last of which is begun as long as it would probably not overrun it."""
    limit, law = reading.limit, reading.forecast.law()
    if limit.rule != "predictive":
        threshold = ADAPTIVE["normal"] if limit.rule == "adaptive" else limit.threshold
        return max(0.0, (reading.amount * threshold - reading.used) / cost)
    room = reading.remaining
    if law is not None:
        careful, typical = room - law.quantile(RISK), room - law.quantile(TYPICAL)
        # A session that goes on where a dear unit would not fit has units that are bounded, or can be cut off.
        room = typical if reading.cancellable or careful <= 0 else careful
    return max(0.0, room / cost)
