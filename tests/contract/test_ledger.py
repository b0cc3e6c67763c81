"""The ledger's contract: one suite for every implementation.

Another database is one more entry of `DATABASES` (and of `SHARED`, where several processes can open it).
"""

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from postgres_server import address_of
from processes import MANY
from sqlalchemy import event, select
from support import (
    KINDS,
    LEASE,
    FakeClock,
    LedgerFactory,
    claim,
    close,
    commit_unit,
    finish_next,
    item_in,
    one_line,
    open_session,
    session_request,
    start_chains,
    status_of,
    work_through,
)

from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.budget import Budget, Expectation, Limit, Quota, Spend
from perpetual_blocks.errors import Fenced, InvalidInput, LedgerError, Superseded, UnknownChain
from perpetual_blocks.session.attempts import Attempt, Story, back_off
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, invitation
from perpetual_blocks.session.ledger import Claim, Document, Fence, Finished, FollowOn, Misfit, Reserve, UnitCost
from perpetual_blocks.work import Item, ItemStatus, Outcome, WorkItem

DATABASES = ("sqlite-file", "sqlite-memory", "postgres")
SHARED = ("sqlite-file", "postgres")

SPAWN = multiprocessing.get_context("spawn")
CHILD_SECONDS = 60


@pytest.fixture(params=DATABASES)
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


@pytest.fixture(params=SHARED)
def shared_address(request: pytest.FixtureRequest) -> str:
    """The address of an empty database that several processes can open."""
    return address_of(request.param, request)


def usage_rows(ledger: SqlLedger, chain: str = "mine") -> list[tuple[str, int, int, str, float]]:
    """The account: (item, unit, failure, resource, amount); the port itself shows no more than its sum."""
    columns = [schema.usage.c[name] for name in ("item", "unit", "failure", "resource", "amount")]
    with ledger._engine.connect() as connection:
        rows = connection.execute(select(*columns).where(schema.usage.c.chain == chain).order_by(*columns)).all()
    return [tuple(row) for row in rows]


def everything(ledger: SqlLedger, chain: str = "mine") -> tuple[Any, ...]:
    """All that the ledger says of a chain, to see that nothing was changed."""
    return (
        ledger.chain(chain),
        ledger.sessions(chain),
        ledger.items(chain, limit=10_000),
        ledger.documents(chain, "checkpoint"),
        ledger.documents(chain, "handoff"),
        ledger.pending_follow_ons(chain),
        usage_rows(ledger, chain),
    )


def follow_on_of(fence: Fence, uid: str, **changes: Any) -> FollowOn:
    """The follow-on of a session."""
    follow_on = FollowOn(
        chain=fence.chain,
        ordinal=fence.ordinal + 1,
        idempotency_key=invitation(uid, fence.ordinal + 1),
        deployment_id="deployment",
        parameters={"chain": fence.chain, "depth": 3},
        run_name=f"{fence.chain} · {fence.ordinal + 1}",
        tags=("perpetual", f"chain:{fence.chain}"),
        job_variables={"env": {"A": "1"}},
        work_queue="urgent",
    )
    return replace(follow_on, **changes)


def checkpoint_of(fence: Fence, **changes: Any) -> Document:
    """A document of a session."""
    key = f"{fence.chain}/checkpoints/{fence.ordinal}.json"
    return replace(Document("checkpoint", fence.ordinal, key, "0" * 64, 17), **changes)


def items(*ids: str, **fields: Any) -> list[WorkItem]:
    """Work items that are alike but for their ids."""
    return [WorkItem(id=item, **fields) for item in ids]


# Who may start --------------------------------------------------------------------------------------------------------


def test_first_session_makes_the_chain(ledger: SqlLedger, clock: FakeClock) -> None:
    """A chain that is new is made, owned by its first session, and not planned yet."""
    opened = open_session(ledger, "mine", "first", flow_run_id="run-1", deployment_id="deployment")

    assert opened.fence == Fence("mine", ordinal=1, epoch=1, holder="first")
    assert (opened.previous, opened.took_over) == (None, False)
    assert opened.chain == ledger.chain("mine")
    chain = opened.chain
    assert (chain.status, chain.planned, chain.context) == (ChainStatus.RUNNING, False, {})
    assert (chain.lease_until, chain.created_at) == (clock.now() + LEASE, clock.now())
    (session,) = ledger.sessions("mine")
    assert (session.state, session.flow_run_id, session.deployment_id) == (SessionState.RUNNING, "run-1", "deployment")
    assert (session.host, session.pid, session.started_at, session.ended_at) == ("here", 4711, clock.now(), None)


def test_chains_of_one_name_in_two_ledgers_have_different_uids(make_ledger: LedgerFactory, tmp_path: Path) -> None:
    """A chain's uid is random, so that a later chain of the same name finds no outcome of an earlier one."""
    uids = {open_session(make_ledger(str(tmp_path / f"{n}.db"))).chain.uid for n in range(3)}

    assert len(uids) == 3


def test_second_starter_is_superseded_while_the_lease_runs(ledger: SqlLedger, clock: FakeClock) -> None:
    """While the owner's lease runs, whoever starts second is refused in one line that says who works."""
    open_session(ledger)
    clock.advance(LEASE - 0.001)
    before = everything(ledger)

    with pytest.raises(Superseded) as refused:
        open_session(ledger, "mine", "second")

    one_line(refused.value, "session 1 of mine", "run-of-first", "4711", "here", "lease runs until 2023-11-14T22:14:20")
    assert everything(ledger) == before


def test_takes_over_after_the_lease_ran_out(ledger: SqlLedger, clock: FakeClock) -> None:
    """After the lease the next starter owns the chain under a higher epoch; the dead session is recorded as crashed and
    its claims are available again with no attempt counted."""
    dead = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"), planned_by=dead)
    claim(ledger, dead)
    clock.advance(LEASE)

    opened = open_session(ledger, "mine", "second")

    assert opened.took_over
    assert opened.fence == Fence("mine", ordinal=2, epoch=2, holder="second")
    crashed, running = ledger.sessions("mine")
    assert opened.previous == crashed
    assert (crashed.state, crashed.graceful, crashed.stop_reason) == (SessionState.CRASHED, False, "crashed")
    assert (crashed.ended_at, running.state) == (clock.now(), SessionState.RUNNING)
    given_back = item_in(ledger, "a")
    assert (given_back.status, given_back.attempts, given_back.failures) == (ItemStatus.AVAILABLE, 0, 0)
    assert given_back.interruptions == 1
    assert item_in(ledger, "b").interruptions == 0
    assert opened.chain.planned, "what was planned stays planned"


def no_claim(passed_over: dict[str, str] | None = None, retry_at: float | None = None) -> Claim:
    """What is said when nothing was claimed."""
    return Claim((), "", passed_over or {}, retry_at=retry_at)


FENCED: dict[str, Callable[[SqlLedger, Fence, Item], object]] = {
    "heartbeat": lambda ledger, fence, item: ledger.heartbeat(fence),
    "resumed": lambda ledger, fence, item: ledger.resumed(fence, 0.5, (4, 4)),
    "claim": lambda ledger, fence, item: ledger.claim(fence, lambda estimate: None),
    "commit_units": lambda ledger, fence, item: commit_unit(
        ledger, fence, item, Outcome(done=True, usage={"tokens": 1.0}), "key", {"tokens": 1.0}, {"mind": "changed"}
    ),
    "fail_unit": lambda ledger, fence, item: ledger.fail_unit(fence, item, "no", {"tokens": 1.0}, {"tokens": 1.0}),
    "release": lambda ledger, fence, item: ledger.release(fence, [item], begun=True),
    "record_document": lambda ledger, fence, item: ledger.record_document(fence, checkpoint_of(fence)),
    "forget_checkpoints": lambda ledger, fence, item: ledger.forget_checkpoints(fence, 0),
    "close_session": lambda ledger, fence, item: close(ledger, fence, follow_on=follow_on_of(fence, "uid")),
    "add_items": lambda ledger, fence, item: ledger.add_items("mine", items("new"), planned_by=fence),
}


@pytest.mark.parametrize("method", FENCED)
def test_old_fence_is_refused(ledger: SqlLedger, clock: FakeClock, method: str) -> None:
    """A session whose chain was taken over can change nothing any more, whatever it calls."""
    earlier = open_session(ledger, "mine", "earlier").fence
    ledger.record_document(earlier, checkpoint_of(earlier))
    close(ledger, earlier)
    old = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"), planned_by=old)
    claimed = claim(ledger, old)
    clock.advance(LEASE)
    new = open_session(ledger, "mine", "second").fence
    assert claim(ledger, new).id == claimed.id
    before = everything(ledger)

    with pytest.raises(Fenced) as refused:
        FENCED[method](ledger, old, claimed)

    one_line(refused.value, "session 2 of mine")
    assert everything(ledger) == before


@pytest.mark.parametrize("method", FENCED)
def test_fence_of_a_closed_session_is_refused(ledger: SqlLedger, method: str) -> None:
    """A session that is closed commits nothing after its end, though nobody has started since."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"), planned_by=fence)
    claimed = claim(ledger, fence)
    ledger.record_document(fence, checkpoint_of(fence))
    close(ledger, fence)
    before = everything(ledger)

    with pytest.raises(Fenced):
        FENCED[method](ledger, fence, claimed)

    assert everything(ledger) == before


def test_fence_of_another_process_is_refused(ledger: SqlLedger) -> None:
    """The right epoch with another holder is not enough: a pod that came back is not its dead twin."""
    fence = open_session(ledger).fence

    with pytest.raises(Fenced):
        ledger.heartbeat(replace(fence, holder="twin"))


def test_old_fence_of_the_same_process_is_refused(ledger: SqlLedger, clock: FakeClock) -> None:
    """A process that lost its chain and took it over again cannot go on with what it was given the first time."""
    old = open_session(ledger, "mine", "same").fence
    clock.advance(LEASE)
    open_session(ledger, "mine", "same")

    with pytest.raises(Fenced):
        ledger.heartbeat(old)


@pytest.mark.parametrize("method", [name for name in FENCED if name != "close_session"])
def test_every_commit_moves_the_lease_on(ledger: SqlLedger, clock: FakeClock, method: str) -> None:
    """The lease is counted from the session's latest commit, or heartbeat."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"), planned_by=fence)
    claimed = claim(ledger, fence)
    clock.advance(LEASE - 1)

    FENCED[method](ledger, fence, claimed)

    assert ledger.chain("mine").lease_until == clock.now() + LEASE
    clock.advance(LEASE - 1)
    with pytest.raises(Superseded):
        open_session(ledger, "mine", "second")


def test_session_goes_on_after_its_lease_until_somebody_took_over(ledger: SqlLedger, clock: FakeClock) -> None:
    """A lease that ran out is only about starting: the epoch decides, and it is still the session's own."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"), planned_by=fence)
    clock.advance(10 * LEASE)

    finish_next(ledger, fence)

    assert status_of(ledger) == {"a": ItemStatus.COMPLETED}


@pytest.mark.parametrize("status", [ChainStatus.WAITING, ChainStatus.FINISHED])
def test_same_flow_run_does_not_run_twice(ledger: SqlLedger, status: ChainStatus) -> None:
    """A flow run whose session ended in order is superseded when Prefect runs it again."""
    close(ledger, open_session(ledger).fence, status)

    with pytest.raises(Superseded) as refused:
        open_session(ledger, "mine", "retry", flow_run_id="run-of-first")

    one_line(refused.value, "mine", str(status), "session 1")


def test_same_flow_run_may_try_a_stalled_chain_again(ledger: SqlLedger) -> None:
    """The Retry button works where the session failed: the chain is stalled, and the same flow run is admitted."""
    close(ledger, open_session(ledger).fence, ChainStatus.STALLED, state=SessionState.FAILED)

    opened = open_session(ledger, "mine", "retry", flow_run_id="run-of-first")

    assert (opened.fence.ordinal, opened.took_over) == (2, False)


def test_same_flow_run_may_go_on_after_it_died(ledger: SqlLedger, clock: FakeClock) -> None:
    """A flow run whose process died before it could close its session is admitted when its lease has run out."""
    open_session(ledger)
    clock.advance(LEASE)

    assert open_session(ledger, "mine", "retry", flow_run_id="run-of-first").took_over


def test_invitation_opens_the_session_that_it_is_for_and_no_later_one(ledger: SqlLedger) -> None:
    """A follow-on starts the session that it was created for; it is superseded when somebody else was that session."""
    first = open_session(ledger)
    close(ledger, first.fence)
    invited = invitation(first.chain.uid, 2)
    second = open_session(ledger, "mine", "second", invitation=invited)
    close(ledger, second.fence)
    before = everything(ledger)

    with pytest.raises(Superseded) as refused:
        open_session(ledger, "mine", "late", invitation=invited)

    one_line(refused.value, "session 2")
    assert everything(ledger) == before
    assert open_session(ledger, "mine", "third", invitation=invitation(first.chain.uid, 3)).fence.ordinal == 3


def test_finished_chain_can_be_started_again_and_is_planned_again(ledger: SqlLedger) -> None:
    """Whoever starts a finished chain asks for its plan again; a waiting chain keeps its plan."""
    first = open_session(ledger).fence
    ledger.add_items("mine", [], planned_by=first)
    close(ledger, first, ChainStatus.WAITING)
    second = open_session(ledger, "mine", "second")
    assert second.chain.planned
    close(ledger, second.fence, ChainStatus.FINISHED)

    third = open_session(ledger, "mine", "third")

    assert not third.chain.planned
    assert third.chain.status is ChainStatus.RUNNING


@pytest.mark.parametrize("status", [ChainStatus.CANCELLED, ChainStatus.PAUSED])
def test_cancelled_and_paused_chains_are_refused(ledger: SqlLedger, status: ChainStatus) -> None:
    """A chain that a person has stopped is started by nobody; the refusal says why it stopped."""
    stop = StopReason("cancelled", "its flow run was cancelled")
    close(ledger, open_session(ledger).fence, status, state=SessionState.CANCELLED, stop=stop)

    with pytest.raises(Superseded) as refused:
        open_session(ledger, "mine", "second")

    one_line(refused.value, "mine", str(status), "its flow run was cancelled")


def test_settings_are_those_of_the_latest_session(ledger: SqlLedger) -> None:
    """New items are checked against the budget and kinds of the agent as it is now."""
    close(ledger, open_session(ledger).fence)
    open_session(ledger, "mine", "second", settings={"kinds": ["grown"], "budget": []})

    assert ledger.chain("mine").settings["kinds"] == ["grown"]
    assert ledger.add_items("mine", items("a", kind="grown")) == 1


def test_declare_dead_ends_the_lease_of_that_session_only(ledger: SqlLedger) -> None:
    """Who knows that the owner's process is dead need not wait for its lease; another session changes nothing."""
    open_session(ledger)

    assert not ledger.declare_dead("mine", 2)
    assert not ledger.declare_dead("other", 1)
    with pytest.raises(Superseded):
        open_session(ledger, "mine", "second")
    assert ledger.declare_dead("mine", 1)

    opened = open_session(ledger, "mine", "second")

    assert opened.took_over
    assert not ledger.declare_dead("mine", 1), "another one owns the chain"
    close(ledger, opened.fence)
    assert not ledger.declare_dead("mine", 2), "its session is over"


def test_resumed_is_recorded(ledger: SqlLedger) -> None:
    """What it took to resume, and what was verified, is in the session's record."""
    fence = open_session(ledger).fence

    ledger.resumed(fence, 1.25, (5, 4))

    (session,) = ledger.sessions("mine")
    assert (session.resume_seconds, session.verified) == (1.25, (5, 4))


# Adding items ---------------------------------------------------------------------------------------------------------


def test_items_are_added_once(ledger: SqlLedger) -> None:
    """The same id adds no second item and leaves the first as it is, within a batch and between batches."""
    open_session(ledger)
    assert ledger.add_items("mine", items("a", "a", payload={"x": [1, None, "ü"]}, priority=1)) == 1

    added = ledger.add_items("mine", [*items("a", payload={"x": [1, None, "ü"]}, priority=9), *items("b")])

    assert added == 1
    assert {item.id: (item.payload, item.priority) for item in ledger.items("mine")} == {
        "a": ({"x": [1, None, "ü"]}, 1),
        "b": ({}, 0),
    }


def test_planned_by_marks_the_chain_as_planned(ledger: SqlLedger) -> None:
    """A session's plan counts as made when its items are added, though there be none."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("by-hand"))
    assert not ledger.chain("mine").planned

    assert ledger.add_items("mine", [], planned_by=fence) == 0

    assert ledger.chain("mine").planned


WRONG_ITEMS: dict[str, tuple[list[WorkItem], tuple[str, ...]]] = {
    "unknown kind": (items("wrong", kind="strange"), ("WorkItem('wrong').kind", "'strange'", "default, other")),
    "another payload": (items("old", payload={"x": 2}), ("WorkItem('old').payload", "{'x': 2}", "another id")),
    "another kind": (items("old", payload={"x": 1}, kind="other"), ("WorkItem('old').kind", "'other'", "'default'")),
    "two payloads in a batch": (
        [*items("twin", payload={"x": 1}), *items("twin", payload={"x": 2})],
        ("WorkItem('twin').payload", "{'x': 2}"),
    ),
    "missing dependency": (items("wrong", depends_on=("old", "nowhere")), ("WorkItem('wrong')", "'nowhere'")),
    "cycle of one": (items("wrong", depends_on=("wrong",)), ("cycle: wrong -> wrong;",)),
    "cycle of three": (
        [
            *items("x", depends_on=("old", "y")),
            *items("y", depends_on=("z",)),
            *items("z", depends_on=("x",)),
        ],
        ("WorkItem('x').depends_on", "cycle: x -> y -> z -> x;"),
    ),
    "over the budget": (
        items("wrong", estimate={"tokens": 1001}),
        ("WorkItem('wrong').estimate.tokens", "1001", "1,000"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ITEMS)
def test_wrong_items_are_refused_all_or_nothing(ledger: SqlLedger, wrong: str) -> None:
    """One wrong item refuses the whole batch, in one line that names the item, the field and what was expected."""
    batch, parts = WRONG_ITEMS[wrong]
    budget = [{"resource": "tokens", "amount": 1000, "threshold": 0.85}]
    fence = open_session(ledger, settings={"kinds": ["default", "other"], "budget": budget}).fence
    ledger.add_items("mine", items("old", payload={"x": 1}, estimate={"tokens": 1000}))
    before = everything(ledger)

    with pytest.raises(InvalidInput) as refused:
        ledger.add_items("mine", [*items("good"), *batch, *items("good too")], planned_by=fence)

    one_line(refused.value, *parts)
    assert everything(ledger) == before


def test_what_is_no_work_item_is_refused(ledger: SqlLedger) -> None:
    """A plan that yields something else is told so."""
    open_session(ledger)

    with pytest.raises(InvalidInput) as refused:
        ledger.add_items("mine", ["a"])  # type: ignore[list-item]

    one_line(refused.value, "plan", "'a'", "WorkItem")


def test_a_plan_that_raises_half_way_adds_nothing(ledger: SqlLedger) -> None:
    """Items are added all or none, also when the plan itself breaks."""
    fence = open_session(ledger).fence
    before = everything(ledger)

    def plan() -> Any:
        yield WorkItem(id="a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.add_items("mine", plan(), planned_by=fence)

    assert everything(ledger) == before


def test_only_open_dependencies_block(ledger: SqlLedger) -> None:
    """A new item waits for those of its dependencies that are not completed; one that is completed does not block."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("done", "discarded", "open"))
    finish_next(ledger, fence)
    ledger.discard_items("mine", ["discarded"], "given up")

    ledger.add_items(
        "mine",
        [
            *items("on nothing open", depends_on=("done",)),
            *items("on open", depends_on=("done", "open")),
            *items("on discarded", depends_on=("discarded",)),
            *items("on new", depends_on=("on nothing open",)),
        ],
    )

    found = status_of(ledger)
    assert found["on nothing open"] is ItemStatus.AVAILABLE
    assert {found[item] for item in ("on open", "on discarded", "on new")} == {ItemStatus.BLOCKED}


def test_two_thousand_items_at_once(ledger: SqlLedger) -> None:
    """A large plan, each item depending on the one before, is added in one go and again without effect."""
    open_session(ledger)
    batch = [WorkItem(id=f"item-{n}", depends_on=(f"item-{n - 1}",) if n else ()) for n in range(2000)]

    assert ledger.add_items("mine", batch) == 2000
    assert ledger.add_items("mine", reversed(batch)) == 0

    counts = ledger.counts("mine")
    assert (counts[ItemStatus.AVAILABLE], counts[ItemStatus.BLOCKED]) == (1, 1999)
    assert [item.id for item in ledger.items("mine", ItemStatus.BLOCKED, 3)] == ["item-1", "item-2", "item-3"]


def test_new_items_open_a_chain_that_was_over(ledger: SqlLedger) -> None:
    """A finished chain that gets a new item waits for a run; without a new item it stays finished."""
    close(ledger, open_session(ledger).fence, ChainStatus.FINISHED)
    ledger.add_items("mine", [])
    assert ledger.chain("mine").status is ChainStatus.FINISHED

    ledger.add_items("mine", items("late"))

    assert ledger.chain("mine").status is ChainStatus.WAITING


# Claiming -------------------------------------------------------------------------------------------------------------


def test_claims_by_priority_then_fewest_failures_then_oldest(ledger: SqlLedger, clock: FakeClock) -> None:
    """The queue's order: highest priority, then least often failed, then first added; `items` shows the same order."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a"), *items("b", "c", priority=5), *items("d")])
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})  # b
    clock.advance(back_off(1))
    assert [item.id for item in ledger.items("mine")] == ["c", "b", "a", "d"]
    order = [finish_next(ledger, fence).id, finish_next(ledger, fence).id]
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})  # a
    clock.advance(back_off(1))
    order += [finish_next(ledger, fence).id, finish_next(ledger, fence).id]

    assert order == ["c", "b", "d", "a"]


def test_claimed_item_is_not_claimed_again(ledger: SqlLedger) -> None:
    """An item is claimed once; when nothing is left the claim is empty."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a", "b"), *items("blocked", depends_on=("a",))])

    assert [claim(ledger, fence).id, claim(ledger, fence).id] == ["a", "b"]

    empty = ledger.claim(fence, lambda _estimate: None)
    assert (empty.item, empty.passed_over) == (None, {})
    assert ledger.counts("mine")[ItemStatus.CLAIMED] == 2


def test_claim_passes_over_what_does_not_fit(ledger: SqlLedger) -> None:
    """The first item that fits is claimed, however far down the queue; those before it are named, the first with
    their reasons."""
    fence = open_session(ledger).fence
    big = items(*(f"big-{n}" for n in range(150)), estimate={"tokens": 500}, priority=1)
    ledger.add_items("mine", [*big, *items("small", estimate={"tokens": 5})])

    def misfit(item: Item) -> Misfit | None:
        return Misfit(f"needs {item.estimate['tokens']:g}") if item.estimate["tokens"] > 10 else None

    claimed = ledger.claim(fence, misfit)

    assert claimed.item is not None
    assert claimed.item.id == "small"
    assert (claimed.passed_over, claimed.others) == ({f"big-{n}": "needs 500" for n in range(10)}, 140)
    nothing = ledger.claim(fence, misfit)
    assert (nothing.item, len(nothing.passed_over), nothing.others) == (None, 10, 140)
    assert ledger.counts("mine")[ItemStatus.CLAIMED] == 1


def test_what_is_passed_over_too_often_is_waited_for(ledger: SqlLedger) -> None:
    """After three sessions in which something was taken in its place, nothing behind an item that will fit is taken;
    what will never fit is in nobody's way."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("big", priority=1), *items(*"abcdef")])

    def later(item: Item) -> Misfit | None:
        return Misfit("too big today") if item.id == "big" else None

    def never(item: Item) -> Misfit | None:
        return Misfit("the money is gone", patient=False) if item.id == "big" else None

    for session in range(3):
        for _ in range(2):  # counts once a session
            claimed = ledger.claim(fence, later)
            assert claimed.item is not None
            ledger.release(fence, [claimed.item], begun=True)
        close(ledger, fence)
        fence = open_session(ledger, flow_run_id=f"run-{session}").fence

    assert ledger.claim(fence, later) == no_claim({"big": "too big today"})
    assert ledger.claim(fence, never).item is not None
    taken = ledger.claim(fence, lambda item: None).item
    assert (taken.id, ledger.items("mine", ItemStatus.CLAIMED)[0].passed_over) == ("big", 0)


def test_a_unit_that_was_cut_off(ledger: SqlLedger) -> None:
    """It is given back with what it spent counted and no attempt; the second time it had a whole session, it is given
    up, and the item says what it would need."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("long"))
    statuses = []
    for fresh in (True, False, True):
        item = ledger.claim(fence, lambda item: None).item
        statuses.append(ledger.cut_off(fence, item, "needs 9 tokens", {"tokens": 5.0}, {"tokens": 5.0}, fresh=fresh))

    assert statuses == [ItemStatus.AVAILABLE, ItemStatus.AVAILABLE, ItemStatus.DISCARDED]
    (item,) = ledger.items("mine")
    assert (item.attempts, item.interruptions, item.failures, item.cut_offs) == (0, 3, 3, 2)
    assert item.error == "it had a whole session 2 times and could not finish: needs 9 tokens"
    assert [amount for *_, amount in usage_rows(ledger)] == [5, 5, 5]


def test_forecasts_are_kept_with_the_end_of_their_session(ledger: SqlLedger, clock: FakeClock) -> None:
    """A chain has what its last session in order had learned; a new chain of the same agent begins with that; units
    that were committed later are there to be learned from."""
    fence = open_session(ledger).fence
    assert ledger.forecasts("mine") == ({}, 0)
    close(ledger, fence, forecasts={"tokens": {"caution": 0.9}})
    fence = open_session(ledger, flow_run_id="another").fence
    ledger.add_items("mine", items("a", estimate={"tokens": 7}, bound={"tokens": 9}, complexity="complex"))
    item = ledger.claim(fence, lambda item: None).item
    clock.advance(5)
    commit_unit(ledger, fence, item, Outcome(done=True, usage={"tokens": 8.0}), "key", {"tokens": 8.0})

    assert ledger.forecasts("mine") == ({"tokens": {"caution": 0.9}}, 1)
    said = Expectation("default", {"tokens": 7.0}, {"tokens": 9.0}, "complex")
    assert ledger.unit_costs("mine", 1) == [UnitCost(said, {"tokens": 8.0}, finished=True)]
    assert ledger.unit_costs("mine", 2) == []
    assert ledger.spends("mine", "tokens", 0.0) == [Spend(clock.now(), 8.0)]
    assert ledger.spends("mine", "tokens", clock.now() + 1) == []
    open_session(ledger, chain="other")
    assert ledger.forecasts("other") == ({}, 0)
    assert ledger.forecasts_of("Tester") == {"tokens": {"caution": 0.9}}
    assert ledger.forecasts_of("nobody") == {}


def test_the_first_units_of_sessions(ledger: SqlLedger, clock: FakeClock) -> None:
    """Of each session the first unit that was finished counts: not what failed before it, nor another chain's."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b", "c"))
    ledger.fail_unit(fence, claim(ledger, fence), "no", {"tokens": 99.0}, {"tokens": 99.0})
    clock.advance(1)
    finish_next(ledger, fence, usage={"tokens": 7.0, "calls": 2.0})
    finish_next(ledger, fence, usage={"tokens": 8.0, "cost": 1.0})
    close(ledger, fence)
    clock.advance(1)
    close(ledger, open_session(ledger, flow_run_id="nothing-done").fence)
    fence = open_session(ledger, flow_run_id="third").fence
    ledger.add_items("mine", items("d"))
    clock.advance(1)
    finish_next(ledger, fence, usage={"tokens": 5.0})
    clock.advance(1)
    finish_next(ledger, fence, usage={"tokens": 6.0})
    open_session(ledger, chain="other")

    first = [session.first_usage for session in ledger.sessions("mine")]
    assert first == [{"tokens": 7.0, "calls": 2.0}, None, {"tokens": 5.0}]
    assert [session.first_usage for session in ledger.sessions("other")] == [None]


def test_what_a_provider_says_of_its_quota(ledger: SqlLedger) -> None:
    """It is kept with the unit that reported it."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"))
    for name in ("calls/day", "calls/1h"):
        item = ledger.claim(fence, lambda item: None).item
        commit_unit(ledger, fence, item, Outcome(done=True, quotas={name: Quota(None, 20.0, 10.0)}), "key-" + name, {})

    assert ledger.chain("mine").quotas == {"calls/day": [None, 20.0, 10.0], "calls/1h": [None, 20.0, 10.0]}


def test_follow_ons_that_wait(ledger: SqlLedger, clock: FakeClock) -> None:
    """A follow-on that was created to start later can be found until then, and moved."""
    opened = open_session(ledger)
    later = clock.now() + 100
    follow_on = follow_on_of(opened.fence, opened.chain.uid, not_before=later)
    stop = StopReason("budget:calls", "wait", later)
    close(ledger, opened.fence, follow_on=follow_on, stop=stop, chain_status=ChainStatus.WAITING)
    assert ledger.waiting_follow_ons() == []
    ledger.follow_on_created(follow_on, "flow-run")

    assert ledger.waiting_follow_ons() == [replace(follow_on, flow_run_id="flow-run")]
    assert ledger.chain("mine").resume_at == later
    ledger.follow_on_moved(follow_on, later - 50)
    assert (ledger.waiting_follow_ons()[0].not_before, ledger.chain("mine").resume_at) == (later - 50, later - 50)
    clock.advance(60)
    assert ledger.waiting_follow_ons() == []


# Finishing units ------------------------------------------------------------------------------------------------------


def test_completed_unit(ledger: SqlLedger) -> None:
    """A unit that is done completes its item, with its result's key, its usage and the session's own figures."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"))
    outcome = Outcome(done=True, result={"ignored": "here"}, usage={"tokens": 7.0, "seconds": 0.5})

    commit_unit(ledger, fence, claim(ledger, fence), outcome, "key/a/1", {"tokens": 7.0, "seconds": 0.5})

    done = item_in(ledger, "a")
    assert (done.status, done.units, done.result_key) == (ItemStatus.COMPLETED, 1, "key/a/1")
    (session,) = ledger.sessions("mine")
    assert (session.units, session.usage) == (1, {"tokens": 7.0, "seconds": 0.5})
    assert usage_rows(ledger) == [("a", 0, 0, "seconds", 0.5), ("a", 0, 0, "tokens", 7.0)]


def test_json_may_have_any_character(ledger: SqlLedger) -> None:
    """What an agent's JSON holds, a NUL from a PDF's text too, comes back as it was."""
    text = "NUL \0, half \\ud800, a smile 🙂 and \u2028"
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a 🙂", payload={text: [text]}))

    finish_next(ledger, fence, done=False, cursor=[text], context={text: text})

    a = item_in(ledger, "a 🙂")
    assert (a.payload, a.cursor, ledger.chain("mine").context) == ({text: [text]}, [text], {text: text})


def test_advanced_unit(ledger: SqlLedger, clock: FakeClock) -> None:
    """A unit that advanced makes its item available again, with where it stopped; a failure before it is forgotten."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"))
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})
    clock.advance(back_off(1))
    outcome = Outcome(
        done=False, cursor={"page": [3, None]}, progress=(3, 10.5), next_action="read page 4", usage={"tokens": 2.0}
    )

    commit_unit(ledger, fence, claim(ledger, fence), outcome, "key/a/1", {"tokens": 2.0})

    again = claim(ledger, fence)
    assert (again.cursor, again.progress, again.next_action) == ({"page": [3, None]}, (3, 10.5), "read page 4")
    assert (again.units, again.attempts, again.failures, again.error, again.retry_at) == (1, 0, 1, None, None)
    assert again.result_key == "key/a/1"


def test_a_unit_is_counted_once(ledger: SqlLedger) -> None:
    """Committing or failing a unit that is finished already is refused, and its usage stays as it was."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"))
    item = finish_next(ledger, fence)
    before = everything(ledger)

    with pytest.raises(LedgerError):
        commit_unit(ledger, fence, item, Outcome(done=True, usage={"tokens": 10.0}), "key", {"tokens": 20.0})
    with pytest.raises(LedgerError):
        ledger.fail_unit(fence, item, "no", {"tokens": 10.0}, {"tokens": 20.0})

    assert everything(ledger) == before


def test_context_is_replaced_only_when_given(ledger: SqlLedger) -> None:
    """A unit that left the context alone leaves the chain's; one that changed it replaces all of it."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b", "c"))

    finish_next(ledger, fence, context={"seen": ["a"], "mood": None})
    finish_next(ledger, fence, context=None)
    assert ledger.chain("mine").context == {"seen": ["a"], "mood": None}
    finish_next(ledger, fence, context={})

    assert ledger.chain("mine").context == {}


def test_dependent_is_unblocked_by_its_last_dependency(ledger: SqlLedger) -> None:
    """A blocked item becomes available with the transaction that completes the last of its dependencies, not before."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a", "b"), *items("c", depends_on=("a", "b")), *items("d", depends_on=("b",))])

    finish_next(ledger, fence)
    assert status_of(ledger)["c"] is ItemStatus.BLOCKED
    b = claim(ledger, fence)
    commit_unit(ledger, fence, b, Outcome(done=False), "key/b/1", {})
    assert {status_of(ledger)[item] for item in "cd"} == {ItemStatus.BLOCKED}, "b has only advanced"
    finish_next(ledger, fence)

    assert {status_of(ledger)[item] for item in "cd"} == {ItemStatus.AVAILABLE}


def test_items_that_a_unit_adds_come_with_its_commit(ledger: SqlLedger) -> None:
    """Items that a unit adds are there when it is committed, and may depend on the item that it completed."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"))
    added = (*items("child", depends_on=("a",)), *items("grandchild", depends_on=("child",)))

    finish_next(ledger, fence, added=added)

    assert status_of(ledger) == {
        "a": ItemStatus.COMPLETED,
        "child": ItemStatus.AVAILABLE,
        "grandchild": ItemStatus.BLOCKED,
    }


def test_a_refused_added_item_rolls_the_whole_unit_back(ledger: SqlLedger) -> None:
    """A unit that adds a wrong item is not committed at all: neither item, usage, context nor other items."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a"), *items("waits", depends_on=("a",))])
    item = claim(ledger, fence)
    before = everything(ledger)
    outcome = Outcome(
        done=True,
        usage={"tokens": 5.0},
        added=(*items("good"), *items("wrong", kind="strange")),
    )

    with pytest.raises(InvalidInput) as refused:
        commit_unit(ledger, fence, item, outcome, "key", {"tokens": 5.0}, {"seen": ["a"]})

    one_line(refused.value, "WorkItem('wrong').kind", "'strange'")
    assert everything(ledger) == before
    assert ledger.fail_unit(fence, item, "its items", {"tokens": 5.0}, {"tokens": 5.0}) is ItemStatus.AVAILABLE


def test_failing_until_discarded(ledger: SqlLedger, clock: FakeClock) -> None:
    """Each failed attempt is counted with its error and what it spent; the last one discards the item."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", max_attempts=2))

    first = ledger.fail_unit(fence, claim(ledger, fence), "ValueError: 1", {"tokens": 3.0}, {"tokens": 3.0})
    clock.advance(back_off(1))
    last = ledger.fail_unit(fence, claim(ledger, fence), "ValueError: 2", {"tokens": 4.0}, {"tokens": 7.0})

    assert (first, last) == (ItemStatus.AVAILABLE, ItemStatus.DISCARDED)
    failed = item_in(ledger, "a")
    assert (failed.status, failed.attempts, failed.error) == (ItemStatus.DISCARDED, 2, "ValueError: 2")
    assert usage_rows(ledger) == [("a", 0, 1, "tokens", 3.0), ("a", 0, 2, "tokens", 4.0)]
    (session,) = ledger.sessions("mine")
    assert (session.usage, session.units, session.attempts) == ({"tokens": 7.0}, 0, 2)
    assert ledger.claim(fence, lambda _estimate: None).item is None


def test_retried_item_fails_again_without_a_conflict(ledger: SqlLedger) -> None:
    """A discarded item that gets another try starts with no attempts, and its new failures are new rows."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", max_attempts=1))
    ledger.fail_unit(fence, claim(ledger, fence), "no", {"tokens": 1.0}, {"tokens": 1.0})

    assert ledger.retry_items("mine", ["a", "unknown"]) == 1
    again = claim(ledger, fence)
    assert (again.attempts, again.failures) == (0, 1)
    assert ledger.fail_unit(fence, again, "no", {"tokens": 2.0}, {"tokens": 3.0}) is ItemStatus.DISCARDED

    assert usage_rows(ledger) == [("a", 0, 1, "tokens", 1.0), ("a", 0, 2, "tokens", 2.0)]
    assert ledger.retry_items("mine", ["a"]) == 1
    finish_next(ledger, fence)
    assert status_of(ledger) == {"a": ItemStatus.COMPLETED}


def test_retried_item_waits_for_its_dependencies(ledger: SqlLedger) -> None:
    """A discarded item that is retried is blocked while a dependency is open; completing it meanwhile counts."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a"), *items("early", "late", depends_on=("a",))])
    assert ledger.discard_items("mine", ["early", "late"], "not wanted") == 2
    assert item_in(ledger, "early").error == "not wanted"

    assert ledger.retry_items("mine", ["early"]) == 1
    assert status_of(ledger)["early"] is ItemStatus.BLOCKED
    finish_next(ledger, fence)
    assert status_of(ledger)["late"] is ItemStatus.DISCARDED, "nobody wants it back yet"
    assert ledger.retry_items("mine", ["late"]) == 1

    assert {status_of(ledger)[item] for item in ("early", "late")} == {ItemStatus.AVAILABLE}


def test_only_open_items_are_given_up_and_only_discarded_ones_retried(ledger: SqlLedger) -> None:
    """A person's decisions leave completed and claimed items alone."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("completed", "claimed", "open"))
    finish_next(ledger, fence)
    claim(ledger, fence)

    assert ledger.retry_items("mine", ["completed", "claimed", "open"]) == 0
    assert ledger.discard_items("mine", ["completed", "claimed", "open", "unknown"], "enough") == 1

    assert status_of(ledger) == {
        "completed": ItemStatus.COMPLETED,
        "claimed": ItemStatus.CLAIMED,
        "open": ItemStatus.DISCARDED,
    }


def test_retry_opens_a_chain_that_was_over(ledger: SqlLedger) -> None:
    """A chain that finished without its dead letters waits for a run when one of them is retried."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", max_attempts=1))
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})
    close(ledger, fence, ChainStatus.FINISHED)

    ledger.retry_items("mine", ["a"])

    assert ledger.chain("mine").status is ChainStatus.WAITING


def test_what_has_failed_is_left_alone_for_a_while(ledger: SqlLedger, clock: FakeClock) -> None:
    """It is not claimed before its time, whatever its priority; others are meanwhile, and an empty claim says when."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("bad", "worse", priority=9, max_attempts=9), *items("good")])
    began, waits = clock.now(), []
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})
    clock.advance(0.5)
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})

    assert finish_next(ledger, fence).id == "good"
    assert ledger.claim(fence, fits) == no_claim(retry_at=began + back_off(1))
    ledger.discard_items("mine", ["worse"], "enough")
    for _ in range(4):
        item = item_in(ledger, "bad")
        waits.append(item.retry_at - clock.now())
        clock.advance(waits[-1] - 0.001)
        assert ledger.claim(fence, fits) == no_claim(retry_at=item.retry_at)
        clock.advance(0.001)
        ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})

    assert waits == [1.5, 8, 32, 128]
    assert item_in(ledger, "worse").retry_at is None


@pytest.mark.parametrize("ending", ["cut_off", "release"])
def test_an_interruption_is_no_reason_to_wait(ledger: SqlLedger, ending: str) -> None:
    """What was cut off or given back is claimed again at once."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a"))
    item = claim(ledger, fence)

    if ending == "cut_off":
        ledger.cut_off(fence, item, "no room", {}, {}, fresh=False)
    else:
        ledger.release(fence, [item], begun=True)

    assert claim(ledger, fence).retry_at is None


def test_the_queue_is_claimed_through_its_index(make_ledger: LedgerFactory) -> None:
    """Leaving items alone costs no sorting of the queue: it is read in the order of its index, as far as needed."""
    ledger = make_ledger()
    fence = open_session(ledger).fence
    statements: list[tuple[str, Any]] = []
    event.listen(
        ledger._engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, values, *_: statements.append((statement, values)),
    )
    ledger.claim(fence, fits)
    queue = next((statement, values) for statement, values in statements if "ORDER BY items.priority" in statement)

    with ledger._engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {queue[0]}", queue[1]).all()

    assert [row[-1] for row in plan] == ["SEARCH items USING INDEX ix_items_queue (chain=? AND status=?)"]


def test_the_story_of_an_item(ledger: SqlLedger, clock: FakeClock) -> None:
    """Each attempt that came to nothing is told in order: its unit, session, error, time and what it spent."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"))
    began = clock.now()
    usage = {"tokens": 5.0, "calls": 1.0}
    ledger.fail_unit(fence, claim(ledger, fence), "ValueError: no", usage, usage)
    ledger.fail_unit(fence, claim(ledger, fence), "of another item", usage, usage)
    close(ledger, fence)
    clock.advance(60)
    fence = open_session(ledger, flow_run_id="run-2").fence
    advanced = Outcome(done=False, usage={"tokens": 100.0})
    commit_unit(ledger, fence, claim(ledger, fence), advanced, "key", {"tokens": 100.0})
    ledger.cut_off(fence, claim(ledger, fence), "no room", {"tokens": 2.0}, {"tokens": 102.0}, fresh=False)

    story = ledger.story("mine", "a")

    assert story == Story(
        item_in(ledger, "a"),
        [
            Attempt(
                number=1, unit=1, chain="mine", session=1, error="ValueError: no", cut_off=False, usage=usage, at=began
            ),
            Attempt(
                number=2,
                unit=2,
                chain="mine",
                session=2,
                error="no room",
                cut_off=True,
                usage={"tokens": 2.0},
                at=began + 60,
            ),
        ],
    )
    assert (story.failed, story.cut_off, story.sessions) == (1, 1, [1, 2])
    assert story.wasted == {"tokens": 7.0, "calls": 1.0}
    assert [session.attempts for session in ledger.sessions("mine")] == [2, 1]
    assert ledger.story("mine", "b").failed == 1
    with pytest.raises(UnknownChain) as unknown:
        ledger.story("mine", "c")
    one_line(unknown.value, "item: got 'c'", "expected an item of mine")


def test_a_unit_that_is_too_dear_is_quarantined(ledger: SqlLedger, clock: FakeClock) -> None:
    """When the failed attempts of a unit have used more than a whole session, it is discarded at once; finished units,
    cut-offs and what was before a person's retry do not count."""
    settings = {"kinds": list(KINDS), "budget": Budget(tokens=100, seconds=5).to_json()}
    fence = open_session(ledger, settings=settings).fence
    ledger.add_items("mine", items("a", max_attempts=9))

    def fail(tokens: float) -> ItemStatus:
        clock.advance(back_off(9))
        usage = {"tokens": tokens, "seconds": 99.0}
        return ledger.fail_unit(fence, claim(ledger, fence), "ValueError: no", usage, usage)

    def waste(tokens: float) -> None:
        clock.advance(back_off(9))
        usage = {"tokens": tokens}
        ledger.cut_off(fence, claim(ledger, fence), "no room", usage, usage, fresh=False)

    assert fail(60) is ItemStatus.AVAILABLE
    clock.advance(back_off(9))
    commit_unit(ledger, fence, claim(ledger, fence), Outcome(done=False, usage={"tokens": 90.0}), "key", {})
    assert fail(60) is ItemStatus.AVAILABLE, "the next unit's count starts again"
    waste(90)
    assert fail(40) is ItemStatus.AVAILABLE, "100 are not more than 100"
    assert fail(1) is ItemStatus.DISCARDED
    found = item_in(ledger, "a")
    assert (found.attempts, found.retry_at) == (3, None)
    assert found.error == (
        "quarantined: its failed attempts have used 101 tokens, more than a whole session's 100 tokens: ValueError: no"
    )
    assert ledger.retry_items("mine", ["a"]) == 1
    assert fail(60) is ItemStatus.AVAILABLE
    waste(90)
    assert fail(41) is ItemStatus.DISCARDED


def test_a_person_gives_another_try_afresh(ledger: SqlLedger, clock: FakeClock) -> None:
    """Nothing of what was before counts against an item that is retried, be it discarded or left alone for now."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("big", priority=1), *items("flaky"), *items("a")])
    for _ in range(2):
        ledger.claim(fence, lambda item: Misfit("no") if item.id == "big" else None)
    ledger.discard_items("mine", ["big"], "too big")
    ledger.cut_off(fence, item_in(ledger, "flaky"), "no room", {}, {}, fresh=True)
    ledger.fail_unit(fence, claim(ledger, fence), "no", {}, {})
    before = {item.id: item for item in ledger.items("mine")}
    assert (before["big"].status, before["big"].passed_over) == (ItemStatus.DISCARDED, 1)
    assert (before["flaky"].attempts, before["flaky"].cut_offs) == (1, 1)
    assert before["flaky"].retry_at == clock.now() + back_off(1)

    assert ledger.retry_items("mine", ["big", "flaky", "a"]) == 2

    for name in ("big", "flaky"):
        item = item_in(ledger, name)
        assert item.status is ItemStatus.AVAILABLE
        assert (item.attempts, item.cut_offs, item.passed_over, item.retry_at) == (0, 0, 0, None)
    assert item_in(ledger, "a").status is ItemStatus.CLAIMED


def test_what_fits_into_no_session_is_given_up_for_what_does(ledger: SqlLedger) -> None:
    """After it was passed over in three sessions, and only when another item is taken in its place; where none is, the
    budget is wrong and nothing is given up."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("huge", priority=1), *items("a", "b")])

    def misfit(item: Item) -> Misfit | None:
        return Misfit("needs 9; 5 left", never="it needs 9, and there are 8") if item.id == "huge" else None

    def nothing(item: Item) -> Misfit | None:
        return Misfit("needs 9; 5 left", never="it needs 9, and there are 8")

    for session in range(3):
        claimed = ledger.claim(fence, misfit)
        assert (claimed.passed_over, claimed.discarded) == ({"huge": "needs 9; 5 left"}, {})
        ledger.release(fence, [claimed.item], begun=True)
        close(ledger, fence)
        fence = open_session(ledger, flow_run_id=f"run-{session}").fence
    everywhere = ledger.claim(fence, nothing)
    claimed = ledger.claim(fence, misfit)

    assert everywhere == no_claim(dict.fromkeys(["huge", "a", "b"], "needs 9; 5 left"))
    assert (claimed.item.id, claimed.passed_over) == ("a", {})
    assert claimed.discarded == {"huge": "it needs 9, and there are 8"}
    huge = item_in(ledger, "huge")
    assert (huge.status, huge.error) == (ItemStatus.DISCARDED, "it needs 9, and there are 8")
    assert ledger.story("mine", "huge").attempts == []


def test_release_counts_no_attempt(ledger: SqlLedger) -> None:
    """An item that is given back is available again as if nothing had been, but for the interruption; others stay."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"))
    given_back = claim(ledger, fence)
    claim(ledger, fence)

    ledger.release(fence, [given_back], begun=True)

    a, b = item_in(ledger, "a"), item_in(ledger, "b")
    assert (a.status, a.attempts, a.failures, a.interruptions) == (ItemStatus.AVAILABLE, 0, 0, 1)
    assert (b.status, b.interruptions) == (ItemStatus.CLAIMED, 0)
    assert usage_rows(ledger) == []


# The end of a session -------------------------------------------------------------------------------------------------


def test_closing_a_session(ledger: SqlLedger, clock: FakeClock) -> None:
    """Closing records how the session ended, frees the chain, gives back its claims and records the follow-on."""
    opened = open_session(ledger)
    ledger.add_items("mine", items("a"))
    claim(ledger, opened.fence)
    clock.advance(12)
    limits = [{"resource": "tokens", "used": 900.0, "amount": 1000.0, "threshold": 0.85}]
    steps = [{"step": "save_state", "ok": True, "seconds": 0.1}]
    follow_on = follow_on_of(opened.fence, opened.chain.uid)

    close(ledger, opened.fence, limits=limits, steps=steps, follow_on=follow_on)

    (session,) = ledger.sessions("mine")
    assert (session.state, session.graceful, session.ended_at) == (SessionState.WRAPPED, True, clock.now())
    assert (session.stop_reason, session.stop_message) == ("budget:tokens", "900 tokens of 1,000 tokens")
    assert (session.limits, session.steps) == (limits, steps)
    chain = ledger.chain("mine")
    assert (chain.status, chain.reason) == (ChainStatus.WAITING, "900 tokens of 1,000 tokens")
    assert (chain.holder, chain.lease_until) == (None, 0.0)
    assert status_of(ledger) == {"a": ItemStatus.AVAILABLE}
    assert ledger.pending_follow_ons("mine") == [follow_on]


def test_closing_and_follow_on_are_one_transaction(ledger: SqlLedger) -> None:
    """A follow-on that cannot be recorded leaves the session open: there is never one without the other."""
    first = open_session(ledger)
    follow_on = follow_on_of(first.fence, first.chain.uid)
    close(ledger, first.fence, follow_on=follow_on)
    ledger.follow_on_created(follow_on, "flow-run")
    second = open_session(ledger, "mine", "second").fence
    before = everything(ledger)

    with pytest.raises(LedgerError) as refused:  # the key of the first session's follow-on, once more
        close(ledger, second, follow_on=follow_on_of(second, "uid", idempotency_key=invitation(first.chain.uid, 2)))

    assert everything(ledger) == before
    one_line(refused.value, "ledger")


def test_outbox(ledger: SqlLedger, clock: FakeClock) -> None:
    """Follow-ons are pending, the oldest first, of one chain or of all, until they are ticked off."""
    recorded = []
    for chain in ("mine", "other"):
        opened = open_session(ledger, chain)
        recorded.append(follow_on_of(opened.fence, opened.chain.uid))
        close(ledger, opened.fence, follow_on=recorded[-1])
        clock.advance(1)
    assert ledger.pending_follow_ons() == recorded
    assert ledger.pending_follow_ons("other") == recorded[1:]

    ledger.follow_on_created(recorded[0], "flow-run")

    assert ledger.pending_follow_ons() == recorded[1:]
    assert ledger.pending_follow_ons("mine") == []


# Looking --------------------------------------------------------------------------------------------------------------


def test_documents_come_newest_first(ledger: SqlLedger) -> None:
    """A chain's documents of one kind are listed from the latest back."""
    written = []
    for holder in ("first", "second", "third"):
        fence = open_session(ledger, "mine", holder).fence
        written.append(checkpoint_of(fence))
        ledger.record_document(fence, written[-1])
        ledger.record_document(fence, checkpoint_of(fence, kind="handoff", key=f"handoff/{holder}"))
        close(ledger, fence)

    assert ledger.documents("mine", "checkpoint") == written[::-1]
    assert [document.key for document in ledger.documents("mine", "handoff")] == [
        "handoff/third",
        "handoff/second",
        "handoff/first",
    ]
    assert ledger.documents("other", "checkpoint") == []


def test_a_document_is_pointed_at_once(ledger: SqlLedger) -> None:
    """A session has one checkpoint: a second one is refused with an error of this package, and the first stands."""
    fence = open_session(ledger).fence
    ledger.record_document(fence, checkpoint_of(fence))
    before = everything(ledger)

    with pytest.raises(LedgerError):
        ledger.record_document(fence, checkpoint_of(fence, key="another"))

    assert everything(ledger) == before


def test_only_the_latest_checkpoints_are_kept(ledger: SqlLedger, clock: FakeClock) -> None:
    """Old checkpoints are forgotten and named; those that are kept are counted, whatever sessions died in between."""
    for holder in ("first", "second"):
        fence = open_session(ledger, "mine", holder).fence
        ledger.record_document(fence, checkpoint_of(fence))
        ledger.record_document(fence, checkpoint_of(fence, kind="handoff", key=f"handoff/{holder}"))
        close(ledger, fence)
    for holder in ("crashed", "crashed too", "last"):
        fence = open_session(ledger, "mine", holder).fence
        clock.advance(LEASE)
    ledger.record_document(fence, checkpoint_of(fence))

    assert ledger.forget_checkpoints(fence, 3) == []
    assert ledger.forget_checkpoints(fence, 2) == ["mine/checkpoints/1.json"]

    assert [document.ordinal for document in ledger.documents("mine", "checkpoint")] == [5, 2]
    assert [document.ordinal for document in ledger.documents("mine", "handoff")] == [2, 1]


def test_pinned_checkpoints_and_the_newest_are_never_forgotten(ledger: SqlLedger, clock: FakeClock) -> None:
    """A pin is kept with the document's row; a chain keeps its newest checkpoint, however few are wanted."""
    for holder in ("first", "second", "third", "fourth"):
        fence = open_session(ledger, "mine", holder).fence
        ledger.record_document(fence, checkpoint_of(fence))
        at = clock.now()
        close(ledger, fence)
    fence = open_session(ledger, "mine", "last").fence

    assert ledger.pin_checkpoint("mine", 2, pinned=True)
    assert not ledger.pin_checkpoint("mine", 7, pinned=True)
    assert not ledger.pin_checkpoint("other", 2, pinned=True)
    assert sorted(ledger.forget_checkpoints(fence, 0)) == ["mine/checkpoints/1.json", "mine/checkpoints/3.json"]

    found = ledger.documents("mine", "checkpoint")
    assert [(document.ordinal, document.pinned, document.at) for document in found] == [(4, False, at), (2, True, at)]
    assert ledger.pin_checkpoint("mine", 2, pinned=False)
    assert ledger.forget_checkpoints(fence, 1) == ["mine/checkpoints/2.json"]


def test_a_context_is_upgraded_behind_the_fence(ledger: SqlLedger, clock: FakeClock) -> None:
    """Context and version are set together, and by the chain's owner only."""
    old = open_session(ledger).fence
    clock.advance(LEASE)
    fence = open_session(ledger, "mine", "second", context_version=2).fence
    assert ledger.chain("mine").context_version == 1, "a chain keeps its version until its context is upgraded"

    with pytest.raises(Fenced):
        ledger.upgrade_context(old, {"stale": True}, 3)
    ledger.upgrade_context(fence, {"pages": []}, 2)

    assert (ledger.chain("mine").context, ledger.chain("mine").context_version) == ({"pages": []}, 2)


def test_counts_name_every_status(ledger: SqlLedger) -> None:
    """The counts have each status, also where there is no item of it."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a", "b", "c"), *items("d", depends_on=("c",))])
    finish_next(ledger, fence)
    claim(ledger, fence)

    assert ledger.counts("mine") == {
        ItemStatus.BLOCKED: 1,
        ItemStatus.AVAILABLE: 1,
        ItemStatus.CLAIMED: 1,
        ItemStatus.COMPLETED: 1,
        ItemStatus.DISCARDED: 0,
        ItemStatus.CANCELLED: 0,
    }


def test_items_can_be_filtered_and_limited(ledger: SqlLedger) -> None:
    """`items` lists one status or all, in the order of claiming, as many as asked for."""
    open_session(ledger)
    ledger.add_items("mine", [*items("a", "b", "c"), *items("d", depends_on=("c",), priority=1)])

    assert [item.id for item in ledger.items("mine")] == ["d", "a", "b", "c"]
    assert [item.id for item in ledger.items("mine", ItemStatus.AVAILABLE, 2)] == ["a", "b"]
    assert [item.id for item in ledger.items("mine", ItemStatus.BLOCKED)] == ["d"]


def test_chains_do_not_touch_each_other(ledger: SqlLedger, clock: FakeClock) -> None:
    """Two chains of one ledger have items of the same id, and sessions at the same time; the latest is listed first."""
    mine = open_session(ledger, "mine").fence
    clock.advance(1)
    other = open_session(ledger, "other").fence
    ledger.add_items("mine", items("a", payload={"x": 1}))
    ledger.add_items("other", items("a", payload={"x": 2}))

    finish_next(ledger, mine)

    assert (status_of(ledger, "mine")["a"], status_of(ledger, "other")["a"]) == (
        ItemStatus.COMPLETED,
        ItemStatus.AVAILABLE,
    )
    clock.advance(1)
    assert claim(ledger, other).payload == {"x": 2}
    assert [chain.name for chain in ledger.chains()] == ["other", "mine"]


def test_unknown_chain(ledger: SqlLedger) -> None:
    """A chain that is not there is named in one line, with those that are."""
    open_session(ledger, "mine")

    with pytest.raises(UnknownChain) as asked:
        ledger.chain("nine")
    with pytest.raises(UnknownChain) as added:
        ledger.add_items("nine", items("a"))

    one_line(asked.value, "chain", "'nine'", "mine")
    one_line(added.value, "chain", "'nine'")


# Several processes ----------------------------------------------------------------------------------------------------


def test_sixteen_processes_that_start_a_chain_at_once(shared_address: str, make_ledger: LedgerFactory) -> None:
    """Of sixteen processes that start the same chain at the same moment exactly one does, a hundred times: half of them
    on new chains, half on chains whose owner has died."""
    ledger = make_ledger(shared_address)
    new, orphaned = [f"new-{n}" for n in range(50)], [f"orphaned-{n}" for n in range(50)]
    for chain in orphaned:
        open_session(ledger, chain, "dead")
        assert ledger.declare_dead(chain, 1)
    chains, holders = [*new, *orphaned], [f"holder-{n}" for n in range(16)]
    barrier, answers = MANY.Barrier(len(holders)), MANY.SimpleQueue()
    starters = [
        MANY.Process(target=start_chains, args=(shared_address, holder, chains, barrier, answers)) for holder in holders
    ]
    for starter in starters:
        starter.start()
    said = [answers.get() for _ in range(len(chains) * len(holders))]
    for starter in starters:
        starter.join(CHILD_SECONDS)

    assert [starter.exitcode for starter in starters] == [0] * len(holders)
    started = {chain: holder for chain, holder, answer in said if answer == "started"}
    assert sorted(chain for chain, _, answer in said if answer == "started") == sorted(chains)
    assert sum(answer == "superseded" for _, _, answer in said) == len(chains) * (len(holders) - 1)
    for chain in chains:
        assert ledger.chain(chain).holder == started[chain]
        states = [session.state for session in ledger.sessions(chain)]
        assert states == [*([SessionState.CRASHED] if chain in orphaned else []), SessionState.RUNNING]


def test_items_are_added_from_several_places_at_once(shared_address: str, make_ledger: LedgerFactory) -> None:
    """Items that are added to one chain at the same moment are all added, the same ones once, each at its own place."""
    ledgers = [make_ledger(shared_address) for _ in range(4)]
    open_session(ledgers[0])
    barrier = Barrier(len(ledgers))

    def add(ledger: SqlLedger) -> int:
        barrier.wait()
        return sum(ledger.add_items("mine", items(f"a-{n}", f"b-{n}")) for n in range(20))

    with ThreadPoolExecutor(len(ledgers)) as executor:
        added = sum(executor.map(add, ledgers))

    assert added == 40
    assert [item.position for item in ledgers[0].items("mine")] == list(range(1, 41))


@pytest.mark.parametrize(("durability", "synced"), [("normal", ["close"]), ("full", ["heartbeat", "close"])])
def test_what_must_be_synced_says_so_to_postgres(
    request: pytest.FixtureRequest, make_ledger: LedgerFactory, durability: str, synced: list[str]
) -> None:
    """Closing a session is synced whatever the server's setting, and with full durability every commit is."""
    ledger = make_ledger(address_of("postgres", request), durability=durability)
    fence = open_session(ledger).fence
    said: list[str] = []
    doing = ""

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement == "SET LOCAL synchronous_commit = on":
            said.append(doing)

    event.listen(ledger._engine, "before_cursor_execute", note)
    doing = "heartbeat"
    ledger.heartbeat(fence)
    doing = "close"
    close(ledger, fence)

    assert said == synced


@pytest.mark.parametrize(("fault", "kept"), [("unit.committed:3", 3), ("unit.committing:3", 2)])
def test_committed_units_survive_a_kill(
    shared_address: str, make_ledger: LedgerFactory, monkeypatch: pytest.MonkeyPatch, fault: str, kept: int
) -> None:
    """When a process is killed, each unit that it had committed is there, with its usage, and nothing of the next."""
    ledger = make_ledger(shared_address)
    close(ledger, ledger.open_session(session_request(holder="planner")).fence)
    ledger.add_items("mine", items(*"abcde"))
    monkeypatch.setenv("PERPETUAL_FAULT", fault)
    child = SPAWN.Process(target=work_through, args=(shared_address, {"tokens": 10.0}))
    child.start()
    child.join(CHILD_SECONDS)

    assert child.exitcode == -signal.SIGKILL
    counts = ledger.counts("mine")
    assert counts[ItemStatus.COMPLETED] == kept
    assert counts[ItemStatus.CLAIMED] == 3 - kept, "an item whose unit was not committed is still claimed"
    assert ledger.sessions("mine")[-1].units == kept
    assert usage_rows(ledger) == [(item, 0, 0, "tokens", 10.0) for item in "abc"[:kept]]


# Pools ----------------------------------------------------------------------------------------------------------------


SHARED_LIMIT = Limit("cost", 10, scope="window", window="day", pool="team")


def pooled(chain: str, limit: Limit = SHARED_LIMIT) -> dict[str, Any]:
    """What `open_session` is asked for a chain with a shared limit."""
    settings = {"kinds": list(KINDS), "budget": Budget(limit).to_json()}
    return {"chain": chain, "holder": chain, "flow_run_id": f"run of {chain}", "settings": settings}


def reserving(amount: float, limit: Limit = SHARED_LIMIT) -> Callable[[Item], list[Reserve]]:
    return lambda item: [Reserve(limit, amount)]


def fits(item: Item) -> Misfit | None:
    return None


def test_a_claim_reserves_and_a_commit_settles(ledger: SqlLedger, clock: FakeClock) -> None:
    """What one chain has reserved another cannot have; what it spent less is free again when its unit is committed."""
    one, other = open_session(ledger, **pooled("one")).fence, open_session(ledger, **pooled("other")).fence
    for chain in ("one", "other"):
        ledger.add_items(chain, items("a", "b"))
    item = ledger.claim(one, fits, reserving(7)).item
    assert item is not None

    refused = ledger.claim(other, fits, reserving(4))
    assert (refused.item, refused.contended) == (None, True)
    assert refused.passed_over["a"] == (
        "pool team/day: needs $4.00, $3.00 of $10.00 is free ($0.0000 used, $7.00 reserved)"
    )
    assert ledger.counts("other")[ItemStatus.AVAILABLE] == 2

    commit_unit(ledger, one, item, Outcome(done=True, usage={"cost": 5.0}), "key", {"cost": 5.0})
    assert ledger.pool_spends(SHARED_LIMIT, 0.0) == [Spend(clock.now(), 5.0)]
    assert ledger.claim(other, fits, reserving(6)).contended is False
    assert ledger.claim(other, fits, reserving(5)).item is not None


def test_a_unit_extends_what_it_has_reserved(ledger: SqlLedger) -> None:
    """All that it asks for or nothing; and a unit that is given back gives back what it had."""
    fence = open_session(ledger, **pooled("one")).fence
    ledger.add_items("one", items("a"))
    item = ledger.claim(fence, fits, reserving(2)).item
    assert item is not None

    assert ledger.extend(fence, item, [Reserve(SHARED_LIMIT, 9)]) is None
    assert "needs $11.00" in (ledger.extend(fence, item, [Reserve(SHARED_LIMIT, 11)]) or "")
    ledger.release(fence, [item], begun=True)
    assert ledger.claim(fence, fits, reserving(10)).item is not None


@pytest.mark.parametrize("ending", ["fail_unit", "cut_off"])
def test_what_came_to_nothing_is_settled_too(ledger: SqlLedger, clock: FakeClock, ending: str) -> None:
    """The money of a unit that failed, or was cut off, is gone for everybody."""
    fence = open_session(ledger, **pooled("one")).fence
    ledger.add_items("one", items("a"))
    item = ledger.claim(fence, fits, reserving(9)).item
    assert item is not None

    more = {"fresh": False} if ending == "cut_off" else {}
    getattr(ledger, ending)(fence, item, "why", {"cost": 3.0}, {"cost": 3.0}, **more)

    assert [spend.amount for spend in ledger.pool_spends(SHARED_LIMIT, 0.0)] == [3.0]
    clock.advance(back_off(1))
    assert ledger.claim(fence, fits, reserving(7)).item is not None


def test_reservations_of_the_dead(ledger: SqlLedger, clock: FakeClock) -> None:
    """They end with the lease, unless a heartbeat moves both on; whoever takes over has none of them."""
    one, other = open_session(ledger, **pooled("one")).fence, open_session(ledger, **pooled("other")).fence
    for chain in ("one", "other"):
        ledger.add_items(chain, items("a"))
    assert ledger.claim(one, fits, reserving(9)).item is not None
    clock.advance(LEASE - 1)
    ledger.heartbeat(one)
    clock.advance(LEASE - 1)
    assert ledger.claim(other, fits, reserving(9)).contended
    clock.advance(2)

    assert ledger.claim(other, fits, reserving(9)).item is not None
    taken_over = open_session(ledger, **{**pooled("one"), "holder": "next", "flow_run_id": "next"})
    assert taken_over.took_over
    assert ledger.claim(taken_over.fence, fits, reserving(1)).item is not None


def test_a_share_is_kept(ledger: SqlLedger) -> None:
    """A chain's share of a pool is there when it comes; shares that are more than the whole are refused."""
    small = Limit.from_json({**SHARED_LIMIT.to_json(), "share": 0.4})
    open_session(ledger, **pooled("small", small))
    large = open_session(ledger, **pooled("large")).fence
    ledger.add_items("large", items("a"))

    assert ledger.claim(large, fits, reserving(7)).item is None
    assert ledger.claim(large, fits, reserving(6)).item is not None
    greedy = Limit.from_json({**SHARED_LIMIT.to_json(), "share": 0.7})
    with pytest.raises(InvalidInput) as refused:
        open_session(ledger, **pooled("greedy", greedy))
    one_line(refused.value, "share", "0.7", "0.6")


# Batches --------------------------------------------------------------------------------------------------------------


def claim_many(ledger: SqlLedger, fence: Fence, many: int) -> Claim:
    """A claim of so many items."""
    left = iter(range(many - 1))
    return ledger.claim(fence, lambda item: None, more=lambda last, item: next(left, None) is not None)


def test_a_batch_is_claimed_and_committed_as_one(ledger: SqlLedger) -> None:
    """The items in their order; those that are done, that go on and that have not begun each become what they are."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [*items("a", "b", "c", "d", "e"), *items("last", depends_on=("a", "b"))])

    claimed = claim_many(ledger, fence, 4)
    a, b, c, d = claimed.items
    finished = [
        Finished(a, Outcome(done=True, usage={"tokens": 1.0}), "doc#0"),
        Finished(b, Outcome(done=True, usage={"tokens": 2.0}, added=tuple(items("new"))), "doc#1"),
        Finished(c, Outcome(done=False, usage={"tokens": 3.0}, cursor=7), "doc#2"),
    ]
    for _ in range(2):  # the second time it finds that it has been done
        ledger.commit_units(fence, finished, {"tokens": 6.0}, context={"seen": 3}, unbegun=[d])

    assert [item.id for item in claimed.items] == ["a", "b", "c", "d"]
    assert status_of(ledger) == {
        "a": ItemStatus.COMPLETED,
        "b": ItemStatus.COMPLETED,
        **dict.fromkeys(("c", "d", "e", "last", "new"), ItemStatus.AVAILABLE),
    }
    assert (item_in(ledger, "c").cursor, item_in(ledger, "c").units, item_in(ledger, "a").result_key) == (7, 1, "doc#0")
    assert item_in(ledger, "d") == d
    (session,) = ledger.sessions("mine")
    assert (session.units, session.usage, ledger.chain("mine").context) == (3, {"tokens": 6.0}, {"seen": 3})
    assert [spend.amount for spend in ledger.spends("mine", "tokens", 0.0)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("expected", [1, 3, 100])
def test_how_many_are_expected_changes_nothing_but_the_time(ledger: SqlLedger, expected: int) -> None:
    """It is how many are read at once: what is taken, and what is passed over, are the same."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id=f"i{n}") for n in range(9)])
    left = iter(range(3))

    claim = ledger.claim(
        fence,
        lambda item: Misfit("too large") if item.id == "i0" else None,
        more=lambda last, item: next(left, None) is not None,
        expected=expected,
    )

    assert [item.id for item in claim.items] == ["i1", "i2", "i3", "i4"]
    assert claim.passed_over == {"i0": "too large"}
    assert status_of(ledger)["i0"] is ItemStatus.AVAILABLE


def test_a_batch_is_committed_as_a_whole_or_not_at_all(ledger: SqlLedger) -> None:
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b"))
    a, b = claim_many(ledger, fence, 2).items
    before = everything(ledger)
    wrong = Outcome(done=True, added=tuple(items("wrong", kind="strange")))

    with pytest.raises(InvalidInput):
        ledger.commit_units(fence, [Finished(a, Outcome(done=True), "doc#0"), Finished(b, wrong, "doc#1")], {})

    assert everything(ledger) == before


def test_what_was_begun_is_found(ledger: SqlLedger) -> None:
    """Items of a dead session are claimed to look for their outcomes, though they are to be left alone; those that are
    put back are what they were."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", items("a", "b", "c"))
    token = claim_many(ledger, fence, 2).token
    ledger.declare_dead("mine", 1)
    second = open_session(ledger, holder="second").fence

    begun = ledger.claim_begun(second)

    assert [(item.id, item.claims) for item in begun.items] == [("a", token), ("b", token)]
    ledger.release(second, begun.items, begun=False)
    assert [item_in(ledger, "a"), item_in(ledger, "b")] == list(begun.items)
    assert item_in(ledger, "c").claims is None
