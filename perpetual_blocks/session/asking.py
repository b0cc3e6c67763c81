"""Asking: a chain whose total is gone asks a person. What is asked, and which answers are taken.

A total does not reset, so there is nothing to wait for: for a window the chain waits by itself, and asks nobody. The
state comes first: the session has ended, and the chain is Exhausted, before anybody is asked; so the question may be
lost, answered twice or never, and the chain stands.
"""

import math
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from perpetual_blocks.budget import Budget, Forecast, Limit, Reading
from perpetual_blocks.budget.shortfall import shortfall
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.approval import Approval, Decision, granted
from perpetual_blocks.session.chain import Chain, ChainStatus
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.planning import OUTLOOK_DRAWS, OUTLOOK_ITEMS, plan_chain
from perpetual_blocks.session.ports import Runs
from perpetual_blocks.usage import OURS, show
from perpetual_blocks.work import Item, ItemStatus

UNKNOWN_SHARE = 0.1
"""The share of a limit that is suggested where nothing is known of what the rest will take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A total of a chain's own that is gone, or nearly; amounts in the resource's unit.

    Attributes:
        limit: As the budget has it.
        granted: What was approved before.
        lacking: What the next unit needs more; None where even the most that may be approved is too little.
        rest: What all that is left will probably take more, in half and in 9 of 10 futures; None where that is unknown.
    """

    limit: Limit
    granted: float
    used: float
    lacking: float | None
    rest: tuple[float, float] | None

    @property
    def resource(self) -> str:
        return self.limit.resource

    @property
    def amount(self) -> float:
        """The limit with what was approved."""
        return self.limit.amount + self.granted

    @property
    def most(self) -> float:
        """What may be approved at once: as much again as the budget says. Who wants more says so twice."""
        return self.limit.amount

    @property
    def suggested(self) -> float:
        """What the rest takes in 9 of 10 futures, in two figures; at least what the next unit needs."""
        wanted = self.rest[1] if self.rest is not None else UNKNOWN_SHARE * self.limit.amount
        return min(self.most, rounded_up(self.resource, max(wanted, self.lacking or 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person is to decide about.

    Attributes:
        session: The session that ended when the total was gone.
        totals: Those that are gone, the one that lacks most of its amount first.
        item: Whose unit is the next.
        rest_sessions, rest_seconds: What all that is left will probably take; None where that is not known.
    """

    chain: str
    session: int
    totals: tuple[Total, ...]
    done: int
    items: int
    item: str | None
    rest_sessions: float | None = None
    rest_seconds: float | None = None

    def for_one_unit(self) -> dict[str, float]:
        """How much more the next unit needs, by resource.

        Raises:
            InvalidInput: as much again as the budget says would be too little for it.
        """
        for total in self.totals:
            if total.lacking is None:
                raise InvalidInput.of(
                    "finish-unit",
                    self.item,
                    f"an item that fits into twice the {total.limit}; raise that limit, or discard the item",
                )
        return {total.resource: rounded_up(total.resource, total.lacking or 0.0) for total in self.totals}


def question(ledger: Ledger, chain: Chain, now: float) -> Question | None:
    """What is to be asked about a chain; None where no total is gone that is its own to raise."""
    if chain.status is not ChainStatus.EXHAUSTED:
        return None
    record = budget_record(ledger, chain, chain.budget, now, before=chain.ordinal + 1)
    items = ledger.items(chain.name, ItemStatus.AVAILABLE, 1, taken=True)
    rest = _Rest(ledger, chain, now)
    before = granted(chain.approvals)
    stopped_by = (ledger.sessions(chain.name)[-1].stop_reason or "").removeprefix("exhausted:")
    totals = []
    for limit in chain.budget:
        if limit.scope != "total" or limit.pool is not None:
            continue
        more = before.get(limit.resource, 0.0)
        used = record.totals.get(limit.resource, 0.0)
        reading = Reading(limit, used, limit.amount, record.forecasts.get(limit.resource) or Forecast())
        lacking = _lacking(reading, items, chain.budget)
        if lacking != 0.0 or limit.resource == stopped_by:
            plain = Limit.from_json({**limit.to_json(), "amount": limit.amount - more})
            left = limit.amount - used
            totals.append(
                Total(limit=plain, granted=more, used=used, lacking=lacking, rest=rest.more(limit.resource, left))
            )
    if not totals:
        return None
    counts = ledger.counts(chain.name)
    return Question(
        chain=chain.name,
        session=chain.ordinal,
        totals=tuple(sorted(totals, key=lambda total: -(total.lacking or math.inf) / total.limit.amount)),
        done=counts.get(ItemStatus.COMPLETED, 0),
        items=sum(counts.values()),
        item=items[0].id if items else None,
        rest_sessions=rest.quantile("sessions"),
        rest_seconds=rest.quantile("duration"),
    )


def _lacking(reading: Reading, items: list[Item], budget: Budget) -> float | None:
    """What the next unit needs more of a total. The limits share one risk, and each of them may have its part."""
    if not items:
        return None if reading.used >= reading.amount else 0.0
    return shortfall(reading, items[0].expectation, risk=budget.risk / len(list(budget)))


class _Rest:
    """What all that is left would take if no total ended it."""

    def __init__(self, ledger: Ledger, chain: Chain, now: float) -> None:
        self._plan = None
        counts = ledger.counts(chain.name, taken=True)
        left = sum(counts.get(status, 0) for status in (ItemStatus.CLAIMED, ItemStatus.AVAILABLE, ItemStatus.BLOCKED))
        if 0 < left <= OUTLOOK_ITEMS:
            endless = Budget(*(limit for limit in chain.budget if limit.scope != "total"), risk=chain.budget.risk)
            self._plan = plan_chain(ledger, chain, endless, now, OUTLOOK_DRAWS)

    def quantile(self, name: str, share: float = 0.5) -> float | None:
        return self._plan.quantile(share, name) if self._plan is not None else None

    def more(self, resource: str, left: float) -> tuple[float, float] | None:
        half, nine = self.quantile(resource), self.quantile(resource, 0.9)
        if not half or not nine:  # what nothing is known of is not in the plan
            return None
        return max(0.0, half - left), max(0.0, nine - left)


def check_open(chain: Chain, approval: Approval) -> None:
    """Refuses a decision that comes too late, or that the chain has no use for.

    A person's command counts whenever the chain is Exhausted; what a form or its deadline says only where nobody has
    decided yet.

    Raises:
        InvalidInput: it is one.
    """
    if chain.status is not ChainStatus.EXHAUSTED:
        raise InvalidInput.of("chain", chain.name, f"one whose total is gone; this one is {chain.status}")
    if approval.session != chain.ordinal:
        now = f"the latest, {chain.ordinal}: others have gone on with {chain.name}"
        raise InvalidInput.of("session", approval.session, now)
    before = next((one for one in chain.approvals if one.session == chain.ordinal), None)
    if approval.by != "command" and before is not None:
        raise InvalidInput.of("answer", approval.decision.value, f"none any more: {before}")
    if approval.decision is Decision.MORE and not approval.amounts:
        raise InvalidInput.of("more", None, "a resource and an amount, as tokens=50000")
    check_amounts(chain, approval.amounts)


def check_amounts(chain: Chain, amounts: Mapping[str, float]) -> None:
    """Refuses amounts that are none, and those of what is not the chain's own total.

    Raises:
        InvalidInput: names the resource, and what was expected.
    """
    before = granted(chain.approvals)
    totals = ", ".join(limit.resource for limit in chain.budget if limit.scope == "total") or "none"
    for resource, amount in amounts.items():
        limit = chain.budget.total(resource)
        if limit is None:
            raise InvalidInput.of("more", resource, f"a resource that {chain.name} has a total limit of: {totals}")
        if limit.pool is not None:
            raise InvalidInput.of(
                f"more.{resource}",
                amount,
                f"nothing for a pool, which is not one chain's: raise the limit of pool {limit.pool} for all who name "
                f"it, and `perpetual resume {chain.name}`",
            )
        most = limit.amount - before.get(resource, 0.0)
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or not 0 < amount <= most:
            expected = f"a number above 0 and at most {most:.15g}: as much again as the limit, {show(resource, most)}"
            raise InvalidInput.of(f"more.{resource}", amount, expected)


def rounded_up(resource: str, amount: float) -> float:
    """An amount in two figures, whole where the resource is counted."""
    if amount <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(amount)) - 1)
    if resource in OURS and resource != "cost":
        step = max(1.0, step)
    return round(math.ceil(amount / step - 1e-9) * step, 12)


def reason_after(approval: Approval, chain: str, why: str, *, follows: bool) -> str:
    """How a chain stands after a decision, in a sentence.

    Args:
        why: Why its total is gone.
        follows: Whether the next run can be created.
    """
    if approval.goes_on:
        return f"{approval}" + ("" if follows else "; start a run of it")
    return f"{why}; {approval}; `perpetual approve {chain}` lets it go on"


def close_question(ledger: Ledger, runs: Runs, chain: Chain, now: float) -> str | None:
    """Ends a question that nobody has answered in time, and its run; why, or None where it is not over."""
    if chain.status is not ChainStatus.EXHAUSTED or chain.asks_until is None or now < chain.asks_until:
        return None
    latest = ledger.sessions(chain.name)[-1]
    unanswered = Approval(decision=Decision.NO_ANSWER, session=chain.ordinal, by="deadline", key=secrets.token_hex(8))
    try:
        reason = ledger.approve(chain.name, unanswered).reason
    except InvalidInput:
        return None  # somebody has answered meanwhile
    if latest.flow_run_id is not None:
        with suppress(Exception):  # the chain stands as it does
            runs.end_suspended(latest.flow_run_id, "Exhausted", reason)
    return reason
