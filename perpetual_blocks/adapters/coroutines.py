"""Async units: coroutines in one event loop for a whole session, that can be cancelled from another thread."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from perpetual_blocks.work import Unit

T = TypeVar("T")


class Coroutines:
    """Awaits the work of async units, all in one event loop, so that what they open lives on from unit to unit."""

    def __init__(self) -> None:
        self._loop: asyncio.Runner | None = None
        self._running: asyncio.Task[Any] | None = None
        self._interrupted = False

    def run(self, work: Coroutine[Any, Any, T], unit: Unit) -> T:
        """What the work of a unit comes to.

        Raises:
            CutOff: it was interrupted, or only what is kept for the shutdown is left of its time.
        """
        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(self._in_time(work, unit))

    def interrupt(self) -> bool:
        """Cancels what is awaited, from another thread; whether something is."""
        running = self._running
        if self._loop is None or running is None:
            return False
        self._interrupted = True
        self._loop.get_loop().call_soon_threadsafe(running.cancel)
        return True

    def close(self) -> None:
        """Closes the event loop, if there is one that nothing was left behind in."""
        if self._loop is not None and self._running is None:
            self._loop.close()

    async def _in_time(self, work: Coroutine[Any, Any, T], unit: Unit) -> T:
        self._interrupted = False
        self._running = asyncio.current_task()
        try:
            async with asyncio.timeout(unit.remaining.get("seconds")) as deadline:
                return await work
        except TimeoutError as error:
            if not deadline.expired():
                raise  # the agent's own
            raise unit.time_is_up() from error
        except asyncio.CancelledError as error:
            if not self._interrupted:
                raise
            raise unit.interrupted() from error
        finally:
            self._running = None
