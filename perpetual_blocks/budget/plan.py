"""How many sessions, how long and how much: a chain's future, simulated from estimates and from what was learned.

Each run draws what every unit costs from the forecast, or takes the estimate where nothing was learned, and lets
sessions go on as they would: each ends when the next unit would not fit any more, waits where a window is used up, and
the last ends with the queue or with a total.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor
from random import Random
from statistics import median
from typing import Literal, NamedTuple

from perpetual_blocks.budget.forecast import Forecast
from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.stopping import Expectation
from perpetual_blocks.budget.windows import Spend
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES

DRAWS = 100_000
"""How many units are simulated in all; with more units there are fewer runs, and several units are drawn as one."""

MOST_RUNS, FEWEST_RUNS = 200, 25
FULLNESS = 0.9
"""How full sessions are when they end on their own, where no record tells."""

MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Work:
    """Units that are left to do, of which the same is expected."""

    expectation: Expectation
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a session takes beside its units, in seconds, and how full it is when it ends by itself.

    Attributes:
        parallel: How many seconds of units' work are done in one second: more than one where several run at once.
    """

    resume: float = 1.0
    shutdown: float = 1.0
    gap: float = 10.0
    fullness: float = FULLNESS
    parallel: float = 1.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a run: a session at work, or a wait."""

    kind: Literal["work", "wait"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated future; `duration` and `waiting` are in seconds."""

    sessions: int
    duration: float
    waiting: float
    usage: dict[str, float]
    finished: bool
    stopped_by: dict[str, int]
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All simulated futures, the shortest first.

    Attributes:
        unknown: Limited resources, and seconds, of which nothing is known: they are not in the plan.
    """

    units: int
    runs: tuple[Run, ...]
    unknown: tuple[str, ...]

    def quantile(self, share: float, name: str) -> float:
        """The value that this share of the runs does not exceed: of `sessions`, `duration`, `waiting` or a resource."""
        values = sorted(run.usage.get(name, 0.0) if name in RESOURCES else getattr(run, name) for run in self.runs)
        return values[min(len(values) - 1, ceil(share * len(values)) - 1)]

    @property
    def finishes(self) -> float:
        """The share of runs in which all work was done before a total was gone."""
        return sum(run.finished for run in self.runs) / len(self.runs)

    def middle(self) -> Run:
        """The run that takes neither long nor short."""
        return self.runs[len(self.runs) // 2]


@dataclass(slots=True)
class _Quota:
    """A window or a total, as a run goes through it."""

    limit: Limit
    spends: deque[Spend]
    used: float = field(init=False)

    def __post_init__(self) -> None:
        self.used = sum(spend.amount for spend in self.spends)

    def free_at(self, cost: float, now: float) -> float | None:
        """From when on this much fits, forgetting what is forgotten by then; None for never."""
        window = self.limit.window
        while self.spends and window is not None:
            forgotten = window.forgets(self.spends[0].at)
            if forgotten > now and self.used + cost <= self.limit.amount:
                break
            now = max(now, forgotten)
            self.used -= self.spends.popleft().amount
        # What is more than a whole window is let through when the window is new, as sessions do.
        fits = self.used + cost <= self.limit.amount or not self.used
        return now if fits else None

    def add(self, at: float, cost: float) -> None:
        self.used += cost
        if self.limit.window is not None:
            self.spends.append(Spend(at, cost))


def simulate(
    work: Sequence[Work],
    budget: Budget,
    forecasts: Mapping[str, Forecast],
    now: float,
    *,
    spends: Mapping[str, Sequence[Spend]] | None = None,
    pace: Pace | None = None,
    begun: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 1,
) -> Plan:
    """The plan for work that is left.

    Args:
        work: In the order in which it will be done.
        forecasts: What was learned, by resource.
        now: Seconds since the Unix epoch.
        spends: What was spent before and may still count in windows and totals, by the limit's name.
        begun: What the session at work has used of its own limits, by resource; None where none is at work.
        draws: How many units are simulated in all, about.
        seed: The same plan comes of the same seed.
    """
    limited = {limit.resource for limit in budget if RESOURCES[limit.resource].kind == "counter"}
    wanted = {name for name, resource in RESOURCES.items() if resource.kind == "counter"}
    laws = {
        name: [_Draws.of(forecasts.get(name, Forecast()), one.expectation, name) for one in work] for name in wanted
    }
    unknown = {name for name in wanted if work and not any(draws.known for draws in laws[name])}
    laws = {name: draws for name, draws in laws.items() if name not in unknown}
    units = sum(one.units for one in work)
    lump = max(1, ceil(units * FEWEST_RUNS / draws))
    runs = max(FEWEST_RUNS, min(MOST_RUNS, draws // max(1, ceil(units / lump))))
    limits = [limit for limit in budget if limit.resource in limited - unknown]
    futures = []
    for number in range(runs):
        future = _Future(limits, now, spends or {}, pace or Pace(), lump, begun)
        futures.append(future.go(_steps(work, laws, lump, Random(f"{seed}/{number}"))))
    return Plan(
        units, tuple(sorted(futures, key=lambda run: run.duration)), tuple(sorted((limited | {"seconds"}) & unknown))
    )


class _Draws(NamedTuple):
    """Where the costs of units are drawn from: scores times a scale."""

    scale: float
    scores: Sequence[float]

    @classmethod
    def of(cls, forecast: Forecast, unit: Expectation, resource: str) -> "_Draws":
        """What was learned; else what was declared; no scores if nothing is known."""
        law = forecast.law(unit.hint(resource))
        if law is not None and len(law.scores):
            scores = law.scores.samples()
            return cls(law.scale if any(scores) else 0.0, scores)
        declared = unit.estimate.get(resource, unit.bound.get(resource))
        return cls(1.0, ()) if declared is None else cls(declared, (1.0,))

    @property
    def known(self) -> bool:
        return bool(self.scores)

    def total(self, units: int, random: Random) -> float:
        """What so many units cost together; of many, a few are drawn for all."""
        scores, drawn = self.scores, min(units, 8)
        if not scores or not self.scale:
            return 0.0
        # As random.choices() does it, whose call costs more than the draw.
        return self.scale * sum([scores[floor(random.random() * len(scores))] for _ in range(drawn)]) * units / drawn


def _steps(
    work: Sequence[Work], laws: Mapping[str, Sequence[_Draws]], lump: int, random: Random
) -> Iterator[dict[str, float]]:
    """What one unit after the other costs, or so many at once."""
    for number, one in enumerate(work):
        for done in range(0, one.units, lump):
            many = min(lump, one.units - done)
            yield {name: draws[number].total(many, random) for name, draws in laws.items()}


class _Future:
    """One run through what is to come."""

    def __init__(
        self,
        limits: Sequence[Limit],
        now: float,
        spends: Mapping[str, Sequence[Spend]],
        pace: Pace,
        lump: int,
        begun: Mapping[str, float] | None,
    ) -> None:
        self._lump = lump
        self._session = [limit for limit in limits if limit.scope == "session"]
        self._quotas = [_Quota(one, deque(spends.get(one.name, ()))) for one in limits if one.scope != "session"]
        self._pace = pace
        self._start = self._now = self._began = now
        self._sessions = 0
        self._waiting = 0.0
        self._usage: dict[str, float] = {}
        self._stopped_by: dict[str, int] = {}
        self._stretches: list[Stretch] = []
        self._begin(now)
        if begun is not None:
            self._now, self._units, self._used = now, 1, dict(begun)

    def go(self, steps: Iterable[dict[str, float]]) -> Run:
        """To the end of the work, or of a total."""
        for cost in steps:
            for limit in self._session:
                if self._units and self._too_much(limit, cost):
                    self._end(limit.name)
                    self._begin(self._now + self._pace.gap)
            for quota in self._quotas:
                ready = quota.free_at(cost[quota.limit.resource], self._now)
                if ready is None or self._sessions >= MOST_SESSIONS:
                    self._end(quota.limit.name)
                    return self._run(finished=False)
                if ready > self._now and self._units:
                    self._end(quota.limit.name)
                    self._waiting += max(0.0, ready - self._now - self._pace.gap)
                    self._begin(max(ready, self._now + self._pace.gap))
                elif ready > self._now:  # a session without a unit yet is one that starts later
                    self._stretches.append(Stretch("wait", ready - self._now))
                    self._waiting += ready - self._now
                    self._began = self._now = ready
            self._do(cost)
        self._end("queue-empty")
        return self._run(finished=True)

    def _begin(self, at: float) -> None:
        if at > self._now:
            self._stretches.append(Stretch("wait", at - self._now))
        self._began, self._now = at, at + self._pace.resume
        self._sessions += 1
        self._units = 0
        self._used = {"seconds": self._pace.resume}

    def _skip(self, cost: Mapping[str, float]) -> None:
        """Goes through the sessions, and the windows, that units which are drawn as one fill by themselves."""
        for limit in self._session:
            more = int(self._of_session(limit.resource, cost) / (limit.amount * self._pace.fullness))
            if more:
                self._sessions += more
                self._stopped_by[limit.name] = self._stopped_by.get(limit.name, 0) + more
                self._now += more * (self._pace.shutdown + self._pace.gap + self._pace.resume)
        for limit in (quota.limit for quota in self._quotas):
            if limit.window is not None:
                wait = int(cost[limit.resource] / limit.amount) * limit.window.seconds
                self._now += wait
                self._waiting += wait

    def _do(self, cost: Mapping[str, float]) -> None:
        if self._lump > 1:
            self._skip(cost)
        self._now += self._of_session("seconds", cost)
        self._units += 1
        for name, amount in cost.items():
            self._used[name] = self._used.get(name, 0.0) + self._of_session(name, cost)
            self._usage[name] = self._usage.get(name, 0.0) + amount
        for quota in self._quotas:
            quota.add(self._now, cost[quota.limit.resource])

    def _end(self, cause: str) -> None:
        self._now += self._pace.shutdown
        self._stretches.append(Stretch("work", self._now - self._began))
        self._stopped_by[cause] = self._stopped_by.get(cause, 0) + 1

    def _too_much(self, limit: Limit, cost: Mapping[str, float]) -> bool:
        used = self._used.get(limit.resource, 0.0)
        if limit.rule == "fixed":
            return used >= limit.amount * limit.threshold
        kept = self._pace.shutdown if limit.resource == "seconds" else 0.0
        return used + self._of_session(limit.resource, cost) + kept > limit.amount * self._pace.fullness

    def _of_session(self, resource: str, cost: Mapping[str, float]) -> float:
        """What units use of a session: of its time, less than all of theirs where several run at once."""
        amount = cost.get(resource, 0.0)
        return amount / self._pace.parallel if resource == "seconds" else amount

    def _run(self, *, finished: bool) -> Run:
        return Run(
            sessions=self._sessions,
            duration=self._now - self._start,
            waiting=self._waiting,
            usage=self._usage,
            finished=finished,
            stopped_by=self._stopped_by,
            stretches=tuple(self._stretches),
        )


def with_changes(budget: Budget, changes: Sequence[str]) -> Budget:
    """The budget with other amounts, `calls/day=1000`, `tokens=400000`, `cost/total=80`; a limit that is not there is
    added.

    Raises:
        InvalidInput: a change that is none, or names no limit that could be.
    """
    limits = {limit.name: limit for limit in budget}
    for change in changes:
        name, separator, text = change.partition("=")
        amount = _number(text)
        if not separator or amount is None:
            raise InvalidInput.of(
                "--what-if", change, "limit=amount, as calls/day=1000, tokens=400000 or cost/total=80"
            )
        found = [known for known in limits if known == name or known.startswith(f"{name} ")]
        if found:
            limit = limits[found[0]]
            limits[found[0]] = Limit.from_json({**limit.to_json(), "amount": amount})
            continue
        resource, _, of = name.partition("/")
        added = (
            Limit(resource, amount)
            if not of
            else Limit(resource, amount, scope="total")
            if of == "total"
            else Limit(resource, amount, scope="window", window=of)
        )
        limits[added.name] = added
    return Budget(*limits.values(), risk=budget.risk)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def usual_pace(
    resume: Sequence[float],
    shutdown: Sequence[float],
    gaps: Sequence[float],
    fullness: Sequence[float],
    parallel: Sequence[float] = (),
) -> Pace:
    """The pace of a chain's sessions so far, each the median of what was measured."""
    usual = Pace()
    return Pace(
        resume=median(resume) if resume else usual.resume,
        shutdown=median(shutdown) if shutdown else usual.shutdown,
        gap=median(gaps) if gaps else usual.gap,
        fullness=median(fullness) if fullness else usual.fullness,
        parallel=median(parallel) if parallel else usual.parallel,
    )
