"""The threads of a session's units: waited for, interrupted or left behind, as the time allows."""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from threading import Event, current_thread, main_thread
from typing import Any

import pytest
from support import FakeClock

from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.crew import PATIENCE_SECONDS, Crew, LeftBehind
from perpetual_blocks.session.stop import StopRequest

SIGNAL = StopReason("signal", "the process was asked to end")
VARIABLE: ContextVar[str] = ContextVar("variable", default="not set")


class Ended(Exception):
    """What an interrupted unit raises."""


class PatientClock(FakeClock):
    """Waits for what is to come, as long as it takes; the time stands still meanwhile."""

    def wait(self, event: Event, seconds: float) -> bool:
        assert seconds > 0, "it was not waited for any longer"
        return event.wait(30)


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


class OneByOne(Crew[str]):
    """Does one piece of work, and hands over what came of it."""

    def run(self, unit: Callable[[], Any], interrupt: Callable[[], bool], shutdown: Callable[[], float]) -> Any:
        came: list[Any] = []
        self.start("unit", lambda: came.append(unit()))
        ended = self.next(interrupt, shutdown)
        if ended.error is not None:
            raise ended.error
        return came[0]


@pytest.fixture
def units(clock: FakeClock, stop: StopRequest) -> Iterator[OneByOne]:
    """Threads on the fake clock: when nothing else happens, the time passes at once."""
    crew = OneByOne(clock, stop)
    yield crew
    crew.close()


def cannot() -> bool:
    return False


def seconds(amount: float) -> Callable[[], float]:
    return lambda: amount


def test_units_run_one_after_the_other_in_one_daemon_thread(units: OneByOne) -> None:
    """What a unit opens, an event loop say, is there for the next; the thread does not keep the process."""
    first, second = (units.run(current_thread, cannot, seconds(5)) for _ in range(2))

    assert first is second
    assert first is not main_thread()
    assert first.daemon


def test_a_unit_finds_its_context(units: OneByOne) -> None:
    """Context variables, through which Prefect finds the flow run, are there in the unit's thread."""
    token = VARIABLE.set("of the session")
    try:
        assert units.run(VARIABLE.get, cannot, seconds(5)) == "of the session"
    finally:
        VARIABLE.reset(token)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_unit_raises_is_raised(units: OneByOne, error: BaseException) -> None:
    """Whatever it is, also what would end the process; the next unit runs all the same."""

    def unit() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        units.run(unit, cannot, seconds(5))

    assert raised.value is error
    assert units.run(seconds(1), cannot, seconds(5)) == 1


def test_a_unit_that_ends_in_time_is_waited_for(stop: StopRequest) -> None:
    """A signal while it runs changes nothing for it when it fits into the time that is left."""
    units, asked = OneByOne(PatientClock(), stop), Event()

    def unit() -> str:
        stop.ask(SIGNAL, by=30)
        asked.set()
        return "done"

    assert units.run(unit, cannot, seconds(5)) == "done"
    assert asked.is_set()
    assert not units.interrupted
    units.close()


def test_a_unit_is_waited_for_while_nobody_says_when_the_process_is_killed(units: OneByOne, stop: StopRequest) -> None:
    """A stop without a deadline, a person's pause say, lets the running unit finish."""
    stop.ask(StopReason("asked", "a person paused the chain"))

    assert units.run(seconds(7), cannot, seconds(5)) == 7


@pytest.mark.parametrize(
    ("shutdown", "left_at"), [(5.0, 25.0), (12.0, 18.0), (28.0, 15.0)], ids=["quick", "slow", "hardly fits"]
)
def test_a_unit_that_cannot_be_ended_is_left_behind(
    units: OneByOne, clock: FakeClock, stop: StopRequest, shutdown: float, left_at: float
) -> None:
    """The shutdown has the time that it will probably need, but the unit has half of what there is."""
    never = Event()

    def unit() -> None:
        stop.ask(SIGNAL, by=30)
        never.wait()

    with pytest.raises(LeftBehind):
        units.run(unit, cannot, seconds(shutdown))

    assert clock.monotonic() == left_at
    never.set()


def test_an_interrupted_unit_is_heard_out(stop: StopRequest) -> None:
    """A unit that can be ended is, when its time is up; what it raises is raised, and it is known why."""
    end = Event()

    class Clock(FakeClock):
        """Lets the time pass until the unit is ended."""

        def wait(self, event: Event, seconds: float) -> bool:
            return event.wait(30) if end.is_set() else super().wait(event, seconds)

    units = OneByOne(Clock(), stop)

    def unit() -> None:
        stop.ask(SIGNAL, by=30)
        end.wait()
        raise Ended

    def interrupt() -> bool:
        end.set()
        return True

    with pytest.raises(Ended):
        units.run(unit, interrupt, seconds(5))

    assert units.interrupted
    units.close()


def test_a_unit_that_does_not_end_when_it_is_interrupted_is_left_behind(
    units: OneByOne, clock: FakeClock, stop: StopRequest
) -> None:
    """It has a moment to end in, and no more."""
    never = Event()

    def unit() -> None:
        stop.ask(SIGNAL, by=30)
        never.wait()

    with pytest.raises(LeftBehind):
        units.run(unit, lambda: True, seconds(10))

    assert clock.monotonic() == 20 + PATIENCE_SECONDS
    never.set()


def test_a_second_request_wakes_the_session_and_changes_nothing(
    units: OneByOne, clock: FakeClock, stop: StopRequest
) -> None:
    """A person's request, then a signal, then another: the first reason and the first deadline count."""
    never = Event()

    def unit() -> None:
        stop.ask(StopReason("asked", "a person paused the chain"))
        stop.ask(SIGNAL, by=30)
        stop.ask(SIGNAL, by=40)
        never.wait()

    with pytest.raises(LeftBehind):
        units.run(unit, cannot, seconds(5))

    assert (clock.monotonic(), stop.by) == (25, 30)
    assert stop.reason is not None
    assert stop.reason.code == "asked"
    never.set()
