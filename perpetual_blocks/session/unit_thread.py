"""The thread of a session's units: what a session can leave behind when its process is about to be killed."""

import contextvars
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

from perpetual_blocks.clock import Clock
from perpetual_blocks.session.stop import StopRequest

T = TypeVar("T")

PATIENCE_SECONDS = 3.0
"""How long a unit that was interrupted may take to end."""


class LeftBehind(Exception):
    """A unit still runs, and nobody waits for it any more."""


class UnitThread:
    """Runs one unit after the other in a thread of its own, and waits for each for as long as there is time.

    It is always the same thread, so that an async agent keeps its event loop; and a daemon, so that a unit that was
    left behind does not keep the process.

    Attributes:
        interrupted: Whether the latest unit was asked to end before it had.
    """

    def __init__(self, clock: Clock, stop: StopRequest) -> None:
        self._clock = clock
        self._stop = stop
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None
        self.interrupted = False

    def run(self, unit: Callable[[], T], interrupt: Callable[[], bool], shutdown_seconds: Callable[[], float]) -> T:
        """What the unit returns, or raises.

        When the process is about to be killed, the unit goes on for as long as it leaves the shutdown its time, but
        for half of what is left at least; then it is interrupted.

        Args:
            interrupt: Makes the unit end, if it can; whether it can.
            shutdown_seconds: What the shutdown will probably take.

        Raises:
            LeftBehind: the unit did not end in time.
        """
        over = Event()
        box: list[tuple[bool, Any]] = []

        def work() -> None:
            try:
                box.append((True, unit()))
            except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
                box.append((False, error))
            finally:
                over.set()

        self.interrupted = False
        self._start()
        self._stop.tell(over)
        try:
            self._work.put(work)
            self._wait(over, box, interrupt, shutdown_seconds)
        finally:
            self._stop.tell(None)
        succeeded, value = box[0]
        if not succeeded:
            raise value
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Lets the thread end, when what it does is done."""
        self._work.put(None)

    def _wait(
        self,
        over: Event,
        box: list[tuple[bool, Any]],
        interrupt: Callable[[], bool],
        shutdown_seconds: Callable[[], float],
    ) -> None:
        until: float | None = None
        while not box:
            if until is None and self._stop.by is not None:
                now = self._clock.monotonic()
                until = self._stop.by - min(shutdown_seconds(), max(0.0, self._stop.by - now) / 2)
            if until is None:
                over.wait()
            elif not self._clock.wait(over, max(0.0, until - self._clock.monotonic())):
                if self.interrupted or not interrupt():
                    raise LeftBehind
                self.interrupted = True
                until = self._clock.monotonic() + PATIENCE_SECONDS
            if not box:  # it was the stop request that set it
                over.clear()

    def _start(self) -> None:
        if self._thread is None:
            # Prefect finds the flow run through context variables; a bare thread would not have them.
            context = contextvars.copy_context()
            self._thread = Thread(target=context.run, args=(self._loop,), name="perpetual units", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()
