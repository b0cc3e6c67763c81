"""Does the next unit fit: the risk that it does not, and whether an attempt is worth it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Forecast, Hint
from perpetual_blocks.budget.fit import overrun_risk, reserve, worth_trying
from perpetual_blocks.budget.forecast import RISK, Node

NO_SHUTDOWN = (Node(0.0, 1.0),)
COSTS = st.lists(st.floats(0, 50), max_size=60)
HINTS = st.builds(
    Hint, kind=st.sampled_from("ab"), estimate=st.none() | st.floats(0.1, 100), bound=st.none() | st.floats(0.1, 100)
)


def seen(costs: list[float], hint: Hint = Hint("a"), shutdowns: list[float] | None = None) -> Forecast:  # noqa: B008 - immutable
    forecast = Forecast()
    for cost in costs:
        forecast.learn(cost, hint)
    for shutdown in shutdowns or []:
        forecast.close(shutdown, graceful=True)
    return forecast


# What cannot be cut off -----------------------------------------------------------------------------------------------


@given(COSTS, HINTS, COSTS, st.floats(0, 100), st.floats(0, 100))
def test_the_less_remains_the_larger_the_risk(
    costs: list[float], hint: Hint, shutdowns: list[float], one: float, other: float
) -> None:
    """The risk is a share, and never smaller with less room."""
    forecast = seen(costs, hint, shutdowns)
    law = forecast.shutdown_law(100.0)
    less, more = sorted((one, other))
    with_less, with_more = (overrun_risk(forecast, hint, left, 100.0, law) for left in (less, more))

    assert 0.0 <= with_more <= with_less + 1e-12
    assert with_less <= 1.0 + 1e-12


@given(COSTS, HINTS, st.floats(1, 100), st.floats(0, 20), st.floats(0, 20))
def test_a_dearer_shutdown_is_a_larger_risk(
    costs: list[float], hint: Hint, remaining: float, one: float, other: float
) -> None:
    """Whoever keeps more for the shutdown has less for the unit."""
    forecast = seen(costs, hint)
    cheap, dear = sorted((one, other))

    assert overrun_risk(forecast, hint, remaining, 100.0, (Node(cheap, 1.0),)) <= (
        overrun_risk(forecast, hint, remaining, 100.0, (Node(dear, 1.0),)) + 1e-9
    )


def test_the_risk_of_one_decision() -> None:
    """With units as large as the budget, the risk is the share of the units that were larger than what is left."""
    forecast = seen([10.0 * (1 + number) for number in range(99)])
    forecast.caution = 1.0

    assert overrun_risk(forecast, Hint("a"), 300.0, 310.0, NO_SHUTDOWN) == pytest.approx(0.7)
    assert overrun_risk(forecast, Hint("a"), 905.0, 910.0, (Node(5.0, 1.0),)) == pytest.approx(0.1)
    half = (Node(5.0, 0.5), Node(905.0, 0.5))
    assert overrun_risk(forecast, Hint("a"), 905.0, 910.0, half) == pytest.approx(0.5 * 0.1 + 0.5)


def test_many_small_decisions_add_up() -> None:
    """Where a session has many units, the risk of all its decisions counts, not only that of the last."""
    random = Random(1)
    forecast = seen([random.expovariate(1) for _ in range(500)])
    forecast.caution = 1.0
    law = forecast.law(Hint("a"))
    assert law is not None

    alone = law.above(5.0)
    assert overrun_risk(forecast, Hint("a"), 5.0, 6.0, NO_SHUTDOWN) == pytest.approx(alone, rel=0.05)
    assert overrun_risk(forecast, Hint("a"), 4.0, 1e6, NO_SHUTDOWN) == pytest.approx(
        max(law.above(4.0), 0.35 * law.scores.excess(4.0) / law.scores.mean()), rel=0.05
    )


@given(COSTS, st.floats(0.1, 50), st.floats(0, 20))
def test_a_bound_that_fits_is_no_risk(costs: list[float], bound: float, shutdown: float) -> None:
    """What cannot be exceeded has no tail, as long as it was true; a hair less room, and it counts as any unit."""
    hint = Hint("a", bound=bound)
    forecast = seen([min(cost, bound) for cost in costs], hint)

    assert overrun_risk(forecast, hint, bound + shutdown + 1e-9, 100.0, (Node(shutdown, 1.0),)) == 0.0


def test_a_bound_that_does_not_fit() -> None:
    """With nothing else known it is a certain overrun; otherwise what was seen decides."""
    hint = Hint("a", bound=10.0)

    assert overrun_risk(Forecast(), hint, 9.0, 100.0, NO_SHUTDOWN) == 1.0
    assert overrun_risk(seen([1.0] * 200, hint), hint, 9.0, 10.0, NO_SHUTDOWN) < RISK


def test_a_bound_that_was_exceeded_is_a_risk() -> None:
    """What fits by a bound that was too low before is not safe."""
    hint = Hint("a", bound=10.0)
    forecast = seen([10.0] * 50, hint)
    assert overrun_risk(forecast, hint, 10.0, 100.0, NO_SHUTDOWN) == 0.0

    forecast.learn(15.0, hint)

    assert overrun_risk(forecast, hint, 10.0, 100.0, NO_SHUTDOWN) > RISK
    assert overrun_risk(forecast, hint, 16.0, 100.0, NO_SHUTDOWN) == 0.0


def test_a_cold_start() -> None:
    """With nothing known, units are started while more than 30 % is left."""
    assert overrun_risk(Forecast(), Hint("a"), 30.1, 100.0, NO_SHUTDOWN) == 0.0
    assert overrun_risk(Forecast(), Hint("a"), 30.0, 100.0, NO_SHUTDOWN) == 1.0


def test_no_room_behind_the_shutdown() -> None:
    """When the shutdown needs all that is left, even a unit that costs nothing is too much."""
    assert overrun_risk(seen([0.0] * 50), Hint("a"), 5.0, 100.0, (Node(5.0, 1.0),)) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_few_sessions_overrun(seed: int) -> None:
    """Sessions that go on while the risk is at most 1 % seldom overrun, and use most of their budget."""
    random, forecast, budget, sessions = Random(seed), Forecast(), 30.0, 300
    overruns, work = 0, 0.0
    for _ in range(sessions):
        shutdown_law = forecast.shutdown_law(budget)
        used, first = 0.0, True
        while first or overrun_risk(forecast, Hint("a"), budget - used, budget, shutdown_law) <= RISK:
            cost = random.expovariate(1.0)
            forecast.learn(cost, Hint("a"))
            used, first = used + cost, False
        shutdown = random.lognormvariate(-0.5, 0.3)
        overrun = used + shutdown > budget
        forecast.close(None if overrun else shutdown, graceful=not overrun)
        overruns += overrun
        work += used

    assert overruns / sessions < 0.03
    assert work / (sessions * budget) > 0.7


# What can be cut off --------------------------------------------------------------------------------------------------


def test_an_attempt_needs_room() -> None:
    """Without room nothing is tried, not even what costs nothing."""
    forecast = seen([0.0] * 50)

    assert not worth_trying(forecast, Hint("a"), 0.0, 100.0)
    assert not worth_trying(forecast, Hint("a", bound=1.0), -1.0, 100.0)
    assert worth_trying(forecast, Hint("a"), 0.1, 100.0)


def test_an_attempt_is_worth_its_possible_waste() -> None:
    """What will probably be done in time is tried, and what will probably be cut off is not."""
    forecast = seen([10.0 + number / 100 for number in range(100)])

    assert worth_trying(forecast, Hint("a"), 12.0, 100.0)
    assert not worth_trying(forecast, Hint("a"), 9.0, 100.0)


@pytest.mark.parametrize(("cheap", "tried"), [(80, True), (20, False)])
def test_odds(cheap: int, tried: bool) -> None:
    """With room for half the kind's sizes, the odds decide: 70 % of the work against 30 % of the waste."""
    forecast = seen(([8.0] * cheap + [100.0] * (100 - cheap)) * 4)

    assert worth_trying(forecast, Hint("a"), 10.0, 1000.0) is tried


def test_a_bound_that_fits_is_tried() -> None:
    """What cannot be cut off there is worth trying, whatever others of its kind cost."""
    forecast = seen([50.0] * 100)

    assert worth_trying(forecast, Hint("a", bound=10.0), 10.0, 100.0)
    assert not worth_trying(forecast, Hint("a", bound=10.0), 9.0, 100.0)


def test_a_cold_attempt() -> None:
    """With nothing known, units are tried while more than 30 % is left."""
    assert worth_trying(Forecast(), Hint("a"), 30.1, 100.0)
    assert not worth_trying(Forecast(), Hint("a"), 30.0, 100.0)


def test_what_a_cut_off_must_leave() -> None:
    """The minimal save, and what three shutdowns in four needed."""
    assert reserve(Forecast(), 2.0) == 2.0
    assert reserve(seen([], shutdowns=[4.0] * 50 + [100.0] * 10), 2.0) == pytest.approx(6.0, rel=0.05)
