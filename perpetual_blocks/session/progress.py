"""How a chain gets on, for those who watch it while it works: in a terminal, and in Prefect's UI.

All of it is read from the ledger, so that who watches needs nothing else, and disturbs nobody. What takes long to find
out, when it will be over and what counts in windows, is asked for seldom, and remembered in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perpetual_blocks.budget import Budget, BudgetMonitor, Forecast, Limit, Record
from perpetual_blocks.budget.plan import Plan
from perpetual_blocks.clock import Clock, SystemClock
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.agents import AgentLine, Agents
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.planning import OPEN, OUTLOOK_DRAWS, plan_rest
from perpetual_blocks.session.status import in_short
from perpetual_blocks.usage import RESOURCES, show
from perpetual_blocks.work import Item, ItemStatus

FIRST_SECONDS, FORESEEN_SECONDS = 3.0, 30.0
"""How often the end is foreseen: soon again in the beginning, when each unit tells much, and then every 30 s."""

SHARE_OF_TIME = 0.01
"""How much of the time that may take, at most."""

LOOKED_AT = 1000
"""How many items that are left are looked at; those beyond are taken to be like them."""

LEARNED_UNITS = 500
"""From so many units of a session on, what it has learned is not asked for again."""

SHOWN_ITEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When a chain will be over, waits for windows and between sessions included.

    Attributes:
        p50: When it is over in half of the simulated futures, in seconds since the Unix epoch; `p90` in 9 of 10.
        sessions: How many are still to come, with the one at work.
        waiting: Seconds of waiting for windows.
        gone: In what share of the futures a total is gone before the work is done.
        session_ends: When the session at work ends, in seconds since the Unix epoch; None where none is, or its end is
            the chain's.
        next_begins: When the session after it begins.
    """

    p50: float
    p90: float
    sessions: int
    waiting: float = 0.0
    gone: float = 0.0
    session_ends: float | None = None
    next_begins: float | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """A limit, and what is used of it now."""

    limit: Limit
    used: float

    def __str__(self) -> str:
        used, amount = show(self.limit.resource, self.used), show(self.limit.resource, self.limit.amount)
        return f"{used} of {amount}{self.limit.per} ({self.used / self.limit.amount:.0%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a chain gets on at this moment.

    Attributes:
        at: When that was, in seconds since the Unix epoch.
        status: The cheap part of what `perpetual status --json` prints.
        levels: The budget's limits, but for gauges, which only the session's own process can read.
        agents: The chains that work on the queue, this one among them; none where it has no company.
        running: Items that are being worked on, the first of them; `discarded` those that were given up.
        resume_at: When the next session begins, where the chain waits for a moment, in seconds since the Unix epoch.
        ends_at: When the session at work said that it ends, with the next one up ahead of that.
        eta: None where nothing is left, it does not go on, or how long units take is not known yet.
        silent: For how many seconds the lease of the session at work has run out: its process may be dead.
    """

    at: float
    status: dict[str, Any]
    levels: Sequence[Level]
    per_minute: float
    agents: Sequence[AgentLine] = ()
    running: Sequence[Item] = ()
    discarded: Sequence[Item] = ()
    resume_at: float | None = None
    ends_at: float | None = None
    eta: Eta | None = None
    silent: float = 0.0

    @property
    def goes_on(self) -> bool:
        """Whether it is at work, or will be by itself."""
        return self.status["status"] in (ChainStatus.RUNNING, ChainStatus.WAITING)

    @property
    def session(self) -> dict[str, Any] | None:
        """The latest session."""
        return self.status["sessions"][-1] if self.status["sessions"] else None


@dataclass(slots=True, kw_only=True)
class _Foreseen:
    """What was found out the last time, and when it is time to do so again, by the monotonic clock: where something has
    happened that changes it, at the soonest moment.

    Attributes:
        learned_in: The session that the forecasts are enough for.
    """

    key: tuple[object, ...]
    soonest: float
    again: float
    eta: Eta | None
    lasting: dict[str, float]
    usage: dict[str, float]
    forecasts: dict[str, Forecast]
    learned_in: int | None


@dataclass(slots=True)
class Onlooker:
    """Looks at a chain again and again.

    Attributes:
        agents: Those of its queue, as far as they were looked at.
    """

    ledger: Ledger
    name: str
    clock: Clock = field(default_factory=SystemClock)
    agents: Agents = field(default_factory=Agents)
    _foreseen: _Foreseen | None = None
    _began: float | None = None

    def look(self) -> Progress:
        """How the chain gets on now.

        Raises:
            UnknownChain: there is no such chain.
            LedgerUnavailable: the ledger is away.
        """
        ledger, now = self.ledger, self.clock.now()
        chain, sessions, counts = ledger.chain(self.name), ledger.sessions(self.name), ledger.counts(self.name)
        status = in_short(ledger, chain, sessions, counts)
        budget = chain.budget
        foreseen = self._foresee(chain, sessions, budget, now)
        mine = self.agents.line(chain, sessions, now)
        running = chain.status is ChainStatus.RUNNING
        return Progress(
            at=now,
            status=status,
            levels=_levels(budget, sessions, foreseen, now),
            per_minute=mine.per_minute or _average(sessions, now),
            agents=self.agents.lines(ledger, chain.queue, now) if status["others"] else (),
            running=self._items(ItemStatus.CLAIMED) if counts.get(ItemStatus.CLAIMED) else (),
            discarded=self._items(ItemStatus.DISCARDED) if counts.get(ItemStatus.DISCARDED) else (),
            resume_at=chain.resume_at if chain.status is ChainStatus.WAITING else None,
            ends_at=sessions[-1].ends_at if running and sessions else None,
            eta=_from_now(foreseen.eta, now) if goes_on(chain) else None,
            silent=max(0.0, now - chain.lease_until) if running else 0.0,
        )

    def _items(self, status: ItemStatus) -> list[Item]:
        return self.ledger.items(self.name, status, SHOWN_ITEMS)

    def _foresee(self, chain: Chain, sessions: Sequence[SessionRecord], budget: Budget, now: float) -> _Foreseen:
        key = (chain.status, chain.ordinal, chain.resume_at, chain.planned)
        began = self.clock.monotonic()
        self._began = began if self._began is None else self._began
        before = self._foreseen
        if before is not None and began < (before.again if before.key == key else before.soonest):
            return before
        known = before.forecasts if before is not None and before.learned_in == chain.ordinal else None
        record = budget_record(self.ledger, chain, budget, now, before=chain.ordinal + 1, forecasts=known)
        lasting = BudgetMonitor(_without_gauges(budget), self.clock, {}, record).readings()
        at_work = sessions[-1] if sessions and sessions[-1].state is SessionState.RUNNING else None
        eta = self._eta(chain, budget, record, at_work, now)
        took = self.clock.monotonic() - began
        often = min(FORESEEN_SECONDS, max(FIRST_SECONDS, (began - self._began) / 10))
        soonest = began + took / SHARE_OF_TIME
        used = {reading.limit.name: reading.used for reading in lasting}
        enough = bool(sessions) and sessions[-1].units >= LEARNED_UNITS
        self._foreseen = _Foreseen(
            key=key,
            soonest=soonest,
            again=max(soonest, began + often),
            eta=eta,
            lasting=used,
            usage=chain_usage(sessions),
            forecasts=record.forecasts,
            learned_in=chain.ordinal if enough else None,
        )
        return self._foreseen

    def _eta(
        self, chain: Chain, budget: Budget, record: Record, at_work: SessionRecord | None, now: float
    ) -> Eta | None:
        counts = self.ledger.counts(self.name, taken=True)
        if not goes_on(chain) or not any(counts.get(status, 0) for status in OPEN):
            return None
        begun = None if at_work is None else {**at_work.usage, "seconds": now - at_work.started_at}
        begins = now if at_work is not None else max(now, chain.resume_at or now)
        plan = plan_rest(
            self.ledger,
            chain,
            budget,
            record,
            begins,
            most_items=LOOKED_AT,
            draws=OUTLOOK_DRAWS,
            begun=begun,
        )
        return foreseen(plan, begins, begins - now, at_work=at_work is not None)


def goes_on(chain: Chain) -> bool:
    """Whether it is at work, or will be by itself."""
    return chain.status in (ChainStatus.RUNNING, ChainStatus.WAITING)


def _from_now(eta: Eta | None, now: float) -> Eta | None:
    """What was foreseen a while ago is not in the past."""
    return None if eta is None else replace(eta, p50=max(now, eta.p50), p90=max(now, eta.p90))


def foreseen(plan: Plan, begins: float, waits: float = 0.0, *, at_work: bool) -> Eta | None:
    """What a plan says of the end; None where how long units take is not known.

    Args:
        begins: When it begins, in seconds since the Unix epoch.
        waits: For how many seconds that is waited for.
        at_work: Whether its first session is at work already.
    """
    if "seconds" in plan.unknown or not plan.runs:
        return None
    eta = Eta(
        p50=begins + plan.quantile(0.5, "duration"),
        p90=begins + plan.quantile(0.9, "duration"),
        sessions=int(plan.quantile(0.5, "sessions")),
        waiting=waits + plan.quantile(0.5, "waiting"),
        gone=1 - plan.finishes,
    )
    stretches = plan.middle().stretches
    if at_work and len(stretches) > 2 and stretches[0].kind == "work":
        ends = begins + stretches[0].seconds
        return replace(eta, session_ends=ends, next_begins=ends + stretches[1].seconds)
    return eta


def _levels(budget: Budget, sessions: Sequence[SessionRecord], before: _Foreseen, now: float) -> list[Level]:
    usage, since = chain_usage(sessions), before.usage
    latest = sessions[-1] if sessions else None
    levels = []
    for limit in _without_gauges(budget):
        name = limit.resource
        if limit.scope != "session":
            used = before.lasting.get(limit.name, 0.0) + usage.get(name, 0.0) - since.get(name, 0.0)
        elif latest is None:
            used = 0.0
        elif name == "seconds":
            used = (latest.ended_at or now) - latest.started_at
        else:
            used = latest.usage.get(name, 0.0)
        levels.append(Level(limit, max(0.0, used)))
    return levels


def _without_gauges(budget: Budget) -> Budget:
    return Budget(*(limit for limit in budget if RESOURCES[limit.resource].kind == "counter"), risk=budget.risk)


def _average(sessions: Sequence[SessionRecord], now: float) -> float:
    """Units a minute of the latest session, for who has just begun to look."""
    if not sessions or not sessions[-1].units:
        return 0.0
    return 60 * sessions[-1].units / max(1.0, (sessions[-1].ended_at or now) - sessions[-1].started_at)
