"""What happens at the same moment, or half: nothing is left behind, nobody is kept waiting for ever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from postgres_server import address_of
from sqlalchemy import event, select
from support import KINDS, LEASE, FakeClock, LedgerFactory, MemoryRuns, claim, close, finish_next, open_session

from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput, PerpetualError
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, invitation
from perpetual_blocks.session.follow_on import create_follow_ons
from perpetual_blocks.session.ledger import FollowOn, Misfit, Opened, Reserve
from perpetual_blocks.work import Item, WorkItem


@pytest.fixture(params=("sqlite-file", "postgres"))
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


def pool(name: str, window: str = "day", resource: str = "cost", **settings: Any) -> Limit:
    """A limit of ten that is shared."""
    return Limit(resource, 10, scope="window", window=window, pool=name, **settings)


def opened_with(ledger: SqlLedger, chain: str, *limits: Limit, holder: str = "first") -> Opened:
    """A session of a chain with this budget."""
    settings = {"kinds": list(KINDS), "budget": Budget(*limits).to_json()}
    return open_session(ledger, chain, holder, flow_run_id=f"{chain} {holder}", settings=settings)


def fits(item: Item) -> Misfit | None:
    return None


def reserved(ledger: SqlLedger) -> list[tuple[str, float]]:
    """What is reserved of each pool."""
    rows = schema.pool_reservations.c
    with ledger._engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(rows.pool, rows.amount).order_by(rows.pool))]


# The end of a session -------------------------------------------------------------------------------------------------

DONE = {
    "queue-empty": (ChainStatus.FINISHED, SessionState.FINISHED),
    "blocked": (ChainStatus.STALLED, SessionState.STALLED),
}


@pytest.mark.parametrize("code", DONE)
@pytest.mark.parametrize("how", ["add_items", "retry_items"])
def test_what_comes_while_the_last_session_ends_is_not_forgotten(ledger: SqlLedger, how: str, code: str) -> None:
    """A session that found nothing left to do takes a while to end. An item that comes meanwhile finds its chain as it
    would a moment later: waiting for a run, and not over with work left."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="a", max_attempts=1), WorkItem(id="b")])
    ledger.fail_unit(fence, claim(ledger, fence), "ValueError: no", {}, {})
    finish_next(ledger, fence)

    ledger.add_items("mine", [WorkItem(id="c")]) if how == "add_items" else ledger.retry_items("mine", ["a"])
    status, state = DONE[code]
    close(ledger, fence, status, state=state, stop=StopReason(code, "every item is done"))

    chain = ledger.chain("mine")
    assert (chain.status, chain.reason) == (ChainStatus.WAITING, "it has new work; start a run to go on")


@pytest.mark.parametrize("status", [ChainStatus.STALLED, ChainStatus.EXHAUSTED, ChainStatus.CANCELLED])
def test_a_chain_that_ends_with_work_left_stays_as_it_is(ledger: SqlLedger, status: ChainStatus) -> None:
    """An error, a budget that is gone and a person's cancel end a chain whatever is left of its work."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="a")])

    close(ledger, fence, status, stop=StopReason("error", "no such folder"))

    assert (ledger.chain("mine").status, ledger.chain("mine").reason) == (status, "no such folder")


# Pools ----------------------------------------------------------------------------------------------------------------


def test_a_claim_that_one_pool_refuses_leaves_nothing_in_the_others(ledger: SqlLedger) -> None:
    """What an item would need of several pools it gets of all, or has of none: others can use what it cannot."""
    first, second = pool("first", resource="calls"), pool("second")
    other = opened_with(ledger, "other", second).fence
    mine = opened_with(ledger, "mine", first, second).fence
    for chain in ("other", "mine"):
        ledger.add_items(chain, [WorkItem(id="a")])
    assert ledger.claim(other, fits, lambda item: [Reserve(second, 9)]).item is not None

    refused = ledger.claim(mine, fits, lambda item: [Reserve(first, 8), Reserve(second, 8)])

    assert (refused.item, refused.contended) == (None, True)
    assert reserved(ledger) == [("second/day", 9.0)]


def test_a_unit_extends_all_that_it_has_reserved_or_nothing(ledger: SqlLedger) -> None:
    """Where one of a resource's pools has no more, what is reserved of the other stays as it was."""
    day, hours = pool("team"), pool("team", "5h")
    other = opened_with(ledger, "other", hours).fence
    mine = opened_with(ledger, "mine", day, hours).fence
    for chain in ("other", "mine"):
        ledger.add_items(chain, [WorkItem(id="a")])
    assert ledger.claim(other, fits, lambda item: [Reserve(day, 6)]).item is not None
    item = ledger.claim(mine, fits, lambda item: [Reserve(day, 2), Reserve(hours, 2)]).item
    assert item is not None
    before = reserved(ledger)

    assert ledger.extend(mine, item, [Reserve(hours, 7), Reserve(day, 7)]) is not None

    assert reserved(ledger) == before


def test_a_session_that_ends_reserves_nothing_any_more(ledger: SqlLedger) -> None:
    """Also when it ends in the middle of a unit, by an error that is nobody's: others need not wait for its lease."""
    fence = opened_with(ledger, "mine", pool("team")).fence
    ledger.add_items("mine", [WorkItem(id="a")])
    assert ledger.claim(fence, fits, lambda item: [Reserve(pool("team"), 9)]).item is not None

    close(ledger, fence, ChainStatus.STALLED, stop=StopReason("error", "OSError: no such file"))

    assert reserved(ledger) == []


def test_a_session_that_could_not_start_leaves_no_budget_behind(ledger: SqlLedger) -> None:
    """A start that was refused for its share, tried again with another pool by the same process, settles in that."""
    opened_with(ledger, "other", pool("full", share=0.9))
    with pytest.raises(InvalidInput):
        opened_with(ledger, "mine", pool("full", share=0.5))
    fence = opened_with(ledger, "mine", pool("team")).fence
    ledger.add_items("mine", [WorkItem(id="a")])

    finish_next(ledger, fence, usage={"cost": 3.0})

    assert [spend.amount for spend in ledger.pool_spends(pool("team"), 0.0)] == [3.0]
    assert ledger.pool_spends(pool("full"), 0.0) == []


@contextmanager
def locked_pools(ledger: SqlLedger) -> Iterator[list[str]]:
    """The pools in the order in which they are locked for the first time."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if statement.endswith("FOR UPDATE") and "FROM pools" in statement and values["of_pool"] not in seen:
            seen.append(values["of_pool"])

    event.listen(ledger._engine, "before_cursor_execute", note)
    yield seen
    event.remove(ledger._engine, "before_cursor_execute", note)


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_whoever_takes_over_locks_pools_in_the_order_of_all(ledger: SqlLedger, clock: FakeClock) -> None:
    """Those that the dead session had reserved and those of the new budget, in one order; two that lock in different
    orders would wait for each other until the database ends one of them with an error."""
    dead = opened_with(ledger, "mine", pool("b")).fence
    ledger.add_items("mine", [WorkItem(id="a")])
    assert ledger.claim(dead, fits, lambda item: [Reserve(pool("b"), 1)]).item is not None
    clock.advance(LEASE)

    with locked_pools(ledger) as locked:
        opened_with(ledger, "mine", pool("b"), pool("a", resource="calls"), holder="next")

    assert locked == ["a/day", "b/day"]


# The outbox -----------------------------------------------------------------------------------------------------------


class Gone(MemoryRuns):
    """Prefect, where the deployment of one chain was deleted."""

    def create(self, follow_on: FollowOn) -> str:
        if follow_on.chain == "gone":
            raise PerpetualError("deployment: not found")
        return super().create(follow_on)


def test_a_follow_on_that_cannot_be_created_is_in_nobodys_way(ledger: SqlLedger, clock: FakeClock) -> None:
    """Of the follow-ons that wait those behind it are created all the same; it stays, and what was wrong is said."""
    for chain in ("gone", "mine"):
        opened = open_session(ledger, chain)
        follow_on = FollowOn(
            chain=chain,
            ordinal=2,
            idempotency_key=invitation(opened.chain.uid, 2),
            deployment_id="deployment",
            parameters={},
            run_name="next",
            tags=(),
        )
        close(ledger, opened.fence, follow_on=follow_on)
        clock.advance(1)
    runs = Gone()

    with pytest.raises(PerpetualError, match="deployment: not found"):
        create_follow_ons(ledger, runs)

    assert [follow_on.chain for follow_on in runs.created.values()] == ["mine"]
    assert [follow_on.chain for follow_on in ledger.pending_follow_ons()] == ["gone"]
