"""What a person would have to add to a total for the next unit."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Budget, Expectation, Forecast, Limit, Reading, refuse
from perpetual_blocks.budget.shortfall import shortfall

RISK = 0.01


def total(used: float, forecast: Forecast | None = None, **rule: Any) -> Reading:
    """Of a hundred tokens in all."""
    return Reading(Limit("tokens", 100, scope="total", **rule), used, 100, forecast or Forecast())


def learned(units: int = 400) -> Forecast:
    """A forecast that has seen units which cost about ten tokens."""
    forecast, random = Forecast(), Random(1)
    for _ in range(units):
        forecast.learn(random.expovariate(0.1))
    return forecast


LEARNED = learned()


@pytest.mark.parametrize(
    ("used", "bound", "lacking"), [(50, 10, 0.0), (95, 10, 5.0), (130, 10, 40.0), (100, 100, 100.0), (100, 120, None)]
)
def test_what_a_bound_unit_lacks(used: float, bound: float, lacking: float | None) -> None:
    """What it cannot exceed, without what is left; as much again as there is in all is the most."""
    found = shortfall(total(used), Expectation(bound={"tokens": bound}), risk=RISK)
    assert found == (lacking if lacking is None else pytest.approx(lacking))


def test_what_a_threshold_lacks() -> None:
    """The rule of the limit decides, whatever it is."""
    assert shortfall(total(85, threshold=0.85), Expectation(), risk=RISK) == pytest.approx(0.0, abs=1e-6)
    assert shortfall(total(95, threshold=0.5), Expectation(), risk=RISK) == pytest.approx(90.0)


@given(st.floats(70, 150))
def test_so_much_more_and_no_less_is_enough(used: float) -> None:
    """With what it lacks the unit is started; with a little less it is not."""
    reading = total(used, LEARNED)
    lacking = shortfall(reading, Expectation(), risk=RISK)
    assert lacking is not None

    def starts(more: float) -> bool:
        raised = Reading(reading.limit, used, 100 + more, LEARNED)
        return refuse([raised], Expectation(), risk=RISK) is None

    assert starts(lacking)
    assert not lacking or not starts(lacking * 0.999)


def test_a_budget_with_more() -> None:
    """Only the chain's own totals of these resources are raised."""
    shared = Limit("calls", 50, scope="total", pool="team")
    budget = Budget(Limit("tokens", 100, scope="total", threshold=0.9), shared, tokens=30, cost=1, risk=0.02)

    raised = budget.with_more({"tokens": 40.0, "calls": 10.0, "cost": 5.0})

    amounts = {limit.name: limit.amount for limit in raised}
    assert amounts == {"tokens/total": 140, "calls/total": 50, "tokens": 30, "cost": 1}
    assert (raised.total("tokens").threshold, raised.risk) == (0.9, 0.02)  # type: ignore[union-attr]
    assert budget.with_more({}) is budget
