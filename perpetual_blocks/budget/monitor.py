"""The monitor: how much of each limit is used, and whether the next unit fits."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from threading import RLock
from typing import Any

from perpetual_blocks.budget.account import Account, Quota, latest_quota
from perpetual_blocks.budget.forecast import COLD_SHUTDOWN_SHARE, Forecast, Node
from perpetual_blocks.budget.gauges import Meter, is_gauge, watched
from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.stopping import (
    Expectation,
    Reading,
    Refusal,
    Verdict,
    describe,
    judge,
    refuse,
    reservation,
    too_large,
    unasked_units,
)
from perpetual_blocks.budget.windows import Spend
from perpetual_blocks.clock import Clock
from perpetual_blocks.usage import RESOURCES, add

LEAST_SHUTDOWN_SECONDS = 5.0
"""What is kept of the time before the process is killed, however quick earlier shutdowns were."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the ledger knows of a chain when a session of it begins.

    Attributes:
        spends: What was spent before and may still count in a window, by resource, in order.
        totals: What was spent before altogether, by resource.
        pooled: What everybody has spent of a limit with a pool, by the limit's name, in order.
        forecasts: By resource.
        quotas: What providers said of their windows, by the limit's name.
    """

    spends: Mapping[str, list[Spend]] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    pooled: Mapping[str, list[Spend]] = field(default_factory=dict)
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def spent_of(self, limit: Limit) -> list[Spend]:
        """What was spent before and may still count against this limit, in order; for a session, nothing."""
        if limit.pool is not None:
            return list(self.pooled.get(limit.name, []))
        if limit.scope == "total":
            return [Spend(0.0, self.totals.get(limit.resource, 0.0))]
        return list(self.spends.get(limit.resource, [])) if limit.scope == "window" else []


class BudgetMonitor:
    """Adds up what units report, reads clocks and meters, and asks the stop rules.

    Attributes:
        lock: Whoever asks or tells while units run in other threads holds it.

    Args:
        meters: By resource; every gauge that the budget limits needs one.
        cancellable: Resources of which a unit stops by itself, or is stopped, before it uses up what it was given.
        elapsed: Seconds that the session has been at work already, where it spans several processes.
        until: The wall-clock time at which this process will be ended, where that is known.
    """

    def __init__(
        self,
        budget: Budget,
        clock: Clock,
        meters: Mapping[str, Meter],
        record: Record | None = None,
        *,
        cancellable: frozenset[str] = frozenset(),
        elapsed: float = 0.0,
        until: float | None = None,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._meters = meters
        self._cancellable = cancellable
        self._started = clock.monotonic() - elapsed
        self._lifetime = None if until is None else max(1e-3, until - clock.now() + elapsed)
        if self._lifetime is not None and all(limit.name != "seconds" for limit in budget):
            self._budget = budget = Budget(*budget, Limit("seconds", self._lifetime), risk=budget.risk)
        record = record or Record()
        self.forecasts = {resource: record.forecasts.get(resource) or Forecast() for resource in RESOURCES}
        self._accounts = {limit.name: Account(limit, record.spent_of(limit)) for limit in budget}
        for name, quota in record.quotas.items():
            self._report(name, quota)
        self._shutdown = {limit.name: self._shutdown_law(limit) for limit in budget}
        self._spent: dict[str, float] = {}
        self._held: dict[object, dict[str, float]] = {}
        self.lock = RLock()
        self.units = 0

    @property
    def budget(self) -> Budget:
        return self._budget

    @property
    def spent(self) -> dict[str, float]:
        """What the session's units have spent, by resource, seconds of work included."""
        return dict(self._spent)

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self._clock.monotonic() - self._started

    # Learning -------------------------------------------------------------------------------------------------------

    def record(
        self,
        usage: Mapping[str, float],
        unit: Expectation | None = None,
        *,
        peaks: Mapping[str, float] | None = None,
        finished: bool = True,
    ) -> None:
        """Counts what a unit has spent, and learns from it.

        Args:
            unit: What was expected of it; None to count only.
            peaks: Of the gauges, as `watch` has seen them.
        """
        self.count(usage)
        if unit is not None:
            self.learn(usage, unit, peaks=peaks, finished=finished)

    def count(self, usage: Mapping[str, float], quotas: Mapping[str, Quota] | None = None) -> None:
        """Counts what a unit has spent, and takes in what it was told of quotas, by the limit's name: both at once, or
        units that run at the same time could begin on what the provider has already said is gone."""
        self._spent = add(self._spent, usage)
        now = self._clock.now()
        for account in self._accounts.values():
            account.add(now, usage.get(account.limit.resource, 0.0))
        for name, quota in (quotas or {}).items():
            self._report(name, quota)
        self.units += 1

    def learn(
        self,
        usage: Mapping[str, float],
        unit: Expectation,
        *,
        peaks: Mapping[str, float] | None = None,
        finished: bool = True,
    ) -> None:
        """Learns from what a unit that was counted has spent; the arguments as for `record`."""
        # What a unit did not report, it did not use.
        counters = [name for name, resource in RESOURCES.items() if resource.kind == "counter"]
        for resource, cost in {**{name: usage.get(name, 0.0) for name in counters}, **(peaks or {})}.items():
            # A resource may have been defined since the session began.
            forecast = self.forecasts.setdefault(resource, Forecast())
            forecast.learn(cost, unit.hint(resource), finished=finished)
            if finished:
                forecast.course.learn(self.units, cost)

    def hold(self, owner: object, unit: Expectation | None) -> None:
        """Keeps what a unit that runs will probably use from others that run at the same time, until it is counted.

        Args:
            owner: Whose unit it is; it replaces what was held for the same owner.
            unit: None for nothing any more.
        """
        self._held.pop(owner, None)
        if unit is not None:
            counted = [reading for reading in self.readings() if not _is_continuous(reading.limit)]
            self._held[owner] = {r.limit.name: reservation(r, unit) for r in counted if r.limit.pool is None}

    def refresh(self, limit: Limit, spends: Iterable[Spend]) -> None:
        """Takes in what everybody has spent of a limit with a pool."""
        quota = self._accounts[limit.name].quota
        self._accounts[limit.name] = Account(limit, spends)
        self._accounts[limit.name].quota = quota

    def watch(self) -> AbstractContextManager[dict[str, float]]:
        """Watches the gauges while units run; see `watched`."""
        return watched({limit.resource: self._meters[limit.resource] for limit in self._budget if is_gauge(limit)})

    def shut_down(self, usage: Mapping[str, float], seconds: float) -> None:
        """The session has ended in order; learns what that cost."""
        for reading in self.readings():
            resource = reading.limit.resource
            if reading.limit.scope != "session" or is_gauge(reading.limit):
                continue
            cost = seconds if resource == "seconds" else usage.get(resource, 0.0)
            self.forecasts[resource].close(cost, graceful=reading.used <= reading.amount, risk=self._budget.risk)
        if "seconds" not in self._accounts:
            # Whoever ends the process allows it so many seconds, whatever the budget says.
            self.forecasts["seconds"].shutdowns.add(seconds)

    def shutdown_seconds(self) -> float:
        """What the shutdown will hardly exceed."""
        return max(LEAST_SHUTDOWN_SECONDS, self.forecasts["seconds"].shutdown_cost(0.05))

    # Asking ---------------------------------------------------------------------------------------------------------

    def readings(self, *, held: bool = True) -> list[Reading]:
        """Every limit with what is used of it now. A meter may take milliseconds: what is asked several times before a
        unit is given the readings that were taken once.

        Args:
            held: With what is held for units that run.
        """
        return [self._read(limit, held=held) for limit in self._budget]

    def verdict(self, readings: Sequence[Reading] | None = None) -> Verdict:
        """How the budget stands for a typical unit."""
        return judge(self._or_now(readings), risk=self._budget.risk, first=self.units == 0)

    def refuse(self, unit: Expectation, readings: Sequence[Reading] | None = None) -> Refusal | None:
        """Why this unit should not be started now; None when it should."""
        first = self.units == 0 and not self._held
        return refuse(self._or_now(readings), unit, risk=self._budget.risk, first=first)

    def too_large(self, unit: Expectation, readings: Sequence[Reading] | None = None) -> str | None:
        """Why this unit fits into no session at all; None when it does into some."""
        return too_large(self._or_now(readings), unit)

    def had_all(self, resource: str, usage: Mapping[str, float]) -> bool:
        """Whether a unit that has spent this, and is counted, began with as much of the resource as there will ever be:
        no wider limit than the session's had been used before, or none that mattered."""
        limits = [reading for reading in self.readings(held=False) if reading.limit.resource == resource]
        tightest = min(limits, key=lambda reading: reading.remaining, default=None)
        if tightest is None or tightest.limit.scope == "session":
            return True
        return tightest.used <= usage.get(resource, 0.0)

    def ready_at(self, unit: Expectation) -> float | None:
        """The first moment at which this unit fits every window and total, in a fresh session.

        Returns:
            Now or later, in seconds since the Unix epoch; None if that never comes: a total is gone.
        """
        now = self._clock.now()
        lasting = [account for account in self._accounts.values() if account.limit.scope != "session"]
        moments = [now, *sorted({moment for account in lasting for moment in account.releases(now)})]

        def fits(moment: float) -> bool:
            readings = [self._reading(a.limit, a.later(moment), a.limit.amount) for a in lasting]
            return refuse(readings, unit, risk=self._budget.risk) is None

        if any(account.limit.resource in self._cancellable for account in lasting):
            # Room for a small attempt may be worth it where more room, for one that is cut off late, is not.
            return next(filter(fits, moments), None)
        # What is used only falls from one moment to the next, so the first that fits can be halved for.
        low, high = 0, len(moments)
        while low < high:
            middle = (low + high) // 2
            if fits(moments[middle]):
                high = middle
            else:
                low = middle + 1
        return moments[low] if low < len(moments) else None

    def is_blind(self) -> bool:
        """Whether nothing is known of what units cost that are limited: until one has ended, no second may begin."""
        limited = [limit.resource for limit in self._budget if not _is_continuous(limit)]
        return self.units == 0 and any(self.forecasts[resource].law() is None for resource in limited)

    def unasked_units(self, unit: Expectation, seconds: float, readings: Sequence[Reading] | None = None) -> int:
        """How many such units may run before the budget is asked again, in about so many seconds; at least 1."""
        expected = self.expected_seconds(unit)
        if not expected:
            return 1
        return max(1, int(min(unasked_units(self._or_now(readings), unit), seconds / expected)))

    def expected_seconds(self, unit: Expectation) -> float | None:
        """How long such a unit takes on average; None when that is not known yet."""
        law = self.forecasts["seconds"].law(unit.hint("seconds"))
        return None if law is None else law.mean()

    def reservations(self, unit: Expectation, readings: Sequence[Reading] | None = None) -> dict[str, float]:
        """What this unit reserves of each limit with a pool, by the limit's name."""
        return {r.limit.name: reservation(r, unit) for r in self._or_now(readings) if r.limit.pool is not None}

    def long_enough(self, readings: Sequence[Reading] | None = None) -> str | None:
        """Why the session should end though its budget does not say so: its units become dearer than a new start."""
        for reading in self._or_now(readings):
            best = self._best_length(reading)
            if best is not None and self.units >= best:
                name = reading.limit.resource
                return f"{self.units} units: their {name} grow, and a new start costs less from {best:.0f} units on"
        return None

    def units_to_best_length(self, readings: Sequence[Reading] | None = None) -> float:
        """How many more units the session will have until it is long enough; infinite if no cost says so."""
        found = (self._best_length(reading) for reading in self._or_now(readings))
        return min((max(0.0, best - self.units) for best in found if best is not None), default=inf)

    def _best_length(self, reading: Reading) -> float | None:
        name, law = reading.limit.resource, reading.forecast.law()
        if RESOURCES[name].kind == "gauge" or name == "seconds" or law is None or self.units < 2:
            return None
        mean = law.mean()
        otherwise = self.units + reading.remaining / mean if mean else 0.0
        return reading.forecast.course.best_length(otherwise)

    def room(self, readings: Sequence[Reading] | None = None) -> dict[str, float]:
        """What a unit may use of each limited resource from now on, without what is kept for the shutdown."""
        room: dict[str, float] = {}
        for reading in self._or_now(readings):
            name = reading.limit.resource
            room[name] = min(room.get(name, reading.remaining), reading.remaining)
        return room

    def rung(self, ladder: Mapping[float, str], readings: Sequence[Reading] | None = None) -> tuple[str, str] | None:
        """The highest rung of a ladder that the fullest limit has reached, and why; None below the first."""
        readings = self._or_now(readings)
        if not ladder or not readings:
            return None
        fullest = max(readings, key=lambda reading: reading.fraction)
        reached = [share for share in ladder if fullest.fraction >= share]
        return (ladder[max(reached)], describe(fullest)) if reached else None

    # Reading --------------------------------------------------------------------------------------------------------

    def _report(self, name: str, quota: Quota) -> None:
        if name in self._accounts:
            self._accounts[name].quota = latest_quota(self._accounts[name].quota, quota)

    def _or_now(self, readings: Sequence[Reading] | None) -> Sequence[Reading]:
        return self.readings() if readings is None else readings

    def _read(self, limit: Limit, *, held: bool) -> Reading:
        resource = limit.resource
        if is_gauge(limit):
            meter = self._meters[resource]
            return self._reading(limit, meter.level(), min(limit.amount, meter.capacity() or limit.amount))
        if limit.name == "seconds":
            # Time is the session's own, from its start to now: restoring and shutting down use it up too.
            return self._reading(limit, self.elapsed(), min(limit.amount, self._lifetime or limit.amount))
        kept = sum(amounts.get(limit.name, 0.0) for amounts in self._held.values()) if held else 0.0
        return self._reading(limit, self._accounts[limit.name].used(self._clock.now()) + kept, limit.amount)

    def _reading(self, limit: Limit, used: float, amount: float) -> Reading:
        cancellable = limit.resource in self._cancellable
        return Reading(limit, used, amount, self.forecasts[limit.resource], self._shutdown[limit.name], cancellable)

    def _shutdown_law(self, limit: Limit) -> tuple[Node, ...]:
        forecast = self.forecasts[limit.resource]
        # Nobody but the agent's own hooks can spend what is reported; until one does, a shutdown costs none of it.
        spends = limit.resource == "seconds" or forecast.shutdown_cost(0.01) > 0
        if limit.scope != "session" or is_gauge(limit) or not spends:
            return (Node(0.0, 1.0),)
        return forecast.shutdown_law(limit.amount, COLD_SHUTDOWN_SHARE)

    def state(self) -> dict[str, Any]:
        """The forecasts as JSON, by resource."""
        return {name: forecast.to_json() for name, forecast in self.forecasts.items()}


def _is_continuous(limit: Limit) -> bool:
    """Whether a unit uses it while it runs, and not when it is counted."""
    return is_gauge(limit) or limit.name == "seconds"
