"""How far a chain goes by itself: pure decisions on its record."""

from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.manners import (
    MOST_CRASHED,
    MOST_EVICTED,
    MOST_IDLE,
    Manners,
    after_crash,
    back_off,
    restrain,
)

NOW = 1_700_000_000.0
GOES_ON = Ending(
    SessionState.WRAPPED, ChainStatus.WAITING, StopReason("budget:tokens", "900 of 1,000 tokens"), goes_on=True
)


def chain(manners: Manners | None = None, **changes: Any) -> Chain:
    """A chain that is at work."""
    fields: dict[str, Any] = {
        "name": "mine",
        "uid": "0123",
        "agent": "Tester",
        "status": ChainStatus.RUNNING,
        "reason": "",
        "ordinal": 1,
        "epoch": 1,
        "holder": None,
        "lease_until": 0.0,
        "planned": True,
        "context": {},
        "settings": {"manners": manners.to_json()} if manners else {},
        "created_at": NOW,
        "updated_at": NOW,
    }
    return Chain(**{**fields, **changes})


def session(ordinal: int, **changes: Any) -> SessionRecord:
    """A session that ended for its budget, ten seconds after it began, without having finished anything."""
    record = SessionRecord(
        ordinal=ordinal,
        epoch=ordinal,
        state=SessionState.WRAPPED,
        flow_run_id=f"run-{ordinal}",
        deployment_id="deployment",
        host="here",
        pid=1,
        process_started=0.0,
        started_at=NOW + 20 * ordinal,
        ended_at=NOW + 20 * ordinal + 10,
        stop_reason="budget:tokens",
    )
    return replace(record, **changes)


def many(count: int, **changes: Any) -> list[SessionRecord]:
    return [session(ordinal, **changes) for ordinal in range(1, count + 1)]


CRASHED = {"state": SessionState.CRASHED, "stop_reason": "crashed"}
EVICTED = {"stop_reason": "signal"}


def test_a_chain_that_makes_progress_goes_on_for_ever() -> None:
    """A thousand sessions with a unit each are nothing to be held back for."""
    assert restrain(GOES_ON, chain(), many(1000, units=1), NOW) == GOES_ON


@pytest.mark.parametrize("progress", [{"units": 1}, {"attempts": 1}])
def test_two_sessions_without_progress_are_the_last(progress: dict[str, int]) -> None:
    """Two in a row that have finished no unit, and tried none, stall the chain; a unit, or an attempt, is progress."""
    held = restrain(GOES_ON, chain(), [session(1, **progress), session(2), session(3)], NOW)
    assert (held.session, held.chain, held.goes_on) == (SessionState.STALLED, ChainStatus.STALLED, False)
    assert held.reason.code == "no-progress"
    assert "900 of 1,000 tokens" in held.reason.message, "why the last one stopped"

    for sessions in ([session(1)], [session(1), session(2, **progress)], [session(1, **progress), session(2)]):
        assert restrain(GOES_ON, chain(), sessions, NOW) == GOES_ON


def test_waiting_is_no_loop() -> None:
    """A chain that wakes up for its quota in vain, again and again, waits in between: it may."""
    waits = replace(GOES_ON, reason=replace(GOES_ON.reason, resume_at=NOW + 3600))
    assert restrain(waits, chain(), many(5), NOW) == waits
    an_hour_apart = [session(n, started_at=NOW + 3600 * n, ended_at=NOW + 3600 * n + 1) for n in range(1, 6)]
    assert restrain(GOES_ON, chain(), an_hour_apart, NOW) == GOES_ON


def test_evictions_have_a_budget_of_their_own() -> None:
    """Being asked to end is no fault of the chain: only many in a row, with nothing done in between, end it."""
    assert restrain(GOES_ON, chain(), many(MOST_EVICTED - 1, **EVICTED), NOW) == GOES_ON
    held = restrain(GOES_ON, chain(), many(MOST_EVICTED, **EVICTED), NOW)
    assert (held.chain, held.reason.code) == (ChainStatus.STALLED, "evicted")
    assert restrain(GOES_ON, chain(), [*many(20, **EVICTED), session(21, units=1, **EVICTED)], NOW) == GOES_ON
    mixed = [session(1), *[session(n, **EVICTED) for n in range(2, 6)]]
    assert restrain(GOES_ON, chain(), mixed, NOW) == GOES_ON, "one idle session among evicted ones"


def test_a_crash_loop_backs_off_and_ends() -> None:
    """The first crash is followed at once, the next ones later and later, the last one by nothing."""
    waits = []
    for count in range(1, MOST_CRASHED):
        end = after_crash(chain(), many(count, **CRASHED), NOW)
        assert (end.chain, end.goes_on, end.reason.code) == (ChainStatus.WAITING, True, "crashed")
        waits.append((end.reason.resume_at or NOW) - NOW)
    assert waits == [0, 2, 4, 8, 16, 32, 64]
    end = after_crash(chain(), many(MOST_CRASHED, **CRASHED), NOW)
    assert (end.chain, end.goes_on, end.reason.code) == (ChainStatus.STALLED, False, "crash-loop")
    assert str(MOST_CRASHED) in end.reason.message


def test_a_crash_after_some_work_starts_the_count_again() -> None:
    """A machine that ends every ten minutes is no crash loop as long as units are finished."""
    end = after_crash(chain(), [*many(MOST_CRASHED, **CRASHED), session(9, units=1, **CRASHED)], NOW)
    assert (end.chain, end.reason.resume_at) == (ChainStatus.WAITING, None)


@given(st.integers(0, 10_000))
def test_back_off_never_shrinks_and_is_bounded(crashed: int) -> None:
    """Each crash in a row waits at least as long as the one before, and never more than five minutes."""
    assert 0 <= back_off(crashed) <= back_off(crashed + 1) <= 300


def test_max_sessions() -> None:
    """The session that reaches the maximum is the last one, whoever started it."""
    manners = Manners(max_sessions=3)
    assert restrain(GOES_ON, chain(manners), many(2, units=1), NOW) == GOES_ON
    held = restrain(GOES_ON, chain(manners), many(3, units=1), NOW)
    assert (held.chain, held.reason.code) == (ChainStatus.STALLED, "max-sessions")


def test_unattended_sessions_end_with_a_question() -> None:
    """After so many sessions by themselves the chain is Paused, and a follow-on is kept for when a person resumes."""
    manners = Manners(unattended_sessions=2)
    assert restrain(GOES_ON, chain(manners, attended=4), many(5, units=1), NOW) == GOES_ON
    held = restrain(GOES_ON, chain(manners, attended=4), many(6, units=1), NOW)
    assert (held.session, held.chain, held.goes_on) == (SessionState.PAUSED, ChainStatus.PAUSED, True)
    assert "perpetual resume mine" in held.reason.message


def test_unattended_cost() -> None:
    """Dollars count from the session that a person started, that one included."""
    manners = Manners(unattended_cost=1.0)
    sessions = many(4, units=1, usage={"cost": 0.4})
    assert restrain(GOES_ON, chain(manners, attended=3), sessions, NOW) == GOES_ON
    held = restrain(GOES_ON, chain(manners, attended=2), sessions, NOW)
    assert (held.chain, held.reason.code) == (ChainStatus.PAUSED, "unattended")
    assert "$1.20" in held.reason.message


@pytest.mark.parametrize("code", ["finished", "stalled"])
def test_a_chain_that_ends_is_left_alone(code: str) -> None:
    """What does not go on needs no holding back."""
    over = Ending(SessionState.FINISHED, ChainStatus(code), StopReason("queue-empty", ""), goes_on=False)
    assert restrain(over, chain(Manners(max_sessions=1)), many(9), NOW) == over


def berlin(day: int, hour: int, minute: int = 0) -> float:
    return datetime(2026, 11, day, hour, minute, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


NIGHT = Manners(quiet_hours="22:00-07:00 Europe/Berlin")


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (berlin(20, 21, 59), None),
        (berlin(20, 22), berlin(21, 7)),
        (berlin(21, 0), berlin(21, 7)),
        (berlin(21, 6, 59), berlin(21, 7)),
        (berlin(21, 7), None),
    ],
)
def test_quiet_hours_over_midnight(now: float, until: float | None) -> None:
    """They begin with their first minute and end with their last, in their own time zone."""
    assert NIGHT.quiet_until(now) == until


def test_quiet_hours_hold_a_follow_on_back() -> None:
    """What would start within them starts at their end; what starts outside, when it would."""
    at_night = restrain(GOES_ON, chain(NIGHT), [session(1, units=1)], berlin(20, 23))
    assert at_night.reason.resume_at == berlin(21, 7)
    assert at_night.chain is ChainStatus.WAITING
    later = replace(GOES_ON, reason=replace(GOES_ON.reason, resume_at=berlin(21, 3)))
    assert restrain(later, chain(NIGHT), [session(1, units=1)], berlin(20, 12)).reason.resume_at == berlin(21, 7)
    assert restrain(GOES_ON, chain(NIGHT), [session(1, units=1)], berlin(20, 12)) == GOES_ON


@given(st.floats(NOW, NOW + 400 * 86400), st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]))
def test_quiet_hours_end(now: float, zone: str) -> None:
    """Whatever the clocks do: quiet hours that it is now end within a day, and the next ones begin within two."""
    manners = Manners(quiet_hours=f"01:30-03:30 {zone}")
    until, begins = manners.quiet_until(now), manners.quiet_from(now)
    assert until is None or now < until <= now + 86400
    assert begins is not None
    assert now < begins <= now + 2 * 86400
    assert manners.quiet_until(begins) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_sessions", 0),
        ("max_sessions", 1.5),
        ("max_sessions", True),
        ("unattended_sessions", -1),
        ("unattended_cost", 0),
        ("unattended_cost", float("nan")),
        ("quiet_hours", "22-07"),
        ("quiet_hours", "25:00-07:00"),
        ("quiet_hours", "22:00-07:00 Mars/Base"),
        ("quiet_hours", "22:00-22:00"),
        ("quiet_hours", 5),
    ],
)
def test_wrong_manners(field: str, value: Any) -> None:
    """Each is one line that names the field and the value, when it is written down."""
    with pytest.raises(InvalidInput) as refused:
        Manners(**{field: value})
    one_line(refused.value, f"Manners.{field}", repr(value), "expected")


def test_manners_go_through_the_chain_s_settings() -> None:
    """What is kept with the chain is what was said."""
    manners = Manners(max_sessions=3, unattended_cost=2.5, quiet_hours="22:00-07:00 Europe/Berlin")
    assert Manners.of({"manners": manners.to_json()}) == manners
    assert Manners.of({}) == Manners()


def test_most_idle_is_two() -> None:
    """No progress in two sessions running is what stalls a chain."""
    assert MOST_IDLE == 2
