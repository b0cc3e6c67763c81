"""The crew: the threads of a session's units, and what a session can leave behind when its process is about to be
killed."""

import contextvars
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Generic, NamedTuple, TypeVar

from perpetual_blocks.clock import Clock
from perpetual_blocks.session.stop import StopRequest

T = TypeVar("T")

PATIENCE_SECONDS = 3.0
"""How long what was interrupted may take to end."""


class LeftBehind(Exception):
    """Something still runs, and nobody waits for it any more."""


class Ended(NamedTuple, Generic[T]):
    """What has ended.

    Attributes:
        name: What it was started as.
        error: What it raised.
    """

    name: T
    error: BaseException | None


class Crew(Generic[T]):
    """Runs pieces of work in threads of its own, and waits for them for as long as there is time.

    There are only as many threads as there was work at the same time, so that one piece after the other runs in the
    same thread. They are daemons, so that what was left behind does not keep the process.

    Attributes:
        running: What runs, in the order of its start.
        interrupted: Whether what runs was asked to end before it had.
    """

    def __init__(self, clock: Clock, stop: StopRequest) -> None:
        self._clock = clock
        self._stop = stop
        self._work: SimpleQueue[tuple[T, Callable[[], None]] | None] = SimpleQueue()
        self._ended: SimpleQueue[Ended[T]] = SimpleQueue()
        self._news = Event()
        self._threads = 0
        self.running: list[T] = []
        self.interrupted = False

    def start(self, name: T, work: Callable[[], None]) -> None:
        """Starts a piece of work."""
        self._stop.tell(self._news)
        self.running.append(name)
        if self._threads < len(self.running):
            self._threads += 1
            # Prefect finds the flow run through context variables; a bare thread would not have them.
            context = contextvars.copy_context()
            Thread(target=context.run, args=(self._loop,), name="perpetual units", daemon=True).start()
        self._work.put((name, work))

    def next(self, interrupt: Callable[[], bool], shutdown_seconds: Callable[[], float]) -> Ended[T]:
        """Waits for the next piece that ends.

        When the process is about to be killed, what runs goes on for as long as it leaves the shutdown its time, but
        for half of what is left at least; then it is interrupted.

        Args:
            interrupt: Makes what runs end, if it can; whether it can.
            shutdown_seconds: What the shutdown will probably take.

        Raises:
            LeftBehind: what runs did not end in time.
        """
        until: float | None = None
        while (ended := self._look()) is None:
            if until is None and self._stop.by is not None:
                now = self._clock.monotonic()
                until = self._stop.by - min(shutdown_seconds(), max(0.0, self._stop.by - now) / 2)
            if until is None:
                self._news.wait()
            elif not self._clock.wait(self._news, max(0.0, until - self._clock.monotonic())):
                if self.interrupted or not interrupt():
                    raise LeftBehind
                self.interrupted = True
                until = self._clock.monotonic() + PATIENCE_SECONDS
        self.running.remove(ended.name)
        return ended

    def close(self) -> None:
        """Lets the threads end, when what they do is done."""
        self._stop.tell(None)
        for _ in range(self._threads):
            self._work.put(None)

    def _look(self) -> Ended[T] | None:
        self._news.clear()  # before looking: what comes now is news for the next wait
        try:
            return self._ended.get_nowait()
        except Empty:
            return None

    def _loop(self) -> None:
        while (piece := self._work.get()) is not None:
            name, work = piece
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:  # noqa: BLE001 - handed over to the waiting thread
                error = raised
            self._ended.put(Ended(name, error))
            self._news.set()
