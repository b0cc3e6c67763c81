"""When a unit that failed is tried again, and when no more."""

from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.session.attempts import MOST_BACK_OFF_SECONDS, back_off, quarantine
from perpetual_blocks.usage import define_resource


def test_each_wait_is_four_times_as_long_up_to_five_minutes() -> None:
    """Two seconds after the first failed attempt, never more than five minutes after any."""
    assert [back_off(attempts) for attempts in range(1, 7)] == [2, 8, 32, 128, 300, 300]


@given(st.integers(1, 2**31 - 1))
def test_no_attempt_is_too_many_to_wait_for(attempts: int) -> None:
    """However often an item has failed, its wait is a number, and no shorter than the one before."""
    assert back_off(attempts) <= back_off(attempts + 1) <= MOST_BACK_OFF_SECONDS


def test_what_has_used_more_than_a_whole_session_is_given_up() -> None:
    """The reason names what was used, and the limit; exactly a session's amount is not more than it."""
    budget = Budget(tokens=200_000, cost=2)

    assert quarantine({"tokens": 200_000, "cost": 2.0}, budget) is None
    assert quarantine({"tokens": 210_000}, budget) == (
        "quarantined: its failed attempts have used 210,000 tokens, more than a whole session's 200,000 tokens"
    )
    assert "$2.50, more than a whole session's $2.00" in (quarantine({"cost": 2.5}, budget) or "")


def test_only_what_adds_up_in_a_session_counts() -> None:
    """Time passes for all, gauges have no sum, and windows and totals are nobody's own; counters of one's own count."""
    define_resource("pages", "counter", "pages")
    lasting = [
        Limit("calls", 5, scope="window", window="day"),
        Limit("tokens", 5, scope="total"),
        Limit("cost", 5, scope="total", pool="team"),
    ]
    much = {"seconds": 99.0, "memory": 99.0, "cpu_seconds": 99.0, "calls": 99.0, "tokens": 99.0, "cost": 99.0}

    assert quarantine(much, Budget(*lasting, seconds=5, memory=5, cpu_seconds=5)) is None
    assert "99 pages" in (quarantine({"pages": 99.0}, Budget(pages=5)) or "")
    assert quarantine(much, Budget()) is None
