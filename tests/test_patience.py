"""What fails for a reason that may pass is tried again, within a grace."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FakeClock

from perpetual_blocks.patience import IMPATIENT, LONGEST_PAUSE, Patience, pause_after


def failing_until(clock: FakeClock, moment: float) -> Callable[[], str]:
    """Something that is away until then."""

    def attempt() -> str:
        if clock.monotonic() < moment:
            raise ConnectionError("away")
        return "here"

    return attempt


def may_pass(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_pauses_grow_to_a_bound(failures: int, luck: float) -> None:
    """Each pause is twice the one before, up to the longest, and luck takes at most half of it away."""
    full = pause_after(failures, 0.0)

    assert full / 2 <= pause_after(failures, luck) <= full <= LONGEST_PAUSE
    assert pause_after(failures + 1, 0.0) == min(2 * full, LONGEST_PAUSE)


@given(st.floats(0, 60), st.floats(0, 1))
def test_what_comes_back_in_time_is_as_if_it_had_never_been_away(away: float, luck: float) -> None:
    """Within the grace the answer comes, and not much later than it could."""
    clock = FakeClock()

    assert Patience(60.0, clock, luck=lambda: luck)(failing_until(clock, away), may_pass) == "here"

    assert away <= clock.monotonic() <= away + LONGEST_PAUSE


def test_the_grace_is_not_overstayed() -> None:
    """What is away for longer raises its own error, at the end of the grace."""
    clock = FakeClock()

    with pytest.raises(ConnectionError):
        Patience(60.0, clock)(failing_until(clock, 61.0), may_pass)

    assert clock.monotonic() == pytest.approx(60.0)


def test_a_grace_that_began_earlier_ends_earlier() -> None:
    """Of a grace that others have used a part of, the rest is left; of one that is over, a single attempt."""
    clock = FakeClock()
    clock.advance(100)

    with pytest.raises(ConnectionError):
        Patience(60.0, clock)(failing_until(clock, 1000.0), may_pass, since=70.0)
    assert clock.monotonic() == pytest.approx(130.0)
    with pytest.raises(ConnectionError):
        Patience(60.0, clock)(failing_until(clock, 1000.0), may_pass, since=10.0)
    assert clock.monotonic() == pytest.approx(130.0)


def test_what_will_not_pass_is_not_waited_for() -> None:
    """An error of another kind, or one without any patience, is raised at once."""
    clock = FakeClock()

    with pytest.raises(ConnectionError):
        Patience(60.0, clock)(failing_until(clock, 1.0), lambda _error: False)
    with pytest.raises(ConnectionError):
        IMPATIENT(failing_until(clock, 1.0), may_pass)

    assert clock.monotonic() == 0


def test_whoever_has_no_time_left_can_end_the_waiting() -> None:
    """Once it is over, the error is raised without another pause."""
    clock = FakeClock()
    patience = Patience(60.0, clock)
    patience.over.set()

    with pytest.raises(ConnectionError):
        patience(failing_until(clock, 1.0), may_pass)

    assert clock.monotonic() == 0
