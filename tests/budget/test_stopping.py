"""When to stop: whether a unit may start, and how a budget stands."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.budget import Expectation, Forecast, Limit, Reading, Refusal, Status, Verdict, judge, refuse
from perpetual_blocks.budget.fit import overrun_risk, reserve
from perpetual_blocks.budget.forecast import Node

ORDER = [Status.HEALTHY, Status.WARNING, Status.WRAP_NOW]
RISK = 0.01
ANY = Expectation()
UNTAUGHT = Forecast()


def reading(used: float, amount: float = 100, resource: str = "tokens", **settings: Any) -> Reading:
    """Of a limit with a threshold of 85 % unless told otherwise."""
    settings = settings or {"threshold": 0.85}
    return Reading(Limit(resource, amount, **settings), used, amount, UNTAUGHT)


def learned(mean: float = 1.0, units: int = 400, seed: int = 1) -> Forecast:
    """A forecast that has seen many units of exponential costs."""
    forecast, random = Forecast(), Random(seed)
    for _ in range(units):
        forecast.learn(random.expovariate(1 / mean))
    return forecast


LEARNED = learned()


def foreseen(used: float, amount: float = 100, resource: str = "tokens", **more: Any) -> Reading:
    """A reading of a predictive limit whose units cost about 1."""
    settings = {name: more.pop(name) for name in ("scope", "window") if name in more}
    return Reading(Limit(resource, amount, **settings), used, amount, **{"forecast": LEARNED, **more})


def why(readings: list[Reading], unit: Expectation = ANY, *, first: bool = False) -> str | None:
    """The reason of a refusal, which is one line; None where there is none."""
    refusal = refuse(readings, unit, risk=RISK, first=first)
    if refusal is None:
        return None
    one_line(Exception(refusal.why))
    assert refusal.readings
    return refusal.why


# Thresholds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "reason"),
    [
        (0.0, None),
        (84.99, None),
        (85.0, "85 tokens of 100 tokens a session (85%) reached the 85% threshold"),
        (130.0, "130 tokens of 100 tokens a session (130%) reached the 85% threshold"),
    ],
)
def test_a_threshold(used: float, reason: str | None) -> None:
    """A fixed limit refuses every unit from its threshold on, and says how much is used."""
    assert why([reading(used)]) == reason


@pytest.mark.parametrize(("complexity", "threshold"), [("simple", 90), ("normal", 85), ("complex", 80)])
def test_a_threshold_that_adapts(complexity: str, threshold: int) -> None:
    """An adaptive limit stops later before simple units, and earlier before complex ones."""
    unit = Expectation(complexity=complexity)

    assert why([reading(threshold - 0.01, rule="adaptive")], unit) is None
    assert why([reading(threshold, rule="adaptive")], unit) == (
        f"{threshold} tokens of 100 tokens a session ({threshold}%) reached the {threshold}% threshold"
    )


READINGS = st.lists(
    st.builds(
        lambda used, amount, resource, threshold: reading(used, amount, resource, threshold=threshold),
        used=st.floats(0, 1000),
        amount=st.floats(0.1, 500),
        resource=st.sampled_from(["tokens", "cost", "calls", "seconds", "memory"]),
        threshold=st.floats(0.01, 1),
    ),
    min_size=1,
    max_size=5,
)


@given(READINGS)
def test_wraps_if_and_only_if_a_threshold_is_reached(readings: list[Reading]) -> None:
    """No limit that has reached its threshold is overlooked, and none below it wraps."""
    reached = any(one.used / one.amount >= one.limit.threshold for one in readings)

    assert (judge(readings, risk=RISK).status is Status.WRAP_NOW) == reached
    assert (why(readings) is not None) == reached


# What is declared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"threshold": 1.0}, {"rule": "adaptive"}, {"rule": "predictive"}])
@pytest.mark.parametrize("name", ["estimate", "bound"])
def test_what_is_declared_must_fit(settings: dict[str, Any], name: str) -> None:
    """Whatever the rule, a unit that is said to need more than is left is not started; both figures are named."""
    larger = Expectation(**{name: {"tokens": 61.0}})

    assert why([reading(40, **settings)], larger) == "needs 61 tokens; 60 tokens left of 100 tokens a session"
    assert why([reading(40, threshold=1.0)], Expectation(**{name: {"tokens": 60.0}})) is None
    assert why([reading(40, threshold=1.0)], Expectation(**{name: {"calls": 10**9}})) is None


def test_what_is_declared_leaves_the_reserve() -> None:
    """Of a session's time 2 %, and what three shutdowns in four took, is not there for units."""
    forecast = Forecast()
    for _ in range(50):
        forecast.close(5.0, graceful=True)
    one = Reading(Limit("seconds", 100, threshold=1.0), 40.0, 100.0, forecast)

    assert one.remaining == pytest.approx(60.0 - reserve(forecast, 2.0)) == pytest.approx(53.0, rel=0.01)
    assert why([one], Expectation(estimate={"seconds": 52.5})) is None
    assert why([one], Expectation(estimate={"seconds": 54.0})) == "needs 54 s; 53 s left of 1 min 40 s a session"


@given(READINGS, st.floats(0, 1000), st.floats(0, 1))
def test_less_is_declared_and_fits_too(readings: list[Reading], declared: float, part: float) -> None:
    """A unit that is declared smaller in everything fits wherever the larger one does."""
    names = [one.limit.resource for one in readings]

    if why(readings, Expectation(bound=dict.fromkeys(names, declared))) is None:
        assert why(readings, Expectation(bound=dict.fromkeys(names, declared * part))) is None


@given(st.floats(0, 1e9), st.floats(0.1, 1e9))
def test_the_reserve_is_never_given_away(used: float, amount: float) -> None:
    """What remains, together with what is used, stays below the amount; nothing remains when the limit is overrun."""
    left = reading(used, amount, "seconds").remaining

    assert left >= 0
    assert left == 0 or used + left < amount


# The first unit -------------------------------------------------------------------------------------------------------

HUGE = learned(mean=1000.0)


@pytest.mark.parametrize(
    "one",
    [
        foreseen(50, forecast=HUGE),
        foreseen(50, forecast=HUGE, cancellable=True),
        foreseen(99, 100, "seconds"),
        foreseen(97, shutdown=(Node(50.0, 1.0),)),
        reading(99),
        reading(99, rule="adaptive"),
    ],
)
def test_the_first_unit_runs(one: Reading) -> None:
    """A fresh session is all the room there will ever be: its first unit is not refused, where any other is."""
    assert why([one]) is not None
    assert why([one], first=True) is None


def test_the_first_unit_must_fit_the_whole_limit() -> None:
    """What is declared larger than the limit never runs; what is as large does, though starting took some of it."""
    for one in (reading(3, 100, "seconds"), foreseen(3, 100, "seconds")):
        whole, larger = (Expectation(estimate={"seconds": seconds}) for seconds in (100.0, 101.0))

        assert why([one], whole, first=True) is None
        assert (why([one], whole) or "").startswith("needs 1 min 40 s")
        assert (why([one], larger, first=True) or "").startswith("needs 1 min 41 s")


@pytest.mark.parametrize("settings", [{"scope": "window", "window": "day"}, {"scope": "total"}])
def test_an_untouched_window_or_total_has_room(settings: dict[str, Any]) -> None:
    """A window or total of which nothing is used takes any unit, in whatever session; a used one does not."""
    for first in (False, True):
        assert why([foreseen(0, forecast=HUGE, **settings)], first=first) is None
        assert why([foreseen(1, forecast=HUGE, **settings)], first=first) is not None
        assert why([foreseen(0, **settings)], Expectation(bound={"tokens": 101.0}), first=first) is not None


@pytest.mark.parametrize("resource", ["memory", "seconds"])
def test_nobody_is_refused_for_needing_nothing(resource: str) -> None:
    """Where nothing was declared, no reason says that 0 are needed, even when more than the limit is used already."""
    for first in (False, True):
        assert not (why([foreseen(110, 100, resource)], first=first) or "").startswith("needs")


# Forecasts ------------------------------------------------------------------------------------------------------------


def test_a_unit_that_would_probably_not_fit_is_refused() -> None:
    """Units of about 1 are started while a dozen fit, and not when little more than two do; the reason has figures."""
    assert why([foreseen(85)]) is None
    reason = why([foreseen(97.5)])

    assert reason is not None
    one_line(
        Exception(reason), "2 tokens left of 100 tokens a session", "a unit takes about 1 tokens", "one in a hundred"
    )


def test_the_shutdown_is_kept_free() -> None:
    """What the shutdown will probably cost is not there for units; the reason names it."""
    shutdown = (Node(20.0, 0.9), Node(50.0, 0.1))

    assert why([foreseen(70)]) is None
    one_line(Exception(why([foreseen(70, shutdown=shutdown)])), "50 tokens are kept for the shutdown")


def test_a_smaller_risk_stops_earlier() -> None:
    """The risk that is allowed decides how much is left when the last unit starts."""

    def last(risk: float) -> int:
        return max(used for used in range(100) if refuse([foreseen(used)], ANY, risk=risk) is None)

    assert last(0.001) < last(0.01) < last(0.2)


def level(risk: float) -> float:
    """What is used when the risk of one of these limits is that large."""
    low, high = 0.0, 99.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if overrun_risk(LEARNED, ANY.hint("tokens"), 100 - middle, 100, (Node(0.0, 1.0),)) < risk:
            low = middle
        else:
            high = middle
    return low


def test_the_risks_of_all_limits_add_up() -> None:
    """Two limits that are half as risky as is allowed are as much as is allowed, and a third one is too much."""
    half = [foreseen(level(0.0049), resource=resource) for resource in ("tokens", "calls", "cost")]

    assert why(half[:1]) is why(half[:2]) is why([*half[:2], foreseen(1, resource="cost")]) is None
    refusal = refuse(half, ANY, risk=RISK)
    assert refusal is not None
    assert list(refusal.readings) == half


def test_the_worst_limit_is_named_first() -> None:
    """Of several limits those that make up the risk are named, the worst first, and the others are not."""
    calm, bad = foreseen(50, resource="calls"), foreseen(99, resource="tokens")
    worst = foreseen(99.9, resource="cost")

    refusal = refuse([calm, bad, worst], ANY, risk=RISK)

    assert refusal is not None
    assert refusal.readings == (worst, bad)
    assert refusal.why.startswith("$0.1000 left of $100.00 a session")


def test_limits_with_other_rules_take_no_part_in_the_risk() -> None:
    """A fixed limit below its threshold adds no risk, and one above it decides alone."""
    near = foreseen(level(0.009))

    assert why([near, reading(84, resource="calls"), reading(79, resource="cost", rule="adaptive")]) is None
    full = reading(86, resource="calls")
    reason = "86 calls of 100 calls a session (86%) reached the 85% threshold"
    assert refuse([near, full], ANY, risk=RISK) == Refusal((full,), reason)


def test_a_cold_start() -> None:
    """With nothing known, units are started while 30 % is left."""
    assert why([foreseen(69, forecast=Forecast())]) is None
    assert why([foreseen(71, forecast=Forecast())]) == "29 tokens left of 100 tokens a session"


def test_what_can_be_cut_off_goes_on_for_longer() -> None:
    """A unit that can be cut off is tried while it is worth it, which is long after it is safe."""
    assert why([foreseen(97, cancellable=True)]) is None
    assert why([foreseen(97)]) is not None
    assert why([foreseen(99.9, cancellable=True)]) is not None


def test_kinds_are_told_apart() -> None:
    """A small unit still fits where a large one does not."""
    forecast, random = Forecast(), Random(2)
    for _ in range(200):
        forecast.learn(random.uniform(0.5, 1.5), Expectation("small").hint("tokens"))
        forecast.learn(random.uniform(30, 60), Expectation("large").hint("tokens"))
    readings = [foreseen(80, forecast=forecast)]

    assert why(readings, Expectation("small")) is None
    assert why(readings, Expectation("large")) is not None


USED = st.lists(st.floats(0, 110), min_size=1, max_size=4)
RESOURCES = ("tokens", "cost", "calls", "seconds")


@given(USED, st.integers(0, 3), st.floats(0, 100), st.sampled_from([ANY, Expectation(bound={"tokens": 5.0})]))
def test_more_use_is_never_judged_milder(used: list[float], number: int, more: float, unit: Expectation) -> None:
    """Using more of anything leaves an answer, and a verdict, as it is or makes it stricter."""

    def made(amounts: list[float]) -> list[Reading]:
        return [foreseen(amount, resource=name) for amount, name in zip(amounts, RESOURCES, strict=False)]

    number %= len(used)
    before, after = made(used), made([*used[:number], used[number] + more, *used[number + 1 :]])

    if why(before, unit) is not None and used[number] > 0:
        assert why(after, unit) is not None
    assert ORDER.index(judge(after, risk=RISK).status) >= ORDER.index(judge(before, risk=RISK).status)


def test_without_limits_everything_runs() -> None:
    """What is not limited is not refused."""
    assert why([], Expectation(estimate={"tokens": 1e9})) is None


# Verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "status", "reason"),
    [
        (0, Status.HEALTHY, "0 tokens of 100 tokens a session (0%)"),
        (74.99, Status.HEALTHY, "75 tokens of 100 tokens a session (75%)"),
        (75, Status.WARNING, "75 tokens of 100 tokens a session (75%); the end is near"),
        (84.99, Status.WARNING, "85 tokens of 100 tokens a session (85%); the end is near"),
        (85, Status.WRAP_NOW, "85 tokens of 100 tokens a session (85%) reached the 85% threshold"),
        (130, Status.WRAP_NOW, "130 tokens of 100 tokens a session (130%) reached the 85% threshold"),
    ],
)
def test_verdict_of_a_fixed_limit(used: float, status: Status, reason: str) -> None:
    """Healthy below 75 %, a warning from there on, and time to wrap from the threshold on; the reason says how much."""
    assert judge([reading(used)], risk=RISK) == Verdict(status, reason, reading(used))


def test_a_threshold_below_the_warning() -> None:
    """Where the threshold lies below 75 % there is no warning before it."""
    assert judge([reading(49, threshold=0.5)], risk=RISK).status is Status.HEALTHY
    assert judge([reading(50, threshold=0.5)], risk=RISK).status is Status.WRAP_NOW


def test_no_limits() -> None:
    """A budget without limits is always healthy."""
    assert judge([], risk=RISK) == Verdict(Status.HEALTHY, "no limits")


def test_the_limit_that_is_fullest_against_its_threshold_decides() -> None:
    """Of several limits the one that is nearest to its own threshold decides, not the fullest one."""
    relaxed, strict = reading(70, threshold=1.0), reading(46, resource="calls", threshold=0.5)

    assert judge([relaxed, strict], risk=RISK).reading == strict
    assert judge([strict, relaxed], risk=RISK).reading == strict
    over = reading(51, resource="calls", threshold=0.5)
    assert judge([reading(90, threshold=1.0), over], risk=RISK).reading == over


@pytest.mark.parametrize(
    ("used", "status"), [(50, Status.HEALTHY), (90, Status.HEALTHY), (94.5, Status.WARNING), (97.5, Status.WRAP_NOW)]
)
def test_verdict_of_a_predictive_limit(used: float, status: Status) -> None:
    """Healthy while many units fit, a warning when about three more do, and time to wrap when the next one may not."""
    verdict = judge([foreseen(used)], risk=RISK)

    assert (verdict.status, verdict.reading) == (status, foreseen(used))
    one_line(Exception(verdict.reason), "100 tokens a session")


def test_a_warning_while_nothing_is_known() -> None:
    """Before anything is known, a limit is near when 75 % is used; by then nothing is started any more."""
    cold = {"forecast": Forecast()}

    assert judge([foreseen(69, **cold)], risk=RISK).status is Status.HEALTHY
    assert judge([foreseen(76, **cold)], risk=RISK).status is Status.WRAP_NOW
    assert judge([foreseen(76, **cold, cancellable=True)], risk=RISK).status is Status.WRAP_NOW
