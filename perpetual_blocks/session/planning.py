"""The plan of a chain, from what its ledger knows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from math import ceil

from perpetual_blocks.budget import Budget, Forecast, Record, Spend
from perpetual_blocks.budget.plan import DRAWS, Pace, Plan, Work, simulate, usual_pace
from perpetual_blocks.session.account import budget_record, learned_by
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.metrics import own_limits
from perpetual_blocks.usage import show, show_duration
from perpetual_blocks.work import Item, ItemStatus, WorkItem

OPEN = (ItemStatus.CLAIMED, ItemStatus.AVAILABLE, ItemStatus.BLOCKED)

MOST_ITEMS = 100_000
MOST_SPENDS = 500

LATEST, FEW_UNITS = 5, 8
"""How much work is done at once is told from so many sessions, of those with at least so many units."""

OUTLOOK_ITEMS, OUTLOOK_DRAWS = 5_000, 2_500
"""An outlook is made while the next session waits for this one to end."""


def plan_chain(
    ledger: Ledger,
    chain: Chain,
    budget: Budget,
    now: float,
    draws: int = DRAWS,
    forecasts: Mapping[str, Forecast] | None = None,
) -> Plan:
    """What is to come for a chain with this budget, whichever budget it has had so far.

    Args:
        forecasts: What was learned, by resource; as the ledger has it if not given.
    """
    record = budget_record(ledger, chain, budget, now, before=chain.ordinal + 1, forecasts=forecasts)
    return plan_rest(ledger, chain, budget, record, now, draws=draws)


def plan_rest(
    ledger: Ledger,
    chain: Chain,
    budget: Budget,
    record: Record,
    now: float,
    *,
    most_items: int = MOST_ITEMS,
    draws: int = DRAWS,
    begun: Mapping[str, float] | None = None,
) -> Plan:
    """The same, given what has been spent and learned until now.

    Args:
        most_items: So many are looked at; those beyond are taken to be like them.
        begun: What the session at work has used of its own limits; None where a new one is to come first.
    """
    counts = ledger.counts(chain.name, taken=True)
    left: list[Item] = []
    for status in OPEN:
        if counts.get(status, 0) and len(left) < most_items:
            left += ledger.items(chain.name, status, most_items - len(left), taken=True)
    still_open = sum(counts.get(status, 0) for status in OPEN)
    each = _units_each(ledger, chain)
    # Of a queue that others work on, too, there is the less for this one.
    share = max(1.0, still_open / max(1, len(left))) / _workers(ledger, chain)
    work = list(_scaled(_work(left, each), share))
    spends = {limit.name: _lumped(record.spent_of(limit)) for limit in budget}
    pace = _pace(ledger.sessions(chain.name), now)
    return simulate(work, budget, record.forecasts, now, spends=spends, pace=pace, begun=begun, draws=draws)


def outlook(ledger: Ledger, chain: Chain, budget: Budget, now: float, forecasts: Mapping[str, Forecast]) -> str | None:
    """What is to come in a sentence, for a handoff; None where that would take long to say."""
    counts = ledger.counts(chain.name, taken=True)
    left = sum(counts.get(status, 0) for status in OPEN)
    if not 0 < left <= OUTLOOK_ITEMS:
        return None
    plan = plan_chain(ledger, chain, budget, now, OUTLOOK_DRAWS, forecasts)
    sessions = plan.quantile(0.5, "sessions")
    parts = [f"about {sessions:,.0f} more session{'s' if sessions > 1 else ''}"]
    if "seconds" not in plan.unknown:
        parts[0] += f" in {show_duration(plan.quantile(0.5, 'duration'))}"
        if (longer := plan.quantile(0.9, "duration")) > 1.05 * plan.quantile(0.5, "duration"):
            parts.append(f"in 9 of 10 futures at most {show_duration(longer)}")
    if waiting := plan.quantile(0.5, "waiting"):
        parts.append(f"{show_duration(waiting)} of it waiting for quotas")
    spends = [name for name in ("tokens", "cost", "calls") if plan.quantile(0.5, name)]
    parts += [f"{show(name, plan.quantile(0.5, name))} more" for name in spends]
    if plan.finishes < 1:
        parts.append(f"in {1 - plan.finishes:.0%} of the futures a total is gone before the work is done")
    return ", ".join(parts)


def plan_items(ledger: Ledger, agent: str, items: Iterable[WorkItem], budget: Budget, now: float) -> Plan:
    """What is to come for a new chain of an agent; what its latest chain has learned is used."""
    units: dict[tuple[object, ...], Work] = {}
    for item in items:
        said = item.expectation
        before = units.get(said.key)
        units[said.key] = Work(said, 1 + (before.units if before else 0))
    return simulate(list(units.values()), budget, learned_by(ledger, agent), now)


def _work(items: Sequence[Item], units_each: float) -> list[Work]:
    # Of items in a row of which the same is said, the costs are drawn from one law.
    alike = groupby(items, lambda item: item.expectation.key)
    groups = (list(group) for _, group in alike)
    return [Work(group[0].expectation, sum(_units_left(item, units_each) for item in group)) for group in groups]


def _lumped(spends: Sequence[Spend]) -> Sequence[Spend]:
    """Several spends as one where there are many, at the moment of the last: each future goes through all."""
    step = ceil(len(spends) / MOST_SPENDS)
    if step <= 1:
        return spends
    lumps = (spends[start : start + step] for start in range(0, len(spends), step))
    return [Spend(lump[-1].at, sum(spend.amount for spend in lump)) for lump in lumps]


def _scaled(work: Iterable[Work], factor: float) -> Iterator[Work]:
    """The work with so many times its units, which stay whole numbers."""
    before = exact = 0.0
    for one in work:
        exact += one.units * factor
        if units := round(exact - before):
            before += units
            yield Work(one.expectation, units)


def _workers(ledger: Ledger, chain: Chain) -> int:
    """How many chains take what this one takes of the queue, this one among them."""
    others = (one for one in ledger.chains(chain.queue) if one.name != chain.name)
    return 1 + sum(
        one.status is ChainStatus.RUNNING and (one.selector.takes_all or one.selector == chain.selector)
        for one in others
    )


def _units_left(item: Item, units_each: float) -> int:
    if item.progress and item.progress[0] > 0:
        done, total = item.progress
        return max(1, ceil(item.units * (total - done) / done))
    return max(1, round(units_each) - item.units)


def _units_each(ledger: Ledger, chain: Chain) -> float:
    """How many units an item of the queue takes, of those that are done."""
    done = ledger.counts(chain.name).get(ItemStatus.COMPLETED, 0)
    units = sum(session.units for one in ledger.chains(chain.queue) for session in ledger.sessions(one.name))
    return max(1.0, units / done) if done else 1.0


def _pace(sessions: Sequence[SessionRecord], now: float) -> Pace:
    ended = [session for session in sessions if session.ended_at is not None]
    gaps = [
        after.started_at - (before.ended_at or 0.0)
        for before, after in pairwise(ended)
        # A session that waited for its quota, or for a person, says nothing of how long a handoff takes.
        if before.graceful and after.started_at - (before.ended_at or 0.0) < 60
    ]
    by_budget = [
        session for session in ended if (session.stop_reason or "").startswith("budget:") and session.units > 1
    ]
    return usual_pace(
        [session.resume_seconds for session in sessions if session.resume_seconds is not None],
        [sum(step["seconds"] for step in session.steps) for session in ended if session.steps],
        gaps,
        [
            max(limit["used"] / limit["amount"] for limit in own)
            for session in by_budget
            if (own := own_limits(session))
        ],
        [rate for session in sessions[-LATEST:] if (rate := _parallel(session, now)) is not None],
    )


def _parallel(session: SessionRecord, now: float) -> float | None:
    """How many seconds of units' work a session has done in a second; None where it has too few units to tell."""
    seconds = session.usage.get("seconds", 0.0)
    beside: float = (session.resume_seconds or 0.0) + sum(step["seconds"] for step in session.steps)
    at_work = (session.ended_at or now) - session.started_at - beside
    if session.units < FEW_UNITS or seconds <= 0 or at_work <= 0:
        return None
    return seconds / at_work
