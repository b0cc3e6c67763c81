"""Stopping: the one place where a request to stop from outside is kept until the loop asks for it."""

from threading import Event, Lock

from perpetual_blocks.clock import Clock
from perpetual_blocks.session.chain import StopReason


class StopRequest:
    """A request to stop, from a signal handler, the heartbeat or anybody else. The first reason wins."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked = Event()
        self._news: Event | None = None
        self._reason: StopReason | None = None
        self._by: float | None = None

    def ask(self, reason: StopReason, by: float | None = None) -> None:
        """Asks the session to stop before its next unit.

        Args:
            by: When the process will be killed, by the clock's `monotonic`, where that is known. The soonest counts,
                whoever asked first.
        """
        with self._lock:
            self._reason = self._reason or reason
            if by is not None:
                self._by = by if self._by is None else min(by, self._by)
        self._asked.set()
        if (news := self._news) is not None:
            news.set()

    def wait(self, clock: Clock, seconds: float) -> bool:
        """Waits until somebody asks, for at most so long; whether somebody has."""
        return clock.wait(self._asked, seconds)

    def tell(self, news: Event | None) -> None:
        """Sets this event whenever somebody asks, in place of the one before: for who waits for something else too."""
        self._news = news

    @property
    def reason(self) -> StopReason | None:
        """Why the session is to stop, or None."""
        return self._reason

    @property
    def by(self) -> float | None:
        """When the process will be killed, by the clock's `monotonic`; None where nobody has said so."""
        return self._by
