"""Asking for more: what is asked about a real chain on a real ledger, and what an answer lets it do."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from pydantic import Field
from session_rig import Rig
from support import FakeClock, LedgerFactory, one_line

from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.approval import Approval, Decision
from perpetual_blocks.session.asking import Question, question, rounded_up
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.work import Unit, WorkItem

TOTAL = Limit("tokens", 130, scope="total")


class Bounded(PerpetualAgent):
    """Read documents that cannot cost more than is said of them."""

    costs: dict[str, float] = Field(default={"a": 60.0, "b": 60.0, "c": 60.0, "d": 30.0})

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=name, bound={"tokens": cost}) for name, cost in self.costs.items()]

    def work_unit(self, unit: Unit) -> None:
        unit.spend(tokens=self.costs[unit.id])


@pytest.fixture
def make_rig(make_ledger: LedgerFactory, clock: FakeClock) -> Callable[..., Rig]:
    """Makes a chain of an agent."""
    return lambda agent: Rig(make_ledger(), clock, agent)


def asked(rig: Rig) -> Question:
    """What is asked; there must be something."""
    found = question(rig.ledger, rig.ledger.chain("mine"), rig.clock.now())
    assert found is not None
    return found


def approve(rig: Rig, decision: Decision, **amounts: float) -> None:
    ordinal = rig.ledger.chain("mine").ordinal
    approval = Approval(decision=decision, session=ordinal, by="command", key=f"key-{ordinal}", amounts=amounts)
    rig.ledger.approve("mine", approval)


def test_what_is_asked(make_rig: Any) -> None:
    """How much is used, what the next unit lacks, and what all that is left takes; the suggestion is for all of it."""
    rig = make_rig(Bounded(costs=dict.fromkeys("abcd", 60.0)))
    assert rig.run(Budget(TOTAL)).state is SessionState.EXHAUSTED

    found = asked(rig)

    assert (found.chain, found.session, found.done, found.items, found.item) == ("mine", 1, 2, 4, "c")
    (total,) = found.totals
    assert (total.resource, total.used, total.amount, total.granted, total.most) == ("tokens", 120, 130, 0, 130)
    assert total.lacking == pytest.approx(50)
    assert total.rest == pytest.approx((110.0, 110.0))
    assert total.suggested == 110
    assert found.for_one_unit() == {"tokens": 50}


def test_more_lets_the_chain_go_on(make_rig: Any) -> None:
    """With what was approved on top of the budget that the code has; the handoff and the status say so."""
    rig = make_rig(Bounded())
    rig.run(Budget(TOTAL))
    approve(rig, Decision.MORE, tokens=60.0)

    end = rig.run(Budget(TOTAL))

    assert (end.state, end.reason.message) == (
        SessionState.EXHAUSTED,
        "needs 30 tokens; 10 tokens left of 190 tokens in all",
    )
    handoff = rig.document("handoff", 2)
    assert "- a person has approved 60 tokens more" in handoff
    assert "`perpetual approve mine --more tokens=AMOUNT`" in handoff
    status = chain_status(rig.ledger, "mine")
    assert [(one["session"], one["amounts"]) for one in status["approvals"]] == [(1, {"tokens": 60.0})]
    (limit,) = [limit for limit in status["sessions"][1]["limits"] if limit["name"] == "tokens/total"]
    assert (limit["used"], limit["amount"]) == (180, 190)
    (total,) = asked(rig).totals
    assert (total.granted, total.amount, total.most) == (60, 190, 130)
    approve(rig, Decision.MORE, tokens=total.suggested)
    assert rig.run(Budget(TOTAL)).state is SessionState.FINISHED
    assert chain_usage(rig.ledger.sessions("mine"))["tokens"] == 210


def test_finish_this_unit_runs_one(make_rig: Any) -> None:
    """One unit in spite of the total, and then a person is asked again."""
    rig = make_rig(Bounded())
    rig.run(Budget(TOTAL))
    for left in (1, 0):
        approve(rig, Decision.FINISH_UNIT, **asked(rig).for_one_unit())
        end = rig.run(Budget(TOTAL))
        assert rig.ledger.sessions("mine")[-1].units == 1
        assert end.state is (SessionState.EXHAUSTED if left else SessionState.FINISHED)


def test_two_totals_are_gone(make_rig: Any) -> None:
    """Both are asked about, those that lack more of what they are first."""

    class Both(Bounded):
        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id=name, bound={"tokens": 60, "cost": 2.5}) for name in "abc"]

        def work_unit(self, unit: Unit) -> None:
            unit.spend(tokens=60, cost=2.5)

    rig = make_rig(Both())
    assert rig.run(Budget(TOTAL, Limit("cost", 5.5, scope="total"))).state is SessionState.EXHAUSTED
    assert [(total.resource, total.suggested) for total in asked(rig).totals] == [("tokens", 50), ("cost", 2)]


def test_a_unit_that_is_larger_than_all(make_rig: Any) -> None:
    """It is not asked for by itself: even as much again would be too little."""
    rig = make_rig(Bounded())
    rig.run(Budget(TOTAL))
    rig.run(Budget(Limit("tokens", 70, scope="total")))  # somebody has lowered the limit meanwhile
    found = asked(rig)
    assert (found.totals[0].used, found.totals[0].lacking) == (120, None)
    with pytest.raises(InvalidInput) as refused:
        found.for_one_unit()
    one_line(refused.value, "finish-unit", "'c'", "70 tokens in all")


def test_a_pool_is_nobodys_to_raise(make_rig: Any) -> None:
    """Where all that is gone is shared, nothing is asked."""
    rig = make_rig(Bounded())
    end = rig.run(Budget(Limit("tokens", 130, scope="total", pool="team")))
    assert end.state is SessionState.EXHAUSTED
    assert question(rig.ledger, rig.ledger.chain("mine"), rig.clock.now()) is None
    with pytest.raises(InvalidInput) as refused:
        approve(rig, Decision.MORE, tokens=10.0)
    one_line(refused.value, "pool team", "raise the limit")


def test_nothing_is_asked_of_a_chain_that_goes_on(make_rig: Any) -> None:
    """It waits for a window by itself."""
    rig = make_rig(Bounded())
    rig.run(Budget(Limit("tokens", 130, scope="window", window="1h")))
    chain = rig.ledger.chain("mine")
    assert chain.status is ChainStatus.WAITING
    assert question(rig.ledger, chain, rig.clock.now()) is None


@pytest.mark.parametrize(
    ("resource", "amount", "rounded"),
    [("tokens", 0, 0), ("tokens", 0.2, 1), ("tokens", 7, 7), ("tokens", 35, 35), ("tokens", 12_345, 13_000),
     ("cost", 0.0123, 0.013), ("cost", 2.01, 2.1), ("cost", 5, 5)],
)  # fmt: skip
def test_two_figures(resource: str, amount: float, rounded: float) -> None:
    """An amount for a person is never less than what is needed."""
    assert rounded_up(resource, amount) == rounded
