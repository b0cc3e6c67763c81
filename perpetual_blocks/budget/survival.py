"""How probable a cost above x is, learned from a sliding window of costs.

A conformal survival function (Vovk et al. 2005: of n + 1 exchangeable samples, the last is above the k-th largest of
the others with probability k / (n + 1)): linear between order statistics, and beyond the largest sample M a Pareto
tail, S(x) = (M/x)^alpha / (n + 1). So an unseen extreme has a probability, and few samples are not trusted more than
they deserve.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable
from itertools import accumulate


class Survival:
    """S(x), the probability that the next sample is above x, with what follows from it.

    Args:
        window: How many of the latest samples count.
        tail: The Pareto tail's exponent, above 1; smaller is heavier.
        samples: Those that are known, the oldest first; none is below 0.
    """

    __slots__ = ("_mean", "_order", "_sorted", "_sums", "tail", "window")

    def __init__(self, window: int, tail: float, samples: Iterable[float] = ()) -> None:
        self.window = window
        self.tail = tail
        self._order = deque(samples, maxlen=window)
        self._sorted = sorted(self._order)
        self._sums: list[float] | None = None
        self._mean: float | None = None

    def __len__(self) -> int:
        return len(self._sorted)

    def samples(self) -> list[float]:
        """The samples, the oldest first."""
        return list(self._order)

    def add(self, sample: float) -> None:
        """Learns one sample; the oldest is forgotten when the window is full. O(log n) but for the move of a list."""
        if len(self._order) == self.window:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(sample)
        insort(self._sorted, sample)
        self._sums = self._mean = None

    def above(self, x: float) -> float:
        """S(x). Without samples a Pareto law from 1 on: scores are costs in units of what was expected."""
        ordered = self._sorted
        count = len(ordered)
        if x <= 0:
            return 1.0
        if not count:
            return 1.0 if x < 1 else float(x**-self.tail)
        largest = ordered[-1]
        if x >= largest:
            return float((largest / x) ** self.tail) / (count + 1)
        index = bisect_right(ordered, x)
        high, low = ordered[index], ordered[index - 1] if index else 0.0
        return (count - index + (high - x) / (high - low)) / (count + 1)

    def excess(self, x: float) -> float:
        """E[(sample - x)⁺], the integral of S from x on."""
        ordered = self._sorted
        count, tail = len(ordered), self.tail
        x = max(x, 0.0)
        if not count:
            return (1 - x if x < 1 else 0.0) + float(max(x, 1.0) ** (1 - tail)) / (tail - 1)
        largest = ordered[-1]
        if x >= largest:
            return largest * float((largest / x) ** (tail - 1)) / (tail - 1) / (count + 1) if largest else 0.0
        if self._sums is None:
            self._sums = [*accumulate(reversed(ordered))]
        index = bisect_right(ordered, x)
        high, rest = ordered[index], count - index
        # From `high` to the largest by parts, where S falls evenly between samples; before and behind it, directly.
        beyond = largest / 2 - high * (rest + 0.5) + self._sums[rest - 1] + largest / (tail - 1)
        return (beyond / (count + 1)) + (high - x) * (self.above(x) + rest / (count + 1)) / 2

    def mean(self) -> float:
        """E[sample]."""
        if self._mean is None:
            self._mean = self.excess(0.0)
        return self._mean

    def quantile(self, above: float) -> float:
        """The x with S(x) = `above`, which is in (0, 1)."""
        ordered = self._sorted
        count = len(ordered)
        if not count:
            return float(above ** (-1 / self.tail))
        rank = (count + 1) * above
        if rank <= 1:
            return ordered[-1] * float(rank ** (-1 / self.tail))
        whole = int(rank)
        high = ordered[count - whole] if whole <= count else ordered[0]
        low = ordered[count - whole - 1] if whole < count else 0.0
        return high - (high - low) * (rank - whole)
