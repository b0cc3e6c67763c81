"""The pace: how many units at once, and how many of them in a batch."""

from perpetual_blocks.service_errors import is_throttled

MOST_IN_BATCH = 2500
"""So many units are given back at most, or run again, when a session dies."""


class Pace:
    """How many batches run at once: additive increase, multiplicative decrease (Chiu and Jain 1989).

    One more once as many units as run at once have succeeded; half as many when a service says that there were too
    many, or when most of the latest units failed. What was begun before the latest decrease says nothing of it.

    Attributes:
        most: How many at most.
        limit: How many now; at least 1.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._successes = 0
        self._failures = 0
        self._decreases = 0
        self.limit = most

    @property
    def phase(self) -> int:
        """What a unit remembers when it begins."""
        return self._decreases

    def succeeded(self) -> None:
        """A unit was finished."""
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = self._failures = 0
            self.limit = min(self.most, self.limit + 1)

    def failed(self, error: BaseException, phase: int) -> None:
        """A unit failed that had begun in that phase."""
        if phase != self._decreases:
            return
        self._failures += 1
        if is_throttled(error) or (self._failures >= self.limit and self._failures > self._successes):
            self._decreases += 1
            self._successes = self._failures = 0
            self.limit = max(1, self.limit // 2)


class BatchSize:
    """How many units are claimed for a batch: twice as many as the one before has finished."""

    def __init__(self) -> None:
        self.most = 1

    def ran(self, units: int) -> None:
        """A batch has ended, of which so many units came to an end."""
        self.most = max(1, min(MOST_IN_BATCH, 2 * units))
