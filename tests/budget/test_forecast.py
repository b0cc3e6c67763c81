"""Forecasts: what is learned of the costs of units and of shutdowns, and that a copy knows the same."""

import json
from collections.abc import Callable
from math import exp
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Forecast, Hint
from perpetual_blocks.budget.fit import overrun_risk, reserve, worth_trying
from perpetual_blocks.budget.forecast import CAUTION, FIRST_CAUTION, Node

HINTS = st.builds(
    Hint,
    kind=st.sampled_from(["", "a", "b"]),
    estimate=st.none() | st.floats(0.1, 100),
    bound=st.none() | st.floats(0.1, 100),
)
COSTS = st.one_of(st.floats(0, 1000), st.sampled_from([0.0, 1.0, 2.0]))

Event = tuple[str, dict[str, Any]]

UNITS = st.fixed_dictionaries({"cost": COSTS, "hint": HINTS, "finished": st.booleans()})
CLOSES = st.fixed_dictionaries({"shutdown": st.none() | COSTS, "graceful": st.booleans()})
HISTORIES = st.lists(
    st.one_of(
        UNITS.map(lambda unit: ("learn", unit)),
        CLOSES.map(lambda end: ("close", end)),
        # Many of the same sort, as in life: only so is a kind known well, and every predictor trusted.
        st.tuples(st.just("many"), st.fixed_dictionaries({"seed": st.integers(0, 99), "count": st.integers(1, 80)})),
    ),
    max_size=12,
)


def live(forecast: Forecast, history: list[Event]) -> None:
    """Lets a forecast see what happened."""
    for what, said in history:
        if what == "learn":
            forecast.learn(said["cost"], said["hint"], finished=said["finished"])
        elif what == "close":
            forecast.close(said["shutdown"], graceful=said["graceful"])
        else:
            random = Random(said["seed"])
            for _ in range(said["count"]):
                estimate = random.lognormvariate(0, 1)
                cost = estimate * random.lognormvariate(0, 0.3)
                forecast.learn(cost, Hint(random.choice("ab"), random.choice([None, estimate])))


def decisions(forecast: Forecast, hint: Hint) -> list[object]:
    """All that a session asks of a forecast, exactly."""
    shutdown = forecast.shutdown_law(100.0)
    law = forecast.law(hint)
    return [
        shutdown,
        reserve(forecast, 2.0),
        forecast.bound(hint),
        law and (law.scale, law.mean(), law.quantile(0.01), law.within(3.0)),
        *(overrun_risk(forecast, hint, remaining, 100.0, shutdown) for remaining in (1.0, 10.0, 50.0, 99.0)),
        *(worth_trying(forecast, hint, room, 100.0) for room in (1.0, 10.0, 50.0, 99.0)),
    ]


def taught(costs: Callable[[int], float], count: int, hint: Hint = Hint("k")) -> Forecast:  # noqa: B008 - immutable
    forecast = Forecast()
    for number in range(count):
        forecast.learn(costs(number), hint)
    return forecast


def above(forecast: Forecast, cost: float, hint: Hint) -> float:
    law = forecast.law(hint)
    assert law is not None
    return law.above(cost)


# State ----------------------------------------------------------------------------------------------------------------


@given(HISTORIES, HISTORIES, st.lists(HINTS, min_size=1, max_size=3))
def test_a_copy_decides_as_the_original(before: list[Event], after: list[Event], hints: list[Hint]) -> None:
    """Saved as JSON and read back, a forecast is the same to the last bit, and whatever it sees then, it stays so."""
    original = Forecast()
    live(original, before)
    text = json.dumps(original.to_json())
    copy = Forecast.from_json(json.loads(text))
    assert json.dumps(copy.to_json()) == text

    for history in ([], after):
        live(original, history)
        live(copy, history)
        assert json.dumps(copy.to_json()) == json.dumps(original.to_json())
        for hint in hints:
            assert decisions(copy, hint) == decisions(original, hint)


def test_a_copy_of_a_full_memory() -> None:
    """When the windows are full, the copy forgets what the original forgets."""
    random = Random(1)
    original = taught(lambda _: random.expovariate(1), 600)
    for _ in range(200):
        original.close(random.expovariate(1), graceful=True)
    copy = Forecast.from_json(json.loads(json.dumps(original.to_json())))

    for forecast in (original, copy):
        live(forecast, [("many", {"seed": 2, "count": 100}), ("close", {"shutdown": 9.0, "graceful": False})])

    assert decisions(copy, Hint("k")) == decisions(original, Hint("k"))
    assert copy.to_json() == original.to_json()
    assert len(original.to_json()["shutdowns"]) == 128


def test_the_state_stays_small() -> None:
    """However much is learned, the state of a kind is some thousand numbers."""
    assert len(json.dumps(taught(lambda number: number / 7, 3000).to_json())) < 100_000


# Units ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_known_at_first() -> None:
    """Without any unit there is no law, unless something was declared."""
    forecast = Forecast()

    assert forecast.law(Hint("k")) is forecast.law(Hint("k", bound=5.0)) is None
    law = forecast.law(Hint("k", estimate=5.0))
    assert law is not None
    assert (law.above(4.9), law.above(10.0)) == (1.0, 1 / 8)


def test_few_units_of_a_kind_are_seen_with_all_others() -> None:
    """Until a kind has 30 samples, its costs are pooled with those of the other kinds."""
    forecast = taught(lambda _: 10.0, 100, Hint("dear"))
    free = Hint("free")

    for _ in range(29):
        forecast.learn(0.0, free)
    assert above(forecast, 5.0, free) > 0.75
    forecast.learn(0.0, free)
    assert above(forecast, 5.0, free) == 0.0


def test_a_new_kind_is_expected_like_the_others() -> None:
    """What is known of a kind that was never seen is what is known of all."""
    forecast = taught(lambda number: 1.0 + number % 2, 100, Hint("known"))
    law = forecast.law(Hint("new"))

    assert law is not None
    assert law.quantile(0.25) == pytest.approx(2.0, rel=0.05)


def test_each_kind_has_its_own_costs() -> None:
    """Kinds that are known well do not mix."""
    forecast, random = Forecast(), Random(3)
    for _ in range(100):
        forecast.learn(random.uniform(0.5, 1.5), Hint("small"))
        forecast.learn(random.uniform(50, 150), Hint("large"))

    assert above(forecast, 10.0, Hint("small")) < 0.02
    assert above(forecast, 10.0, Hint("large")) > 0.95


def test_an_estimate_that_costs_follow_is_believed() -> None:
    """Where estimates are good, the unit is expected to cost about what was said of it."""
    forecast, random = Forecast(), Random(4)
    for _ in range(200):
        estimate = random.lognormvariate(0, 2)
        forecast.learn(estimate * random.uniform(0.8, 1.2), Hint("k", estimate))

    for estimate in (0.01, 1.0, 1000.0):
        law = forecast.law(Hint("k", estimate))
        assert law is not None
        assert law.quantile(0.99) > 0.7 * estimate
        assert law.quantile(0.01) < 1.3 * estimate


def test_an_estimate_that_costs_do_not_follow_is_not_believed() -> None:
    """Where estimates say nothing, what was seen decides."""
    forecast, random = Forecast(), Random(5)
    for _ in range(200):
        forecast.learn(random.uniform(0.8, 1.2), Hint("k", random.lognormvariate(0, 2)))

    for estimate in (0.001, 1.0, 1000.0):
        law = forecast.law(Hint("k", estimate))
        assert law is not None
        assert 0.5 < law.quantile(0.5) < 2.0


@pytest.mark.parametrize("growth", [1.03, 1 / 1.03])
def test_drift_is_followed(growth: float) -> None:
    """Where costs grow or shrink, the next unit is expected to cost what the latest did."""
    random = Random(6)
    forecast = taught(lambda number: growth**number * random.uniform(0.9, 1.1), 200)
    law = forecast.law(Hint("k"))

    assert law is not None
    assert law.quantile(0.5) == pytest.approx(growth**200, rel=0.25)
    assert law.quantile(0.01) < 2 * growth**200


@given(st.floats(0, 1000), HINTS)
def test_a_unit_that_was_cut_off_is_not_forgotten(cost: float, hint: Hint) -> None:
    """What a unit would have cost that was cut off is not known; half as much again is taken for it."""
    cut, whole = Forecast(), Forecast()
    cut.learn(cost, hint, finished=False)
    whole.learn(1.5 * cost, hint)

    assert {**cut.to_json(), "tallies": {}} == {**whole.to_json(), "tallies": {}}


# Calibration ----------------------------------------------------------------------------------------------------------


def test_calibration_compares_what_was_foretold_with_what_was_used() -> None:
    """Each finished unit is compared with what was known just before it was learned, kind by kind."""
    forecast = Forecast()
    foretold: dict[str, list[tuple[float, float, float]]] = {"a": [], "b": []}
    for number in range(40):
        hint, cost = Hint("ab"[number % 2]), 10.0 + number % 7
        law = forecast.law(hint)
        if law is not None:
            foretold[hint.kind].append((law.quantile(0.5), cost, law.quantile(0.1)))
        forecast.learn(cost, hint)

    assert [len(units) for units in foretold.values()] == [19, 20]
    for kind, units in foretold.items():
        predicted, used = sum(median for median, _, _ in units), sum(cost for _, cost, _ in units)
        assert forecast.calibration()[kind] == {
            "units": len(units),
            "predicted": predicted,
            "used": used,
            "ratio": used / predicted,
            "p90_coverage": sum(cost <= highest for _, cost, highest in units) / len(units),
        }


def test_a_forecast_of_steady_costs_is_well_calibrated() -> None:
    """Where costs come from one law, nine of ten units are within the 90th percentile, and medians add up."""
    random = Random(7)
    calibration = taught(lambda _: random.uniform(50, 150), 500).calibration()["k"]

    assert calibration["ratio"] == pytest.approx(1.0, rel=0.05)
    assert calibration["p90_coverage"] == pytest.approx(0.9, abs=0.03)


def test_what_is_not_compared() -> None:
    """Neither the first unit of which nothing was known, nor one that was cut off, nor what costs nothing."""
    forecast = Forecast()
    forecast.learn(5.0, Hint("k"))
    forecast.learn(5.0, Hint("k"), finished=False)
    assert forecast.calibration() == {}

    free = taught(lambda _: 0.0, 10)
    assert free.calibration() == {}
    free.learn(3.0, Hint("k"))
    assert free.calibration()["k"] == {"units": 10, "predicted": 0.0, "used": 3.0, "ratio": None, "p90_coverage": 0.9}


def test_a_state_without_a_calibration_is_read() -> None:
    """What an earlier version saved is a state of which nothing was compared yet."""
    state = taught(lambda number: number + 1.0, 50).to_json()
    del state["tallies"]

    forecast = Forecast.from_json(json.loads(json.dumps(state)))

    assert forecast.calibration() == {}
    forecast.learn(20.0, Hint("k"))
    assert forecast.calibration()["k"]["units"] == 1


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_a_bound_is_believed_until_it_is_exceeded() -> None:
    """A kind whose bound was too low is trusted as far as that was true, and a little less; other kinds as before."""
    forecast, hint = Forecast(), Hint("liar", bound=10.0)
    forecast.learn(10.0, hint)
    assert forecast.bound(hint) == 10.0

    forecast.learn(20.0, hint)

    assert forecast.bound(hint) == pytest.approx(21.0)
    assert forecast.bound(Hint("liar", bound=100.0)) == pytest.approx(210.0)
    assert forecast.bound(Hint("honest", bound=10.0)) == 10.0
    assert forecast.bound(Hint("liar")) is None


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.01, 100)), max_size=20))
def test_no_bound_is_trusted_that_was_exceeded(units: list[tuple[float, float]]) -> None:
    """What is made of a bound would have held for every unit of the kind so far."""
    forecast = Forecast()
    for cost, bound in units:
        forecast.learn(cost, Hint("k", bound=bound))

    for cost, bound in units:
        assert cost <= (forecast.bound(Hint("k", bound=bound)) or 0.0) * (1 + 1e-12)


def test_a_bound_of_nothing_is_not_trusted_once_it_was_exceeded() -> None:
    """A unit that was to use nothing, and did, is a risk like any other when little is left."""
    forecast = taught(lambda _: 10.0, 50, Hint("liar", bound=0.0))

    assert overrun_risk(forecast, Hint("liar", bound=0.0), 5.0, 100.0, (Node(0.0, 1.0),)) > 0.5


# Shutdowns ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), max_size=140), st.floats(1, 1000))
def test_the_law_of_the_shutdown(shutdowns: list[float], budget: float) -> None:
    """Its weights sum to 1, and its costs grow; until eight were seen none is below 8 % of the budget."""
    forecast = Forecast()
    for shutdown in shutdowns:
        forecast.close(shutdown, graceful=True)
    law = forecast.shutdown_law(budget)
    costs = [node.cost for node in law]

    assert sum(node.weight for node in law) == 1.0
    assert all(node.weight > 0 for node in law)
    assert costs == sorted(costs)
    if len(shutdowns) < 8:
        assert costs[0] >= 0.08 * budget


def test_known_shutdowns_are_expected_again() -> None:
    """Once enough were seen, the law lies where they were, whatever the budget."""
    forecast = Forecast()
    for number in range(100):
        forecast.close(2.0 + number % 2, graceful=True)
    law = forecast.shutdown_law(1e6)

    assert 2.0 <= sum(node.cost * node.weight for node in law) <= 3.1
    assert forecast.shutdown_cost(0.25) == pytest.approx(3.0, rel=0.05)


def test_a_session_without_a_shutdown_says_nothing_of_its_cost() -> None:
    """A session that was killed had no shutdown; none was seen then."""
    forecast = Forecast()
    forecast.close(None, graceful=False)

    assert forecast.shutdown_cost(0.01) == 0.0
    assert forecast.shutdown_law(100.0) == (Node(8.0, 1.0),)


# Caution --------------------------------------------------------------------------------------------------------------


def test_caution_follows_what_happens() -> None:
    """One session in a hundred that overruns leaves the caution where it was; more raise it."""
    forecast = Forecast()
    assert forecast.caution == FIRST_CAUTION
    forecast.close(1.0, graceful=False)
    raised = forecast.caution
    for _ in range(99):
        forecast.close(1.0, graceful=True)

    assert raised == pytest.approx(FIRST_CAUTION * exp(0.2))
    assert forecast.caution == pytest.approx(FIRST_CAUTION)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), max_size=8))
def test_caution_has_limits(ends: list[tuple[bool, int]]) -> None:
    """However often sessions overrun, or do not, the caution stays between 0.7 and 4."""
    forecast = Forecast()
    for graceful, times in ends:
        before = forecast.caution
        for _ in range(times):
            forecast.close(None, graceful=graceful)
        assert CAUTION[0] <= forecast.caution <= CAUTION[1]
        assert forecast.caution <= before if graceful else forecast.caution >= before


@given(HISTORIES, HINTS, st.floats(0, 100))
def test_more_caution_is_never_more_daring(history: list[Event], hint: Hint, remaining: float) -> None:
    """After a session that overran, no unit is thought to fit better than before, where a session has many."""
    forecast = Forecast()
    live(forecast, history)
    shutdown = forecast.shutdown_law(100.0)
    before = overrun_risk(forecast, hint, remaining, 1e9, shutdown)
    forecast.close(None, graceful=False)

    assert overrun_risk(forecast, hint, remaining, 1e9, shutdown) >= before - 1e-6
