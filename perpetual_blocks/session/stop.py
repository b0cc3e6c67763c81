"""Stopping: the one place where a request to stop from outside is kept until the loop asks for it."""

from threading import Event, Lock

from perpetual_blocks.clock import Clock
from perpetual_blocks.session.chain import StopReason


class StopRequest:
    """A request to stop, from a signal handler, the heartbeat or anybody else. The first reason wins."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked = Event()
        self._reason: StopReason | None = None

    def ask(self, reason: StopReason) -> None:
        """Asks the session to stop before its next unit."""
        with self._lock:
            self._reason = self._reason or reason
        self._asked.set()

    def wait(self, clock: Clock, seconds: float) -> bool:
        """Waits until somebody asks, for at most so long; whether somebody has."""
        return clock.wait(self._asked, seconds)

    @property
    def reason(self) -> StopReason | None:
        """Why the session is to stop, or None."""
        return self._reason
