"""Plans: how many sessions, how long, how much, from estimates and from what was learned."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.budget import Budget, Expectation, Forecast, Limit, Spend
from perpetual_blocks.budget.plan import DRAWS, Pace, Plan, Work, simulate, with_changes
from perpetual_blocks.errors import InvalidInput

NOW = 1_700_000_000.0
PACE = Pace(resume=1, shutdown=2, gap=10, fullness=1.0)


def plan(units: int, budget: Budget, pace: Pace = PACE, **estimate: float) -> Plan:
    return simulate([Work(Expectation(estimate=estimate), units)], budget, {}, NOW, pace=pace)


def test_sessions_follow_from_estimates() -> None:
    """Ten units of 100 tokens in sessions of 350 are four sessions, with a gap between any two."""
    made = plan(10, Budget(tokens=350), tokens=100, seconds=5)

    assert made.quantile(0.5, "sessions") == made.quantile(0.9, "sessions") == 4
    assert made.quantile(0.5, "tokens") == 1000
    assert made.quantile(0.5, "duration") == 10 * 5 + 4 * (1 + 2) + 3 * 10
    assert made.quantile(0.5, "seconds") == 10 * 5, "the time that units take, as `seconds` is everywhere"
    assert (made.finishes, made.unknown) == (1.0, ())
    assert made.middle().stopped_by == {"tokens": 3, "queue-empty": 1}


def test_windows_are_waited_for() -> None:
    """500 calls a day are three days for 1,200: today's rest, tomorrow, and the day after."""
    midnight = NOW - NOW % 86400 + 86400
    made = plan(1200, Budget(Limit("calls", 500, scope="window", window="day")), calls=1, seconds=1)

    assert NOW + made.quantile(0.5, "duration") == pytest.approx(midnight + 86400 + 200, abs=20)
    assert made.quantile(0.5, "waiting") > 86400
    assert made.quantile(0.5, "sessions") == 3


def test_rolling_windows_and_what_was_spent_before() -> None:
    """What was spent before counts until it is forgotten."""
    budget = Budget(Limit("calls", 10, scope="window", window="1h"))
    work = [Work(Expectation(estimate={"calls": 1, "seconds": 0.0}), 5)]
    spends = {"calls/1h": [Spend(NOW - 600, 8.0)]}

    made = simulate(work, budget, {}, NOW, spends=spends, pace=PACE)

    assert made.quantile(0.5, "duration") == pytest.approx(3000, abs=20)
    assert made.quantile(0.5, "sessions") == 2, "today's two calls, and the rest"


def test_a_total_that_does_not_suffice() -> None:
    """The plan says in how many futures the money is gone, and what was done with it."""
    made = plan(10, Budget(Limit("cost", 4.5, scope="total")), cost=1.0, seconds=1.0)

    assert (made.finishes, made.quantile(0.9, "cost")) == (0.0, 4.0)


def test_what_was_learned_goes_before_estimates() -> None:
    """A forecast that has seen units is believed, with its spread."""
    learned = Forecast()
    for n in range(100):
        learned.learn(50.0 if n % 2 else 150.0)
    work = [Work(Expectation(estimate={"tokens": 1}), 100)]

    made = simulate(work, Budget(tokens=1000), {"tokens": learned}, NOW, pace=PACE)

    assert made.quantile(0.5, "tokens") == pytest.approx(10_000, rel=0.1)
    assert made.quantile(0.5, "tokens") < made.quantile(0.9, "tokens")


def test_what_is_not_known_is_said() -> None:
    """A limit on something of which there is neither estimate nor record is not in the plan, and named; so is time."""
    made = plan(10, Budget(tokens=100, calls=2), calls=1.0)

    assert (made.unknown, made.quantile(0.5, "sessions")) == (("seconds", "tokens"), 5)


def test_nothing_is_left() -> None:
    """A plan for no work is one session that ends at once."""
    made = simulate([], Budget(tokens=100), {}, NOW, pace=PACE)

    assert (made.units, made.quantile(0.9, "sessions"), made.unknown) == (0, 1, ())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2_000_000), st.floats(0.1, 100), st.floats(200, 5000), st.just(4_000))
@example(2_000_000, 1.5, 1000.0, DRAWS)
def test_many_units_are_planned_as_quickly(units: int, cost: float, amount: float, draws: int) -> None:
    """However many units there are: what they cost together is what each costs times their number."""
    work = [Work(Expectation(estimate={"tokens": cost, "seconds": 0.1}), units)]

    made = simulate(work, Budget(tokens=amount * 50), {}, NOW, pace=PACE, draws=draws)

    assert made.quantile(0.5, "tokens") == pytest.approx(units * cost)
    assert made.quantile(0.5, "sessions") >= units * cost // (amount * 50)


def test_changes() -> None:
    """An amount is changed by the limit's name, with or without its time zone; what is not there is added."""
    daily = Limit("calls", 500, scope="window", window="day America/Los_Angeles")
    budget = Budget(daily, tokens=1000)

    changed = with_changes(budget, ["calls/day=1000", "tokens=5000", "cost/total=80", "calls/5h=300"])

    assert {limit.name: limit.amount for limit in changed} == {
        "calls/day America/Los_Angeles": 1000,
        "tokens": 5000,
        "cost/total": 80,
        "calls/5h": 300,
    }


@pytest.mark.parametrize("change", ["calls", "calls/day=many", "gold=5", "calls/fortnight=5", "tokens=0", "=5"])
def test_wrong_changes_are_refused(change: str) -> None:
    """A change that is none is refused in a line that says what was expected."""
    with pytest.raises(InvalidInput) as refused:
        with_changes(Budget(tokens=1000), [change])

    one_line(refused.value, "expected")


def test_a_session_at_work_has_used_a_part() -> None:
    """The first session of the plan is the one at work: it has no resume any more, and less room than the next."""
    work = [Work(Expectation(estimate={"tokens": 100, "seconds": 5}), 5)]

    made = simulate(work, Budget(tokens=350), {}, NOW, pace=PACE, begun={"tokens": 200.0})

    assert made.quantile(0.5, "sessions") == 3, "one unit, three, and one"
    assert [stretch.seconds for stretch in made.middle().stretches] == [5 + 2, 10, 1 + 15 + 2, 10, 1 + 5 + 2]


def test_several_units_at_once_take_less_time() -> None:
    """Of a session's time and the clock's, not of what units use together."""
    parallel = Pace(resume=1, shutdown=2, gap=10, fullness=1.0, parallel=4.0)

    made = plan(100, Budget(seconds=55), pace=parallel, seconds=10)

    assert made.quantile(0.5, "seconds") == 1000
    assert made.quantile(0.5, "sessions") == 5, "twenty units in each 50 seconds"
    assert made.quantile(0.5, "duration") == 1000 / 4 + 5 * (1 + 2) + 4 * 10
