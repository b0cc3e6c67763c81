"""Async units: coroutines in one event loop for a whole session, that can be cancelled from another thread."""

import asyncio
from collections.abc import Coroutine
from threading import Lock, Thread
from typing import Any, TypeVar

from perpetual_blocks.work import Unit

T = TypeVar("T")


class Coroutines:
    """Awaits the work of async units, all in one event loop, so that what they open lives on from unit to unit.

    The loop has a thread of its own, so that units of several threads share it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._interrupted: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, T], unit: Unit) -> T:
        """What the work of a unit comes to.

        Raises:
            CutOff: it was interrupted, or only what is kept for the shutdown is left of its time.
        """
        succeeded, value = asyncio.run_coroutine_threadsafe(self._caught(work, unit), self._started()).result()
        if not succeeded:
            raise value
        return value  # type: ignore[no-any-return]

    def interrupt(self) -> bool:
        """Cancels what is awaited, from another thread; whether something is."""
        running, loop = list(self._running), self._loop
        if loop is None or not running:
            return False
        for task in running:
            self._interrupted.add(task)
            loop.call_soon_threadsafe(task.cancel)
        return True

    def close(self) -> None:
        """Closes the event loop, if there is one that nothing was left behind in."""
        if self._loop is not None and self._thread is not None and not self._running:
            asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(target=self._loop.run_forever, name="perpetual coroutines", daemon=True)
                self._thread.start()
            return self._loop

    async def _caught(self, work: Coroutine[Any, Any, T], unit: Unit) -> tuple[bool, Any]:
        """What a unit raises must not end the loop, as SystemExit would."""
        try:
            return True, await self._in_time(work, unit)
        except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
            return False, error

    async def _in_time(self, work: Coroutine[Any, Any, T], unit: Unit) -> T:
        this = asyncio.current_task()
        assert this is not None
        self._running.add(this)
        try:
            async with asyncio.timeout(unit.remaining.get("seconds")) as deadline:
                return await work
        except TimeoutError as error:
            if not deadline.expired():
                raise  # the agent's own
            raise unit.time_is_up() from error
        except asyncio.CancelledError as error:
            if this not in self._interrupted:
                raise
            raise unit.interrupted() from error
        finally:
            self._running.discard(this)
            self._interrupted.discard(this)


async def _end_all() -> None:
    """Ends what units have left running in the loop, as `asyncio.run` does."""
    this, loop = asyncio.current_task(), asyncio.get_running_loop()
    left = [task for task in asyncio.all_tasks() if task is not this]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
