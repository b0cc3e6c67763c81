"""What it costs to decide whether the next unit may start, and to learn what it cost.

A budget of three limits whose forecasts have seen more than they keep, and so have nothing more to grow by: it is asked
before each unit, and told its costs afterwards.
"""

from itertools import cycle
from random import Random
from statistics import median
from typing import Any

from harness import Result, timed

from perpetual_blocks.budget import Budget, Expectation, Forecast, Limit, Reading, refuse

TARGET_US = 50
RESOURCES = ("tokens", "calls", "seconds")
SESSION_UNITS = 50
SESSIONS = 150
KINDS = ("small", "large")


def measure(quick: bool) -> list[Result]:
    """The median of a decision over three limits with one unit learned, and of its parts."""
    rounds, units = (3, 300) if quick else (15, 1000)
    readings = _readings()
    stream = cycle(_units(2000))
    risk = Budget().risk

    def decide(asked: list[Reading], learning: list[Reading]) -> None:
        unit, costs = next(stream)
        if asked:
            refuse(asked, unit, risk=risk)
        for reading in learning:
            resource = reading.limit.resource
            reading.forecast.learn(costs[resource], unit.hint(resource))

    # In turns: whatever else the machine does meets all of them.
    one, none = readings[:1], readings[:0]
    parts = {
        "decision": (readings, one),
        "refuse_3": (readings, none),
        "refuse_1": (one, none),
        "learn": (none, one),
        "refuse_3_learn_3": (readings, readings),
    }
    medians: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, (asked, learning) in parts.items():
            seconds = timed(lambda asked=asked, learning=learning: decide(asked, learning), units)  # type: ignore[misc]
            if number:
                medians[name].append(1e6 * median(seconds))
    found = {name: round(median(values), 1) for name, values in medians.items()}
    detail: dict[str, Any] = {
        **{f"{name}_us": value for name, value in found.items() if name != "decision"},
        "per_limit_us": round(found["refuse_3"] / len(readings), 1),
        "slowest_round_us": round(max(medians["decision"]), 1),
        "samples": [len(reading.forecast.constant.scores) for reading in readings],
        "units_a_round": units,
        "rounds": rounds,
    }
    return [Result("stopping_decision_us", found["decision"], "us", str(TARGET_US), detail)]


def _units(count: int) -> list[tuple[Expectation, dict[str, float]]]:
    """Units of two kinds, with estimates that are right to a third or so, and what they cost."""
    random = Random(1)
    units = []
    for _ in range(count):
        kind = random.choice(KINDS)
        estimate = {resource: (1 + 9 * (kind == "large")) * random.lognormvariate(0, 1) for resource in RESOURCES}
        costs = {resource: amount * random.lognormvariate(0, 0.3) for resource, amount in estimate.items()}
        units.append((Expectation(kind, estimate), costs))
    return units


def _readings() -> list[Reading]:
    """Half-used limits whose forecasts are full."""
    forecasts = {resource: Forecast() for resource in RESOURCES}
    for unit, costs in _units(SESSION_UNITS * SESSIONS):
        for resource, forecast in forecasts.items():
            forecast.learn(costs[resource], unit.hint(resource))
    readings = []
    for resource, forecast in forecasts.items():
        random = Random(2)
        for _ in range(SESSIONS):
            forecast.close(random.lognormvariate(0, 0.5), graceful=True)
        amount = 10.0 * SESSION_UNITS
        readings.append(Reading(Limit(resource, amount), amount / 2, amount, forecast, forecast.shutdown_law(amount)))
    return readings
