"""The time, as a thing that is handed in, so that no test waits for it."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the core reads the time."""

    def now(self) -> float:
        """Wall-clock time in seconds since the Unix epoch: for records and for other machines."""

    def monotonic(self) -> float:
        """Seconds that only ever go up: for durations."""


class SystemClock:
    """This machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def isoformat(seconds: float | None) -> str | None:
    """A time stamp as people and JSON get it: ISO 8601 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
