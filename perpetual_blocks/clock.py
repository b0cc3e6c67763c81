"""The time, as a thing that is handed in, so that no test waits for it."""

import time
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Protocol


class Clock(Protocol):
    """Where the core reads the time."""

    def now(self) -> float:
        """Wall-clock time in seconds since the Unix epoch: for records and for other machines."""

    def monotonic(self) -> float:
        """Seconds that only ever go up: for durations."""

    def wait(self, event: Event, seconds: float) -> bool:
        """Waits until the event is set, for at most so long; whether it is set."""


class SystemClock:
    """This machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: Event, seconds: float) -> bool:
        return event.wait(seconds)


def show_time(stamp: str) -> str:
    """A time stamp of what is to come as a person reads it, rounded up to the minute: `2023-11-14 22:14 UTC`."""
    moment = datetime.fromisoformat(stamp) + timedelta(seconds=59, milliseconds=999)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def show_past(stamp: str) -> str:
    """A time stamp of what has happened, to the minute that it happened in: `2023-11-14 22:13 UTC`."""
    return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M} UTC"


def isoformat(seconds: float | None) -> str | None:
    """A time stamp as people and JSON get it: ISO 8601 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
