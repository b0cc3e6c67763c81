"""How many agents are to work: decisions alone, in microseconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.orchestration import (
    KEPT_SECONDS,
    LONGEST_MEASURE_SECONDS,
    MEASURE_SECONDS,
    SETTLE_SECONDS,
    Bounds,
    Decision,
    Situation,
    Throughput,
    affordable,
    agent_name,
    agents_wanted,
)

MANY = 10_000


@pytest.mark.parametrize(("text", "bounds"), [("4", Bounds(4, 4)), ("2-8", Bounds(2, 8)), ("1", Bounds(1, 1))])
def test_bounds_are_read(text: str, bounds: Bounds) -> None:
    assert Bounds.parse(text) == bounds
    assert str(bounds) == text


@pytest.mark.parametrize("text", ["", "0", "-3", "8-2", "two", "1-2-3", "1000", "2.5"])
def test_what_no_bounds_are(text: str) -> None:
    with pytest.raises(InvalidInput, match="agents: got"):
        Bounds.parse(text)


def test_agents_are_named_by_their_queue() -> None:
    assert [agent_name("docs", number) for number in (1, 2, 11)] == ["docs", "docs-2", "docs-11"]
    with pytest.raises(InvalidInput, match="chain: got"):
        agent_name("d" * 63, 2)


@pytest.mark.parametrize(
    ("seen", "agents"),
    [
        # As many as are wanted, when there are so many.
        (Situation(going=0, to_do=MANY), 4),
        (Situation(going=4, to_do=MANY), 4),
        (Situation(going=6, to_do=MANY), 4),
        # The owner alone while the queue is being planned.
        (Situation(going=0, to_do=0, planned=False), 1),
        (Situation(going=1, to_do=5, planned=False), 1),
        # None more than there are items; those that find none end by themselves.
        (Situation(going=1, to_do=3), 3),
        (Situation(going=3, to_do=1), 3),
        (Situation(going=0, to_do=0), 0),
        # Those that are wanted anyway begin though others wait: it is their quota, too.
        (Situation(going=2, to_do=MANY, held_back=2), 4),
    ],
)
def test_a_fixed_number(seen: Situation, agents: int) -> None:
    assert agents_wanted(seen, Bounds(4, 4)).agents == agents


@pytest.mark.parametrize(
    ("going", "rates", "agents"),
    [
        # One after the other, once it is known what those before do; half as many more at a time.
        (0, {}, 1),
        (1, {}, 1),
        (1, {1: 5.0}, 2),
        (2, {1: 5.0}, 2),
        (2, {1: 5.0, 2: 9.5}, 3),
        (4, {2: 9.5, 4: 18.0}, 6),
        (7, {4: 18.0, 7: 30.0}, 8),
        (8, {4: 18.0, 7: 30.0, 8: 33.0}, 8),
        # Back where they have not brought a fifth of what each of those before does.
        (6, {4: 18.0, 6: 18.5}, 4),
        (2, {1: 5.0, 2: 5.9}, 1),
        (2, {1: 5.0, 2: 3.0}, 1),
        # And not again, as long as that is known.
        (4, {4: 18.0, 6: 18.5}, 4),
        (1, {1: 5.0, 2: 3.0}, 1),
        (4, {2: 9.5, 4: 18.0, 6: 27.0}, 6),
        # A machine on which nothing was finished says nothing.
        (2, {1: 0.0, 2: 0.5}, 3),
        (2, {1: 0.0, 2: 0.0}, 1),
        # More than there may be: fewer bounds than before.
        (12, {}, 8),
    ],
)
def test_as_many_as_bring_something(going: int, rates: dict[int, float], agents: int) -> None:
    assert agents_wanted(Situation(going=going, to_do=MANY, rates=rates), Bounds(1, 8)).agents == agents


def test_none_more_while_some_wait_for_a_quota() -> None:
    """They would use the same one."""
    seen = Situation(going=2, held_back=1, to_do=MANY, rates={1: 5.0, 2: 10.0})
    assert agents_wanted(seen, Bounds(1, 8)) == Decision(2, "1 wait for a quota: more would wait too")


@pytest.mark.parametrize(
    ("left", "per_unit", "wanted", "going", "agents"),
    [
        (10.0, 1.0, 6, 2, 6),
        (3.5, 1.0, 6, 2, 3),
        (0.0, 1.0, 6, 2, 2),
        (-1.0, 1.0, 6, 2, 2),
        (0.0, 0.0, 6, 2, 6),  # nobody knows what a unit costs: it is reserved before it is spent
    ],
)
def test_a_pool_has_room_for_so_many(left: float, per_unit: float, wanted: int, going: int, agents: int) -> None:
    assert affordable(left, per_unit, wanted, going) == agents


@given(
    going=st.integers(0, 30),
    held_back=st.integers(0, 30),
    planned=st.booleans(),
    to_do=st.integers(0, 100),
    rates=st.dictionaries(st.integers(1, 30), st.floats(0, 1e6), max_size=6),
    least=st.integers(1, 10),
    more=st.integers(0, 20),
)
def test_it_stays_within_its_bounds(
    going: int, held_back: int, planned: bool, to_do: int, rates: dict[int, float], least: int, more: int
) -> None:
    """Whatever is seen: no more than there may be, no fewer than are wanted where there is work for them."""
    bounds = Bounds(least, least + more)
    seen = Situation(going=going, held_back=held_back, planned=planned, to_do=to_do, rates=rates)

    wanted = agents_wanted(seen, bounds)

    assert wanted.agents <= bounds.most
    assert wanted.agents >= min(bounds.least, max(to_do, going)) or not planned
    assert wanted.agents <= max(going, to_do, 1)
    assert wanted.why


# Measuring ------------------------------------------------------------------------------------------------------------


def measured(*stretches: tuple[int, float, float]) -> Throughput:
    """What is measured while so many agents work for so many seconds at so many units a second."""
    throughput, now, units = Throughput(), 0.0, 0.0
    for agents, seconds, per_second in stretches:
        for _ in range(int(seconds)):
            throughput.observe(now, agents, int(units))
            now, units = now + 1, units + per_second
    throughput.observe(now, agents, int(units))
    return throughput


def test_numbers_of_agents_are_measured() -> None:
    """Each for as long as it stays the same, without the time in which a session begins or ends."""
    rates = measured((1, 100, 5.0), (2, 100, 9.0), (3, 20, 1.0)).known(220)

    assert set(rates) == {1, 2}
    assert rates[1] == pytest.approx(5.0, rel=0.05)
    assert rates[2] == pytest.approx(9.0, rel=0.05)


def test_few_units_say_little() -> None:
    """Long ones are waited for, but not for ever."""
    soon = SETTLE_SECONDS + MEASURE_SECONDS + 2
    assert measured((2, soon, 0.1)).rates == {}
    assert set(measured((2, SETTLE_SECONDS + LONGEST_MEASURE_SECONDS + 2, 0.01)).rates) == {2}
    assert set(measured((2, soon, 1.0)).rates) == {2}


def test_what_was_measured_long_ago_does_not_count() -> None:
    """What limits agents may have changed."""
    throughput = measured((2, 100, 5.0))
    at = throughput.rates[2].at
    assert throughput.known(at + KEPT_SECONDS - 1) != {}
    assert throughput.known(at + KEPT_SECONDS) == {}


def test_agents_without_work_are_not_measured() -> None:
    assert measured((0, 1000, 5.0)).rates == {}
