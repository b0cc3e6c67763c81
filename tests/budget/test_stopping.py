"""When to stop: verdicts of readings, what still fits, and the monitor that reads."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import FakeClock, ScriptedMeter

from perpetual_blocks.budget import Budget, BudgetMonitor, Limit, Reading, Status, Verdict, fixed_thresholds, misfit

ORDER = [Status.HEALTHY, Status.WARNING, Status.WRAP_NOW]


def reading(used: float, amount: float = 100, resource: str = "tokens", threshold: float = 0.85) -> Reading:
    return Reading(Limit(resource, amount, threshold=threshold), used, amount)


# Verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "status", "reason"),
    [
        (0, Status.HEALTHY, "0 tokens of 100 tokens (0%) is below the 85% threshold"),
        (74.99, Status.HEALTHY, "75 tokens of 100 tokens (75%) is below the 85% threshold"),
        (75, Status.WARNING, "75 tokens of 100 tokens (75%) is near the 85% threshold"),
        (84.99, Status.WARNING, "85 tokens of 100 tokens (85%) is near the 85% threshold"),
        (85, Status.WRAP_NOW, "85 tokens of 100 tokens (85%) reached the 85% threshold"),
        (130, Status.WRAP_NOW, "130 tokens of 100 tokens (130%) reached the 85% threshold"),
    ],
)
def test_verdict_of_one_limit(used: float, status: Status, reason: str) -> None:
    """Healthy below 75 %, a warning from there on, and time to wrap from the threshold on; the reason says how much."""
    verdict = fixed_thresholds([reading(used)])

    assert (verdict.status, verdict.reason) == (status, reason)


def test_a_threshold_below_the_warning() -> None:
    """Where the threshold lies below 75 % there is no warning before it."""
    assert fixed_thresholds([reading(49, threshold=0.5)]).status is Status.HEALTHY
    assert fixed_thresholds([reading(50, threshold=0.5)]).status is Status.WRAP_NOW


def test_no_limits() -> None:
    """A budget without limits is always healthy."""
    assert fixed_thresholds([]) == Verdict(Status.HEALTHY, "no limits")


def test_the_limit_that_is_fullest_against_its_threshold_decides() -> None:
    """Of several limits the one that is nearest to its own threshold decides, not the fullest one."""
    relaxed = reading(88, resource="tokens", threshold=1.0)
    strict = reading(46, resource="calls", threshold=0.5)

    assert fixed_thresholds([relaxed, strict]).reading == strict
    assert fixed_thresholds([strict, relaxed]).reading == strict
    over = reading(51, resource="calls", threshold=0.5)
    assert fixed_thresholds([relaxed, over]).status is Status.WRAP_NOW


READINGS = st.lists(
    st.builds(
        reading,
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

    assert (fixed_thresholds(readings).status is Status.WRAP_NOW) == reached


@given(READINGS, st.data())
def test_more_use_is_never_judged_milder(readings: list[Reading], data: st.DataObject) -> None:
    """Using more of anything leaves the verdict as it is or makes it stricter."""
    number = data.draw(st.integers(0, len(readings) - 1))
    one = readings[number]
    more = Reading(one.limit, one.used + data.draw(st.floats(0, 1000)), one.amount)

    before = fixed_thresholds(readings).status
    after = fixed_thresholds([*readings[:number], more, *readings[number + 1 :]]).status

    assert ORDER.index(after) >= ORDER.index(before)


# What fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "estimate", "why"),
    [
        (0, 98, None),
        (0, 98.5, "needs 98 tokens, 98 tokens left"),
        (40, 58, None),
        (40, 60, "needs 60 tokens, 58 tokens left"),
        (98, 0, None),
        (150, 0, None),
        (150, 1, "needs 1 tokens, 0 tokens left"),
    ],
)
def test_what_fits(used: float, estimate: float, why: str | None) -> None:
    """Work fits into what is left of a limit without the 2 % that the shutdown needs; the answer names both figures."""
    assert misfit({"tokens": estimate}, [reading(used)]) == why


def test_what_is_not_limited_or_not_estimated_fits() -> None:
    """Only resources that the budget limits and the item estimates can be short."""
    assert misfit({"calls": 10**9}, [reading(99)]) is None
    assert misfit({}, [reading(99), reading(99, resource="memory")]) is None
    assert misfit({"tokens": 10**9}, []) is None


def test_the_limit_that_is_short_is_named() -> None:
    """Of several limits the one that has no room is named, in words for people."""
    readings = [reading(0), reading(2**30, 2**31, "memory")]

    assert misfit({"tokens": 1, "memory": 2**30}, readings) == "needs 1.0 GiB, 983.0 MiB left"


@given(READINGS, st.floats(0, 1000), st.floats(0, 1000))
def test_less_fits_where_more_does(readings: list[Reading], less: float, more: float) -> None:
    """An item that is estimated smaller in everything fits wherever the larger one does."""
    assume(less <= more)
    names = [one.limit.resource for one in readings]

    if misfit(dict.fromkeys(names, more), readings) is None:
        assert misfit(dict.fromkeys(names, less), readings) is None


@given(st.floats(0, 1e9), st.floats(0.1, 1e9))
def test_the_reserve_is_never_given_away(used: float, amount: float) -> None:
    """What fits, together with what is used, stays below the amount; nothing is left when the limit is overrun."""
    left = reading(used, amount).remaining

    assert left >= 0
    assert left == 0 or used + left < amount


# The monitor ----------------------------------------------------------------------------------------------------------


def test_counters_add_up_what_units_report(clock: FakeClock) -> None:
    """The monitor adds what each unit has spent; resources that the budget does not limit are counted too."""
    monitor = BudgetMonitor(Budget(tokens=100, calls=10), clock, {})
    monitor.record({"tokens": 30.0, "seconds": 2.0})
    monitor.record({"tokens": 12.5, "cost": 0.5})

    assert monitor.spent == {"tokens": 42.5, "seconds": 2.0, "cost": 0.5}
    assert [(one.limit.resource, one.used) for one in monitor.readings()] == [("tokens", 42.5), ("calls", 0.0)]


def test_what_the_monitor_gives_out_is_a_copy(clock: FakeClock) -> None:
    """Nobody can change the account by changing what was read from it."""
    monitor = BudgetMonitor(Budget(), clock, {})
    monitor.record({"tokens": 1.0})

    monitor.spent["tokens"] = 0.0

    assert monitor.spent == {"tokens": 1.0}


def test_seconds_are_the_sessions_own(clock: FakeClock) -> None:
    """Time is read from the clock, from the start of the session on, whatever units report of theirs."""
    clock.advance(1000)
    monitor = BudgetMonitor(Budget(seconds=60), clock, {})
    monitor.record({"seconds": 500.0})
    clock.advance(51)

    assert monitor.elapsed() == 51
    assert monitor.readings() == [Reading(Limit("seconds", 60), 51.0, 60.0)]
    assert monitor.verdict().status is Status.WRAP_NOW


def test_seconds_of_a_session_that_spans_processes(clock: FakeClock) -> None:
    """A session that was at work before this process counts from its own start."""
    monitor = BudgetMonitor(Budget(seconds=60), clock, {}, elapsed=40)
    clock.advance(5)

    assert (monitor.elapsed(), monitor.readings()[0].used) == (45, 45)


def test_a_gauge_is_read_each_time(clock: FakeClock) -> None:
    """A gauge has a level, not a sum: the verdict follows it up and down again."""
    meter = ScriptedMeter(10)
    monitor = BudgetMonitor(Budget(memory=100), clock, {"memory": meter})

    verdicts = []
    for level in (10, 80, 90, 20):
        meter.now = level
        monitor.record({"memory": 1000.0})
        verdicts.append(monitor.verdict().status)

    assert verdicts == [Status.HEALTHY, Status.WARNING, Status.WRAP_NOW, Status.HEALTHY]


@pytest.mark.parametrize(("capacity", "amount"), [(None, 100), (50, 50), (200, 100)])
def test_the_machine_may_allow_less(clock: FakeClock, capacity: float | None, amount: float) -> None:
    """A limit above what the machine allows is the machine's."""
    monitor = BudgetMonitor(Budget(memory=100), clock, {"memory": ScriptedMeter(45, capacity)})

    assert monitor.readings() == [Reading(Limit("memory", 100), 45, amount)]


def test_the_stop_rule_can_be_another(clock: FakeClock) -> None:
    """The monitor asks the rule that it was given, with the readings as they are."""
    asked: list[list[Reading]] = []

    def never(readings: object) -> Verdict:
        asked.append(list(readings))  # type: ignore[call-overload]
        return Verdict(Status.HEALTHY, "never")

    monitor = BudgetMonitor(Budget(tokens=1), clock, {}, never)
    monitor.record({"tokens": 5.0})

    assert monitor.verdict() == Verdict(Status.HEALTHY, "never")
    assert asked == [[Reading(Limit("tokens", 1), 5.0, 1.0)]]
