"""What the next unit of a kind, and the shutdown, will probably cost: one forecast for each resource.

Its state is small and JSON, and a restored copy decides bit for bit as the original would.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import exp, log
from typing import Any, NamedTuple

from perpetual_blocks.budget.session_length import Course
from perpetual_blocks.budget.survival import Survival

RISK = 0.01
"""How probable it may be that a unit, and the shutdown after it, do not fit: one session in a hundred."""

SAMPLES, UNIT_TAIL = 512, 3.0
SHUTDOWN_SAMPLES, SHUTDOWN_TAIL = 128, 4.0
KIND_SAMPLES = 30  # until a kind has so many, its costs are pooled with all the others'
SPEEDS = (0.15, 0.6)
DISCOUNT = 0.998
CONSTANT_ADVANTAGE = 0.9
TRIALS = 15  # a predictor that scales is not trusted before it was judged this often
CENSORED = 1.5  # a unit that was cut off at x counts as this times x
BOUND_MARGIN = 1.05
NEVER_TRUSTED = 0.0
COLD_SHUTDOWNS, COLD_SHUTDOWN_SHARE = 8, 0.08
CAUTION_STEP, CAUTION = 0.2, (0.7, 4.0)
FIRST_CAUTION = 0.9  # a mean over the laws of the stopping benchmark: there, sessions that begin at 1 waste 1 % more
NODES = 10


class Hint(NamedTuple):
    """What is said of a unit beforehand, for one resource.

    Attributes:
        estimate: What it will probably cost.
        bound: What it cannot exceed, as its author says.
    """

    kind: str = ""
    estimate: float | None = None
    bound: float | None = None


class Node(NamedTuple):
    """A cost of the shutdown, and how probable it is."""

    cost: float
    weight: float


class Law(NamedTuple):
    """How probable which cost of the next unit is: `scale` times a score of the survival function."""

    scale: float
    scores: Survival

    def above(self, cost: float) -> float:
        """P(unit > cost)."""
        return self.scores.above(cost / self.scale)

    def within(self, cost: float) -> float:
        """E[unit; unit ≤ cost]: the work that an attempt brings on average, which is lost when it is cut off there."""
        x = cost / self.scale
        scores = self.scores
        return self.scale * max(0.0, scores.mean() - scores.excess(x) - x * scores.above(x))

    def mean(self) -> float:
        """E[unit]."""
        return self.scale * self.scores.mean()

    def quantile(self, above: float) -> float:
        """The cost that the unit exceeds with this probability."""
        return self.scale * self.scores.quantile(above)


@dataclass(slots=True)
class _Predictor:
    """Scores, which are costs in units of a scale, and how well their quantile has foretold costs so far."""

    scores: Survival = field(default_factory=lambda: Survival(SAMPLES, UNIT_TAIL))
    loss: float = 0.0
    weight: float = 0.0
    trials: int = 0

    def judge(self, cost: float, foretold: float) -> None:
        """Adds the pinball loss (Koenker 1978) at the risk level; older units count less."""
        error = cost - foretold
        self.loss = self.loss * DISCOUNT + (error * (1 - RISK) if error > 0 else -error * RISK)
        self.weight = self.weight * DISCOUNT + 1
        self.trials += 1

    def to_json(self) -> list[Any]:
        return [self.loss, self.weight, self.trials, self.scores.samples()]

    @classmethod
    def from_json(cls, state: list[Any]) -> "_Predictor":
        loss, weight, trials, samples = state
        return cls(Survival(SAMPLES, UNIT_TAIL, samples), loss, weight, trials)


@dataclass(slots=True)
class _Tally:
    """What was foretold of a kind's finished units, and what they used."""

    units: int = 0
    predicted: float = 0.0
    used: float = 0.0
    covered: int = 0


@dataclass(slots=True)
class Forecast:
    """The forecast of one resource.

    Several predictors compete: costs as they are (the kind's own, once there are enough); costs relative to a level
    that follows them slowly, or quickly; costs relative to what was declared. The one that foretold best is asked.

    Attributes:
        tallies: What was foretold and used so far, by kind.
        caution: Multiplies what is expected. It goes up after a session that overran and slowly down otherwise, so that
            in the long run as many sessions overrun as the risk allows.
    """

    constant: _Predictor = field(default_factory=_Predictor)
    following: list[_Predictor] = field(default_factory=lambda: [_Predictor() for _ in SPEEDS])
    declared: _Predictor = field(default_factory=_Predictor)
    by_kind: dict[str, Survival] = field(default_factory=dict)
    levels: dict[str, list[float]] = field(default_factory=dict)
    exceeded: dict[str, float] = field(default_factory=dict)
    shutdowns: Survival = field(default_factory=lambda: Survival(SHUTDOWN_SAMPLES, SHUTDOWN_TAIL))
    caution: float = FIRST_CAUTION
    course: Course = field(default_factory=Course)
    tallies: dict[str, _Tally] = field(default_factory=dict)

    # Learning -------------------------------------------------------------------------------------------------------

    def learn(self, cost: float, hint: Hint = Hint(), *, finished: bool = True) -> None:  # noqa: B008 - immutable
        """A unit ended at this cost; one that was cut off would have cost more."""
        candidates = list(self._candidates(hint))
        if finished and (law := self._best(candidates)) is not None:
            self._compare(cost, hint.kind, law)
        cost = cost if finished else CENSORED * cost
        bound = self.bound(hint)
        if bound is not None and hint.bound is not None and cost > bound:
            self.exceeded[hint.kind] = BOUND_MARGIN * cost / hint.bound if hint.bound else NEVER_TRUSTED
        for predictor, law in candidates:
            if len(law.scores):
                predictor.judge(cost, law.quantile(RISK))
            predictor.scores.add(cost / law.scale)
        self.by_kind.setdefault(hint.kind, Survival(SAMPLES, UNIT_TAIL)).add(cost)
        if cost > 0:
            now = log(cost)
            levels = self.levels.get(hint.kind) or [now] * len(SPEEDS)
            self.levels[hint.kind] = [
                level + speed * (now - level) for level, speed in zip(levels, SPEEDS, strict=True)
            ]

    def close(self, shutdown: float | None, *, graceful: bool, risk: float = RISK) -> None:
        """A session ended; `shutdown` is what its shutdown cost, None where it had none."""
        if shutdown is not None:
            self.shutdowns.add(shutdown)
        step = -CAUTION_STEP * risk / (1 - risk) if graceful else CAUTION_STEP
        lowest, highest = CAUTION
        self.caution = min(highest, max(lowest, self.caution * exp(step)))

    def _compare(self, cost: float, kind: str, law: Law) -> None:
        tally = self.tallies.get(kind)
        if tally is None:
            tally = self.tallies[kind] = _Tally()
        tally.units += 1
        tally.predicted += law.quantile(0.5)
        tally.used += cost
        tally.covered += cost <= law.quantile(0.1)

    # Asking ---------------------------------------------------------------------------------------------------------

    def calibration(self) -> dict[str, dict[str, float | None]]:
        """How well the finished units of each kind were foretold, each by what was known just before it was learned.

        * units: n, of which something was foretold
        * predicted: Σ median of the law
        * used: Σ cost
        * ratio: used / predicted; above 1 where units are dearer than foretold (a little, where costs have a long tail,
          since a sum of medians is below the sum of means); None where nothing was predicted
        * p90_coverage: the share of units with cost ≤ the law's 90th percentile; 0.9 is perfect

        Kinds that use nothing of the resource, and of which nothing else was expected, are left out.
        """
        return {
            kind: {
                "units": tally.units,
                "predicted": tally.predicted,
                "used": tally.used,
                "ratio": tally.used / tally.predicted if tally.predicted else None,
                "p90_coverage": tally.covered / tally.units,
            }
            for kind, tally in self.tallies.items()
            if tally.predicted or tally.used
        }

    def law(self, hint: Hint = Hint()) -> Law | None:  # noqa: B008 - immutable
        """How the next unit's cost is distributed; None when nothing at all is known of it."""
        return self._best(self._candidates(hint))

    def _best(self, candidates: Iterable[tuple[_Predictor, Law]]) -> Law | None:
        best: Law | None = None
        least = 0.0
        for predictor, law in candidates:
            if predictor is self.constant:
                if not len(law.scores):
                    continue
                loss = CONSTANT_ADVANTAGE * predictor.loss / predictor.weight if predictor.weight else 0.0
            elif predictor.trials >= TRIALS:
                loss = predictor.loss / predictor.weight
            elif best is None:  # nothing has been seen yet, but something was declared
                return law
            else:
                continue
            if best is None or loss < least:
                best, least = law, loss
        return best

    def bound(self, hint: Hint) -> float | None:
        """What the unit cannot exceed, as far as what was said of its kind was ever true."""
        factor = self.exceeded.get(hint.kind, 1.0)
        return None if hint.bound is None or factor == NEVER_TRUSTED else hint.bound * factor

    def shutdown_cost(self, above: float) -> float:
        """What a shutdown exceeds with this probability; 0 when none was seen."""
        return self.shutdowns.quantile(above) if len(self.shutdowns) else 0.0

    def shutdown_law(self, budget: float, cold_share: float = COLD_SHUTDOWN_SHARE) -> tuple[Node, ...]:
        """What a shutdown will cost: nodes at halving tail probabilities.

        Args:
            budget: A whole session's, of which `cold_share` is kept until enough shutdowns were seen.
        """
        floor = cold_share * budget if len(self.shutdowns) < COLD_SHUTDOWNS else 0.0
        if not len(self.shutdowns):
            return (Node(floor, 1.0),)
        return tuple(
            Node(max(floor, self.shutdowns.quantile(0.75 * 0.5**j)), 0.5 ** (j + 1 if j < NODES - 1 else j))
            for j in range(NODES)
        )

    def _candidates(self, hint: Hint) -> Iterator[tuple[_Predictor, Law]]:
        own = self.by_kind.get(hint.kind)
        enough = own is not None and len(own) >= KIND_SAMPLES
        yield self.constant, Law(1.0, own if enough and own is not None else self.constant.scores)
        levels = self.levels.get(hint.kind)
        if levels is not None:
            for predictor, level in zip(self.following, levels, strict=True):
                yield predictor, Law(exp(level), predictor.scores)
        if hint.estimate:
            yield self.declared, Law(hint.estimate, self.declared.scores)

    # State ----------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The state as JSON; `from_json` reads it."""
        return {
            "constant": self.constant.to_json(),
            "following": [predictor.to_json() for predictor in self.following],
            "declared": self.declared.to_json(),
            "by_kind": {kind: scores.samples() for kind, scores in self.by_kind.items()},
            "levels": dict(self.levels),
            "exceeded": dict(self.exceeded),
            "shutdowns": self.shutdowns.samples(),
            "caution": self.caution,
            "course": self.course.to_json(),
            "tallies": {kind: [t.units, t.predicted, t.used, t.covered] for kind, t in self.tallies.items()},
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Forecast":
        """Reads what `to_json` wrote."""
        return cls(
            constant=_Predictor.from_json(state["constant"]),
            following=[_Predictor.from_json(predictor) for predictor in state["following"]],
            declared=_Predictor.from_json(state["declared"]),
            by_kind={kind: Survival(SAMPLES, UNIT_TAIL, samples) for kind, samples in state["by_kind"].items()},
            levels=dict(state["levels"]),
            exceeded=dict(state["exceeded"]),
            shutdowns=Survival(SHUTDOWN_SAMPLES, SHUTDOWN_TAIL, state["shutdowns"]),
            caution=state["caution"],
            course=Course(*state["course"]),
            # A state from before there were any has none.
            tallies={kind: _Tally(*tally) for kind, tally in state.get("tallies", {}).items()},
        )
