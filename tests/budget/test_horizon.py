"""When a session will end: pure decisions from readings and from what units have cost."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Forecast, Limit, Reading
from perpetual_blocks.budget.horizon import Horizon, Sight, horizon

NOTHING = Forecast()


def learned(*costs: float) -> Forecast:
    """A forecast that has seen units of these costs."""
    forecast = Forecast()
    for cost in costs:
        forecast.learn(cost)
    return forecast


def reading(used: float, limit: Limit, forecast: Forecast = NOTHING) -> Reading:
    return Reading(limit, used, limit.amount, forecast)


def tokens(amount: float = 1000, **more: object) -> Limit:
    return Limit("tokens", amount, **({"threshold": 1.0} | more))  # type: ignore[arg-type]


def seen(at: float, units: int, **used: float) -> Sight:
    return Sight(at, units, used)


START = seen(0, 0, tokens=0.0, seconds=0.0, calls=0.0)


def test_a_session_ends_at_the_pace_at_which_it_went() -> None:
    """Ten units took 20 seconds and 400 of 1,000 tokens: 15 more fit, in half a minute."""
    found = horizon([reading(400, tokens())], NOTHING, START, seen(20, 10, tokens=400))
    assert found == Horizon(15, 30.0)


def test_it_ends_at_the_end_of_a_unit() -> None:
    """What is left is begun with: with 390 seconds left and units of 400, the end is 400 seconds off."""
    limit = Limit("seconds", 800, threshold=1.0)
    found = horizon([reading(410, limit)], NOTHING, seen(0, 0, seconds=10), seen(400, 1, seconds=410))
    assert found == Horizon(1, 400.0)


def test_the_nearest_limit_ends_it() -> None:
    """Of several limits the one that is used up first decides; one that nothing is used of does not."""
    limits = [reading(400, tokens()), reading(20, Limit("seconds", 30, threshold=1.0)), reading(0, Limit("calls", 3))]
    found = horizon(limits, NOTHING, START, seen(20, 10, tokens=400, seconds=20, calls=0))
    assert found == Horizon(5, 10.0)


def test_units_of_earlier_sessions_speak_before_those_of_this_one_do() -> None:
    """Before the first unit, the mean of the forecasts; until three were measured, too."""
    forecast, seconds = learned(*[100.0] * 50), learned(*[4.0] * 50)
    for units, at in ((0, 0.0), (2, 1.0)):
        used = 100.0 * units
        found = horizon([reading(used, tokens(), forecast)], seconds, START, seen(at, units, tokens=used))
        assert found is not None
        assert (found.units, found.seconds) == (10 - units, pytest.approx(4.0 * (10 - units), rel=0.1))


def test_nothing_known() -> None:
    """Without a limit, or before anything was seen or learned, nothing is foretold."""
    assert horizon([], NOTHING, START, seen(20, 10)) is None
    assert horizon([reading(0, tokens())], NOTHING, START, START) is None
    assert horizon([reading(400, tokens())], NOTHING, START, seen(0, 10, tokens=400)) is None


def test_what_the_chain_would_have_to_wait_for_comes_first() -> None:
    """Where a window or a total is used up before the session's own limits, there is no follow-on at once."""
    own = reading(400, tokens())
    for limit in (Limit("calls", 20, scope="window", window="day"), Limit("calls", 20, scope="total")):
        now = seen(20, 10, **{"tokens": 400, limit.name: 10.0})  # type: ignore[arg-type]
        before = seen(0, 0, **{"tokens": 0.0, limit.name: 0.0})  # type: ignore[arg-type]
        assert horizon([own, reading(10, limit)], NOTHING, before, now) is None
        wide = Limit("calls", 2000, scope=limit.scope, window=limit.window)
        before, now = (Sight(one.at, one.units, {**one.used, wide.name: one.units}) for one in (before, now))
        assert horizon([own, reading(10, wide)], NOTHING, before, now) is not None


def test_a_session_that_is_long_enough_ends_before_its_budget_does() -> None:
    """The best length by cost is an end like any other."""
    now = seen(20, 10, tokens=400)
    assert horizon([reading(400, tokens())], NOTHING, START, now, most_units=4.5) == Horizon(5, 10.0)
    assert horizon([], NOTHING, START, now, most_units=2) == Horizon(2, 4.0)


def test_a_threshold_is_the_end() -> None:
    """Fixed and adaptive rules stop below the whole amount."""
    now = seen(20, 10, tokens=400)
    fixed, adaptive = tokens(threshold=0.8), tokens(threshold=None, rule="adaptive")
    assert horizon([reading(400, fixed)], NOTHING, START, now) == Horizon(10, 20.0)
    assert horizon([reading(400, adaptive)], NOTHING, START, now) == Horizon(12, 24.0)


def test_forecasts_stop_before_a_unit_that_may_not_fit() -> None:
    """With the predictive rule, room for one dear unit stays unused."""
    forecast = learned(*[20.0, 60.0] * 100)
    now = seen(20, 10, tokens=400)
    found = horizon([reading(400, Limit("tokens", 1000), forecast)], NOTHING, START, now)
    assert found is not None
    assert 10 <= found.units <= 14, "the room is 600, less a unit of 60 or more"


def test_a_session_that_goes_on_has_units_that_fit() -> None:
    """One dear unit was seen of five, so another might come; but it was bounded, as the session works on."""
    now = seen(20, 10, tokens=850)
    forecast = learned(20.0, 20.0, 20.0, 20.0, 200.0)
    assert horizon([reading(850, Limit("tokens", 1000), forecast)], NOTHING, START, now) == Horizon(2, 4.0)


def test_what_memory_ends_is_not_foretold() -> None:
    """The next process would take of the same memory. Memory that stays where it is, or lasts longer than something
    else does, ends nothing."""
    memory, tokens = Limit("memory", 1000, threshold=1.0), Limit("tokens", 600, threshold=1.0)
    flat, grown = seen(20, 10, memory=400, tokens=100), seen(20, 10, memory=500, tokens=100)
    before = seen(0, 0, memory=400, tokens=0)
    assert horizon([reading(500, memory)], NOTHING, before, grown) is None
    assert horizon([reading(400, memory), reading(100, tokens)], NOTHING, before, flat) == Horizon(50, 100.0)
    assert horizon([reading(500, memory), reading(100, tokens)], NOTHING, before, grown) is None
    assert horizon([reading(450, memory), reading(100, tokens)], NOTHING, before, seen(20, 10, memory=450, tokens=100))


@given(
    amount=st.floats(1, 1e9),
    share=st.floats(0, 2),
    units=st.integers(1, 10_000),
    seconds=st.floats(0, 1e6),
    most=st.one_of(st.just(inf), st.floats(0, 1e6)),
    costs=st.lists(st.floats(0, 1e9), max_size=5),
)
def test_an_end_is_never_in_the_past(
    amount: float, share: float, units: int, seconds: float, most: float, costs: list[float]
) -> None:
    """Whatever was used and learned: no end, or one that is not in the past and not beyond the most."""
    limits = [Limit("tokens", amount), tokens(amount), Limit("cost", amount, scope="window", window="day")]
    now = Sight(seconds, units, {limit.name: amount * share for limit in limits})
    before = Sight(0.0, 0, {limit.name: 0.0 for limit in limits})
    for chosen in ([limits[0]], [limits[1]], limits[1:]):
        readings = [reading(amount * share, limit, learned(*costs)) for limit in chosen]
        found = horizon(readings, learned(*costs), before, now, most_units=most)
        assert found is None or (0 <= found.units < most + 1 and 0 <= found.seconds < inf)
