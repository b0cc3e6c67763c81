"""What all benchmarks share: the shape of a result, and things measured in turns, so that a ratio means something.

The machine does other things at the same time and is slower at some moments than at others. So what is compared runs in
alternating rounds, each round counts with its median, and the spread of the rounds' ratios goes with the result.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report; without a value where it could not be measured, and `detail` says why."""

    name: str
    value: float | None
    unit: str
    against: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two things side by side: for each round the median seconds of the one and of the other."""

    ours: list[float]
    other: list[float]

    @property
    def ours_ms(self) -> float:
        return round(1000 * median(self.ours), 3)

    @property
    def other_ms(self) -> float:
        return round(1000 * median(self.other), 3)

    @property
    def ratio(self) -> float:
        return round(median(self.ours) / median(self.other), 3)

    def inverse(self) -> "Comparison":
        """The same the other way round: its ratio says how many times as fast ours is."""
        return Comparison(self.other, self.ours)

    def spread(self) -> dict[str, Any]:
        """How far the rounds agree: the smallest and the largest of their ratios."""
        ratios = [ours / other for ours, other in zip(self.ours, self.other, strict=True)]
        return {"ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3), "rounds": len(ratios)}


Round = Callable[[], list[float]]
"""Does one round of something; returns the seconds of each of its repetitions."""


def side_by_side(ours: Round, other: Round, rounds: int) -> Comparison:
    """Compares the two, which run in turns."""
    return Comparison(*in_turns([ours, other], rounds))


def in_turns(sides: Sequence[Round], rounds: int) -> list[list[float]]:
    """Runs all sides in turns, another one first in each round; for each side the median seconds of every round.

    One more round, before, warms up and does not count.
    """
    measured: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for offset in range(len(sides)):
            side = (number + offset) % len(sides)
            seconds = median(sides[side]())
            if number:
                measured[side].append(seconds)
    return measured


def timed(work: Callable[[], object], repetitions: int = 1) -> list[float]:
    """The seconds of each repetition."""
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds
