"""Patience: what failed for a reason that may pass is tried again, with longer and longer pauses, within a grace."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from perpetual_blocks.clock import Clock, SystemClock

T = TypeVar("T")

GRACE_SECONDS = 60.0
"""How long a session waits for a database, a storage or an API that is away: a restart takes less."""

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0

_log = logging.getLogger(__name__)


def pause_after(failures: int, luck: float) -> float:
    """How long to wait after so many failures in a row: twice as long each time, up to 5 s.

    Args:
        luck: From 0 to 1; shortens it by up to a half, so that those who lost the same server do not all come back at
            one moment.
    """
    # The exponent is bounded, as no float holds the thousandth power.
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 10)) * (1 - luck / 2)


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long, and on which clock, something is tried again.

    Attributes:
        seconds: The grace; with 0 the first failure is the last.
        over: Ends the waiting early.
        luck: Random numbers from 0 to 1.
    """

    seconds: float = 0.0
    clock: Clock = field(default_factory=SystemClock)
    over: Event = field(default_factory=Event)
    luck: Callable[[], float] = random.random

    def __call__(
        self, attempt: Callable[[], T], may_pass: Callable[[Exception], bool], *, since: float | None = None
    ) -> T:
        """What `attempt` returns as soon as it does; its last error once the grace is over.

        Args:
            may_pass: Whether it is worth while to try again after an error.
            since: When the grace began, on the monotonic clock; now, if nothing is said.
        """
        end = (self.clock.monotonic() if since is None else since) + self.seconds
        failures = 0
        while True:
            try:
                result = attempt()
            except Exception as error:
                failures += 1
                left = end - self.clock.monotonic()
                if left <= 0 or not may_pass(error):
                    raise
                if failures == 1:
                    _log.warning("%s; trying again for up to %.0f s", error, left)
                if self.clock.wait(self.over, min(left, pause_after(failures, self.luck()))):
                    raise
            else:
                if failures:
                    _log.warning("it works again; attempts that failed: %d", failures)
                return result


IMPATIENT = Patience()
"""Fails at once, as a person at a prompt wants it."""
