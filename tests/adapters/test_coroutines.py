"""Async units: awaited in one event loop, and cancelled when there is no time for them."""

import asyncio
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
from support import FakeClock, some_item

from perpetual_blocks.adapters.coroutines import Coroutines
from perpetual_blocks.budget.room import Room
from perpetual_blocks.work import CutOff, Unit


@pytest.fixture
def coroutines() -> Iterator[Coroutines]:
    made = Coroutines()
    yield made
    made.close()


def a_unit(**amounts: float) -> Unit:
    return Unit(some_item(), {}, Room(amounts))


async def sleep() -> None:
    await asyncio.sleep(60)


def test_units_share_an_event_loop(coroutines: Coroutines) -> None:
    """What one unit opens, the next one may use."""

    async def loop() -> Any:
        return asyncio.get_running_loop()

    assert coroutines.run(loop(), a_unit()) is coroutines.run(loop(), a_unit())


def test_a_unit_is_cancelled_when_its_time_is_up(coroutines: Coroutines) -> None:
    """The text says so; an agent's own timeout is its own."""

    async def impatient() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    with pytest.raises(CutOff, match="a: unit 1 ran until its time was up"):
        coroutines.run(sleep(), a_unit(seconds=0.05))
    with pytest.raises(TimeoutError):
        coroutines.run(impatient(), a_unit(seconds=60))


def test_a_unit_is_interrupted_from_another_thread(coroutines: Coroutines) -> None:
    """At its next `await`, with time to clean up; the next unit runs in the same loop."""
    began, cleaned = Event(), []

    async def work() -> None:
        try:
            began.set()
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    def interrupt() -> None:
        assert began.wait(30)
        assert coroutines.interrupt()

    thread = Thread(target=interrupt)
    thread.start()
    with pytest.raises(CutOff) as cut:
        coroutines.run(work(), a_unit())
    thread.join()

    assert str(cut.value) == "a: unit 1 was interrupted, as the process is about to end"
    assert cleaned == [True]
    assert coroutines.run(asyncio.sleep(0, "awaited"), a_unit()) == "awaited"


def test_a_cancellation_of_its_own_is_not_taken_for_an_interruption(coroutines: Coroutines) -> None:
    """What a unit does to itself is not our doing."""

    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        coroutines.run(work(), a_unit())


def test_nothing_is_interrupted_when_nothing_is_awaited(coroutines: Coroutines) -> None:
    """Before the first unit, and after one."""
    assert not coroutines.interrupt()
    coroutines.run(asyncio.sleep(0), a_unit())
    assert not coroutines.interrupt()


def test_what_was_left_behind_is_not_torn_down(clock: FakeClock) -> None:
    """A unit that does not let itself be cancelled keeps its loop: closing says nothing and does nothing."""
    coroutines, began, end, done = Coroutines(), Event(), Event(), Event()

    async def deaf() -> None:
        began.set()
        end.wait()
        done.set()

    thread = Thread(target=lambda: coroutines.run(deaf(), a_unit()), daemon=True)
    thread.start()
    assert began.wait(30)
    assert coroutines.interrupt()

    coroutines.close()

    end.set()
    thread.join(30)
    assert done.is_set()
    coroutines.close()
