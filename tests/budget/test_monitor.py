"""The monitor: what is used of every limit, what a unit may still use, and when there will be room."""

import json
import math
from contextlib import suppress
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FakeClock

from perpetual_blocks.budget import (
    Budget,
    BudgetMonitor,
    Expectation,
    Forecast,
    Hint,
    Limit,
    Quota,
    Record,
    Spend,
    Status,
)
from perpetual_blocks.budget import gauges as gauges_module
from perpetual_blocks.budget.forecast import FIRST_CAUTION
from perpetual_blocks.testing import ScriptedMeter

ANY = Expectation()
UNIT = Expectation("k")


def window(resource: str, amount: float, text: str, threshold: float | None = None) -> Limit:
    return Limit(resource, amount, scope="window", window=text, threshold=threshold)


def total(resource: str, amount: float, threshold: float | None = None) -> Limit:
    return Limit(resource, amount, scope="total", threshold=threshold)


def used(monitor: BudgetMonitor) -> dict[str, float]:
    """What is used, by the limit's name."""
    return {reading.limit.name: reading.used for reading in monitor.readings()}


def taught(*costs: float, times: int = 100) -> Forecast:
    """A forecast that has seen units of these costs, each this often."""
    forecast = Forecast()
    for _ in range(times):
        for cost in costs:
            forecast.learn(cost, Hint("k"))
    return forecast


# What is used ---------------------------------------------------------------------------------------------------------


def test_counters_add_up_what_units_report(clock: FakeClock) -> None:
    """The monitor adds what each unit has spent; resources that the budget does not limit are counted too."""
    monitor = BudgetMonitor(Budget(tokens=100, calls=10), clock, {})
    monitor.record({"tokens": 30.0, "seconds": 2.0})
    monitor.record({"tokens": 12.5, "cost": 0.5}, UNIT)

    assert monitor.spent == {"tokens": 42.5, "seconds": 2.0, "cost": 0.5}
    assert used(monitor) == {"tokens": 42.5, "calls": 0.0}
    assert monitor.units == 2


def test_what_the_monitor_gives_out_is_a_copy(clock: FakeClock) -> None:
    """Nobody can change the account by changing what was read from it."""
    monitor = BudgetMonitor(Budget(), clock, {})
    monitor.record({"tokens": 1.0})

    monitor.spent["tokens"] = 0.0

    assert monitor.spent == {"tokens": 1.0}


def test_earlier_sessions_count_in_windows_and_totals(clock: FakeClock) -> None:
    """What was spent before is used of windows and totals and not of the session; nothing is counted twice."""
    budget = Budget(Limit("calls", 10), window("calls", 20, "1m"), window("calls", 30, "1h"), total("calls", 50))
    before = [Spend(clock.now() - 600, 5.0), Spend(clock.now() - 30, 3.0)]
    monitor = BudgetMonitor(budget, clock, {}, Record(spends={"calls": before}, totals={"calls": 12.0}))

    assert used(monitor) == {"calls": 0.0, "calls/1m": 3.0, "calls/1h": 8.0, "calls/total": 12.0}
    monitor.record({"calls": 2.0}, UNIT)
    for _ in range(3):
        monitor.refuse(UNIT)
        monitor.ready_at(UNIT)
        assert used(monitor) == {"calls": 2.0, "calls/1m": 5.0, "calls/1h": 10.0, "calls/total": 14.0}


def test_windows_go_on_while_a_session_works(clock: FakeClock) -> None:
    """What is old enough is free again in a window, and in a session or a total never."""
    budget = Budget(Limit("calls", 10), window("calls", 20, "1m"), total("calls", 50))
    monitor = BudgetMonitor(budget, clock, {})
    monitor.record({"calls": 2.0})
    clock.advance(40)
    monitor.record({"calls": 1.0})
    clock.advance(20)

    assert used(monitor) == {"calls": 3.0, "calls/1m": 1.0, "calls/total": 3.0}


def test_seconds_are_the_sessions_own(clock: FakeClock) -> None:
    """A session's time is read from the clock, from its start on; a window or total counts what units took."""
    clock.advance(1000)
    budget = Budget(total("seconds", 7200), window("seconds", 3600, "1h"), seconds=60)
    monitor = BudgetMonitor(budget, clock, {})
    monitor.record({"seconds": 50.0})
    clock.advance(51)

    assert monitor.elapsed() == 51
    assert used(monitor) == {"seconds": 51.0, "seconds/1h": 50.0, "seconds/total": 50.0}


def test_seconds_of_a_session_that_spans_processes(clock: FakeClock) -> None:
    """A session that was at work before this process counts from its own start."""
    monitor = BudgetMonitor(Budget(seconds=60), clock, {}, elapsed=40)
    clock.advance(5)

    assert (monitor.elapsed(), used(monitor)) == (45, {"seconds": 45})


@pytest.mark.parametrize(
    ("ends_in", "elapsed", "amount"), [(30, 0, 30), (30, 20, 50), (500, 0, 100), (80, 40, 100), (-10, 40, 30)]
)
def test_a_deadline_shortens_the_session(clock: FakeClock, ends_in: float, elapsed: float, amount: float) -> None:
    """Where the process will be ended before the session's time is up, that is all the time there is."""
    monitor = BudgetMonitor(Budget(seconds=100), clock, {}, elapsed=elapsed, until=clock.now() + ends_in)

    assert monitor.readings()[0].amount == pytest.approx(amount)
    assert monitor.room()["seconds"] == pytest.approx(max(0.0, amount * 0.98 - elapsed))


def test_a_deadline_that_has_passed(clock: FakeClock) -> None:
    """Then no time is left, whether or not time was limited."""
    monitor = BudgetMonitor(Budget(), clock, {}, until=clock.now() - 5)
    clock.advance(1)
    monitor.record({})

    assert monitor.room()["seconds"] == 0.0
    assert monitor.verdict().status is Status.WRAP_NOW


def test_a_provider_may_say_what_is_left(clock: FakeClock) -> None:
    """A quota is that of the limit with its name, known before or told now; other names are nobody's."""
    budget = Budget(window("calls", 20, "day"), window("calls", 10, "1m"))
    quotas = {"calls/day": Quota(5.0, clock.now() + 3600, clock.now())}
    monitor = BudgetMonitor(budget, clock, {}, Record(quotas=quotas))
    assert used(monitor) == {"calls/day": 15.0, "calls/1m": 0.0}

    told = Quota(9.0, clock.now() + 10, clock.now())
    monitor.count({}, {"calls/1m": told, "tokens/day": told})

    assert used(monitor) == {"calls/day": 15.0, "calls/1m": 1.0}


# Gauges ---------------------------------------------------------------------------------------------------------------


def test_a_gauge_is_read_each_time(clock: FakeClock) -> None:
    """A gauge has a level, not a sum: the verdict follows it up and down again."""
    meter = ScriptedMeter(10)
    monitor = BudgetMonitor(Budget(memory=Limit("memory", 100, threshold=0.85)), clock, {"memory": meter})

    verdicts = []
    for level in (10, 80, 90, 20):
        meter.now = level
        monitor.record({"memory": 1000.0})
        verdicts.append(monitor.verdict().status)

    assert verdicts == [Status.HEALTHY, Status.WARNING, Status.WRAP_NOW, Status.HEALTHY]


@pytest.mark.parametrize(("capacity", "amount"), [(None, 100), (50, 50), (200, 100)])
def test_the_machine_may_allow_less(clock: FakeClock, capacity: float | None, amount: float) -> None:
    """A limit above what the machine allows is the machine's."""
    monitor = BudgetMonitor(Budget(memory=100), clock, {"memory": ScriptedMeter(45, capacity=capacity)})

    assert [(reading.used, reading.amount) for reading in monitor.readings()] == [(45, amount)]


class PeakMeter(ScriptedMeter):
    """Tells when its highest level was read."""

    def __init__(self, level: float, peak: float) -> None:
        super().__init__(level)
        self._peak = peak
        self.peak_was_read = Event()

    def level(self) -> float:
        now = self.now
        if now == self._peak:
            self.peak_was_read.set()
        return now


def test_the_peak_of_a_unit_is_what_it_cost(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a gauge a unit costs what it was at most above where it began, and not what it left behind."""
    monkeypatch.setattr(gauges_module, "SAMPLE_SECONDS", 0.001)
    meter = PeakMeter(10, peak=90)
    monitor = BudgetMonitor(Budget(memory=1000), clock, {"memory": meter})

    with monitor.watch() as peaks:
        meter.now = 90
        assert meter.peak_was_read.wait(10)
        meter.now = 20
    monitor.record({}, UNIT, peaks=peaks)

    assert monitor.state()["memory"]["by_kind"] == {"k": [80.0]}
    assert used(monitor) == {"memory": 20}


def test_a_level_at_the_end_of_a_short_unit_counts(clock: FakeClock) -> None:
    """A unit that is over before the first look, or raises, is looked at when it ends; each unit anew."""
    meter = ScriptedMeter(10)
    monitor = BudgetMonitor(Budget(memory=1000), clock, {"memory": meter})

    with suppress(RuntimeError), monitor.watch() as peaks:
        meter.now = 60
        raise RuntimeError
    monitor.record({}, UNIT, peaks=peaks)
    with monitor.watch() as peaks:
        meter.now = 30
    monitor.record({}, UNIT, peaks=peaks)

    assert monitor.state()["memory"]["by_kind"] == {"k": [50.0, 0.0]}


def test_without_gauges_nothing_is_watched(clock: FakeClock) -> None:
    """A budget that limits no gauge needs no meter."""
    monitor = BudgetMonitor(Budget(tokens=10), clock, {})

    with monitor.watch():
        monitor.record({"tokens": 1.0}, UNIT)

    assert used(monitor) == {"tokens": 1.0}


# Units ----------------------------------------------------------------------------------------------------------------


def test_the_first_unit_of_a_session_runs(clock: FakeClock) -> None:
    """However dear units were, a session runs one; what other sessions used of a window is another matter."""
    record = Record(spends={"calls": [Spend(clock.now() - 1, 1.0)]}, forecasts={"calls": taught(500.0)})

    session = BudgetMonitor(Budget(calls=100), clock, {}, record)
    assert session.refuse(UNIT) is None
    session.record({"calls": 1.0})
    assert session.refuse(UNIT) is not None
    assert BudgetMonitor(Budget(window("calls", 100, "1h")), clock, {}, record).refuse(UNIT) is not None


def test_what_is_held_is_used_or_not(clock: FakeClock) -> None:
    """Who decides what may begin counts it; who asks how much is to come does not."""
    monitor = BudgetMonitor(Budget(tokens=100), clock, {})
    monitor.record({"tokens": 5.0})
    monitor.hold("a unit", Expectation(kind="k", bound={"tokens": 20.0}))
    assert [[reading.used for reading in monitor.readings(held=held)] for held in (True, False)] == [[25.0], [5.0]]


def test_the_monitor_learns_from_units(clock: FakeClock) -> None:
    """What is recorded with an expectation is learned, of all that adds up; what is counted only is not."""
    monitor = BudgetMonitor(Budget(tokens=100), clock, {})
    monitor.record({"tokens": 7.0, "seconds": 2.0}, UNIT)
    monitor.record({"tokens": 2.0}, UNIT, finished=False)
    monitor.record({"tokens": 50.0})

    learned = {name: state["by_kind"].get("k") for name, state in monitor.state().items()}
    assert learned == {
        "tokens": [7.0, 3.0],
        "cost": [0.0, 0.0],
        "calls": [0.0, 0.0],
        "seconds": [2.0, 0.0],
        "memory": None,
        "cpu_seconds": None,
    }


def test_the_risk_is_the_budgets(clock: FakeClock) -> None:
    """A budget that takes a larger risk goes on for longer."""
    answers = {}
    record = Record(forecasts={"calls": taught(2.0, 4.0)})
    for risk in (0.001, 0.4):
        monitor = BudgetMonitor(Budget(calls=100, risk=risk), clock, {}, record)
        monitor.record({"calls": 96.0})
        answers[risk] = (monitor.refuse(UNIT) is None, monitor.verdict().status)

    assert answers == {0.001: (False, Status.WRAP_NOW), 0.4: (True, Status.WARNING)}


def test_a_budget_without_limits(clock: FakeClock) -> None:
    """It allows everything, at once."""
    monitor = BudgetMonitor(Budget(), clock, {})

    assert monitor.refuse(Expectation(estimate={"tokens": 1e9})) is None
    assert monitor.ready_at(Expectation(estimate={"tokens": 1e9})) == clock.now()
    assert (monitor.room(), monitor.readings(), monitor.rung({0.0: "low"})) == ({}, [], None)


def test_what_a_unit_may_use(clock: FakeClock) -> None:
    """Of each limited resource as much as the limit that has least allows, without what is kept; never below 0."""
    budget = Budget(window("tokens", 50, "1h"), total("calls", 10), tokens=20, seconds=100)
    record = Record(spends={"tokens": [Spend(clock.now() - 1, 45.0)]}, totals={"calls": 11.0})
    monitor = BudgetMonitor(budget, clock, {}, record)
    clock.advance(10)

    assert monitor.room() == {"tokens": 5.0, "calls": 0.0, "seconds": 88.0}


def test_rungs(clock: FakeClock) -> None:
    """The fullest limit decides how far down the ladder a session stands, and says so in one line."""
    monitor = BudgetMonitor(Budget(tokens=100, calls=10), clock, {})
    ladder = {0.8: "small", 0.5: "medium"}

    rungs = []
    for calls in (4.0, 1.0, 3.0):
        monitor.record({"tokens": 1.0, "calls": calls})
        rungs.append(monitor.rung(ladder))

    assert rungs == [
        None,
        ("medium", "5 calls of 10 calls a session (50%)"),
        ("small", "8 calls of 10 calls a session (80%)"),
    ]
    assert monitor.rung({}) is None


# The shutdown ---------------------------------------------------------------------------------------------------------


def test_the_shutdown_is_learned(clock: FakeClock) -> None:
    """A session that ends in order within its limits makes the next a little bolder, and tells what ending cost."""
    monitor = BudgetMonitor(Budget(window("calls", 50, "1h"), tokens=100, seconds=60), clock, {})
    monitor.record({"tokens": 101.0, "calls": 99.0})
    clock.advance(30)

    monitor.shut_down({"tokens": 4.0}, 2.5)

    tokens, seconds, calls = (monitor.forecasts[name] for name in ("tokens", "seconds", "calls"))
    assert (tokens.shutdowns.samples(), seconds.shutdowns.samples(), calls.shutdowns.samples()) == ([4.0], [2.5], [])
    assert tokens.caution > FIRST_CAUTION > seconds.caution
    assert calls.caution == FIRST_CAUTION


@pytest.mark.parametrize("risk", [0.01, 0.05, 0.2, 0.5])
def test_caution_aims_at_the_budgets_risk(clock: FakeClock, risk: float) -> None:
    """When as many sessions overrun as the budget allows, the next one is as cautious as the first was."""
    forecasts: dict[str, Forecast] = {}
    for number in range(round(1 / risk)):
        monitor = BudgetMonitor(Budget(tokens=100, risk=risk), clock, {}, Record(forecasts=forecasts))
        monitor.record({"tokens": 150.0 if number == 0 else 50.0})
        monitor.shut_down({}, 1.0)
        forecasts = monitor.forecasts

    assert forecasts["tokens"].caution == pytest.approx(FIRST_CAUTION)


def test_what_is_kept_for_the_shutdown(clock: FakeClock) -> None:
    """At first 8 % of the time, and nothing of what no shutdown has spent; it stays the same for a whole session."""
    budget = Budget(window("tokens", 1000, "1h"), tokens=100, seconds=60)
    monitor = BudgetMonitor(budget, clock, {})

    def kept(of: BudgetMonitor) -> dict[str, float]:
        return {reading.limit.name: min(node.cost for node in reading.shutdown) for reading in of.readings()}

    assert kept(monitor) == {"tokens/1h": 0.0, "tokens": 0.0, "seconds": pytest.approx(4.8)}
    monitor.shut_down({"tokens": 10.0}, 20.0)
    assert kept(monitor) == {"tokens/1h": 0.0, "tokens": 0.0, "seconds": pytest.approx(4.8)}
    after = kept(BudgetMonitor(budget, clock, {}, Record(forecasts=monitor.forecasts)))
    assert after["tokens/1h"] == 0.0
    assert after["tokens"] >= 8.0


def test_the_next_session_decides_as_this_one(clock: FakeClock) -> None:
    """The state that is kept is all that a session knows."""
    budget = Budget(calls=100)
    monitor = BudgetMonitor(budget, clock, {}, Record(forecasts={"calls": taught(1.0, 9.0, times=20)}))
    state = json.loads(json.dumps(monitor.state()))
    copies = {name: Forecast.from_json(forecast) for name, forecast in state.items()}
    other = BudgetMonitor(budget, clock, {}, Record(forecasts=copies))

    for _ in range(30):
        for one in (monitor, other):
            one.record({"calls": 4.0}, UNIT)
        refusals = [one.refuse(UNIT) for one in (monitor, other)]
        assert (refusals[0] and refusals[0].why) == (refusals[1] and refusals[1].why)
    assert monitor.refuse(UNIT) is not None


# When there is room ---------------------------------------------------------------------------------------------------

START = 1_700_000_000.0
KNOWN = taught(1.0, 2.0, 3.0)

LIMITS = st.lists(
    st.builds(
        lambda text, amount, threshold: window("calls", amount, text, threshold),
        st.sampled_from(["10s", "1m", "minute", "20s"]),
        st.just(40.0),
        st.sampled_from([None, None, 0.5, 0.9, 1.0]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda limit: limit.name,
)
SPENDS = st.lists(
    st.builds(Spend, st.integers(-70, 0).map(lambda seconds: START + seconds), st.integers(0, 30).map(float)),
    max_size=8,
).map(sorted)
QUOTAS = st.none() | st.builds(
    Quota, st.none() | st.integers(0, 40).map(float), st.integers(0, 90).map(lambda n: START + n), st.just(START)
)
UNITS = st.sampled_from([UNIT, Expectation("k", estimate={"calls": 35.0}), Expectation("k", bound={"calls": 4.0})])


@given(LIMITS, SPENDS, QUOTAS, UNITS, st.sampled_from([{}, {"calls": KNOWN}]), st.sampled_from([0.0, 10.0, 60.0]))
def test_the_first_moment_with_room(
    limits: list[Limit],
    spends: list[Spend],
    quota: Quota | None,
    unit: Expectation,
    forecasts: dict[str, Forecast],
    total_used: float,
) -> None:
    """A fresh session of that moment starts the unit, and none of an earlier one does."""
    budget = Budget(*limits, total("cost", 60.0, 1.0))
    quotas = {} if quota is None else {limits[0].name: quota}
    record = Record({"calls": spends}, {"cost": total_used}, forecasts, quotas)
    answer = BudgetMonitor(budget, FakeClock(START), {}, record).ready_at(unit)

    def fits(moment: float) -> bool:
        return BudgetMonitor(budget, FakeClock(moment), {}, record).refuse(unit) is None

    # All that was spent and all quotas are of whole seconds; after two minutes everything is free.
    assert answer == next((START + n for n in range(150) if fits(START + n)), None)
    if answer is not None and answer > START:
        assert not fits(math.nextafter(answer, 0))


def test_a_total_that_is_gone_never_comes_back(clock: FakeClock) -> None:
    """There is no moment to wait for then, whatever the windows say."""
    budget = Budget(window("calls", 10, "1m"), total("cost", 80))
    gone = BudgetMonitor(budget, clock, {}, Record(totals={"cost": 80.0}))
    enough = BudgetMonitor(budget, clock, {}, Record(totals={"cost": 20.0}))

    assert gone.ready_at(ANY) is None
    assert enough.ready_at(ANY) == clock.now()
    assert enough.ready_at(Expectation(estimate={"cost": 61.0})) is None
    assert enough.ready_at(Expectation(estimate={"calls": 11.0})) is None


def test_a_session_that_is_used_up_is_no_reason_to_wait(clock: FakeClock) -> None:
    """The question is when a fresh session could go on, and that is now."""
    monitor = BudgetMonitor(Budget(calls=10), clock, {})
    monitor.record({"calls": 10.0})

    assert monitor.refuse(UNIT) is not None
    assert monitor.ready_at(UNIT) == clock.now()


def test_what_was_spent_meanwhile_is_waited_for(clock: FakeClock) -> None:
    """A unit that does not fit into a window fits when enough of what this session spent is old enough."""
    monitor = BudgetMonitor(Budget(window("calls", 10, "1m", 1.0)), clock, {})
    begin = clock.now()
    for _ in range(5):
        monitor.record({"calls": 2.0})
        clock.advance(10)

    assert monitor.ready_at(Expectation(estimate={"calls": 2.0})) == begin + 60
    assert monitor.ready_at(Expectation(estimate={"calls": 5.0})) == begin + 80
    assert monitor.ready_at(Expectation(estimate={"calls": 10.0})) == begin + 100


def test_a_provider_says_when_there_is_room(clock: FakeClock) -> None:
    """Where a provider says that nothing is left, its own reset is the moment."""
    monitor = BudgetMonitor(Budget(window("calls", 10, "day")), clock, {})
    monitor.count({}, {"calls/day": Quota(0.0, clock.now() + 1234.5, clock.now())})

    assert monitor.refuse(UNIT) is not None
    assert monitor.ready_at(UNIT) == clock.now() + 1234.5


def test_room_for_a_small_attempt_comes_before_room_for_a_large_one(clock: FakeClock) -> None:
    """Where units are small or hopeless, an attempt is worth a little room and not more: that moment counts."""
    forecast = taught(3.0, 3.0, 3.0, 500.0, 500.0)
    spends = [Spend(clock.now() - 50, 5.0), Spend(clock.now() - 40, 45.0), Spend(clock.now() - 30, 50.0)]
    record = Record(spends={"calls": spends}, forecasts={"calls": forecast})
    monitor = BudgetMonitor(Budget(window("calls", 100, "1m")), clock, {}, record, cancellable=frozenset({"calls"}))
    answer, answers = monitor.ready_at(UNIT), []
    for _ in range(4):
        answers.append(monitor.refuse(UNIT) is None)
        clock.advance(10)

    assert answers == [False, True, False, True]
    assert answer == clock.now() - 30
