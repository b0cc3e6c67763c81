"""Several chains on one queue: no item twice, none left, nobody waits for another, and nobody for nothing."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
from postgres_server import address_of
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
    open_session,
    status_of,
)

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.errors import Fenced, InvalidInput, UnknownChain
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.consistency import find_wrong_rows
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import Fence, Misfit
from perpetual_blocks.work import EVERYTHING, Item, ItemStatus, Outcome, Selector, WorkItem

DATABASES = ("sqlite-file", "postgres")
AGENTS = 8
TEMPLATE = RunTemplate(deployment_id="deployment", parameters={"depth": 3}, tags=("perpetual",)).to_json()


@pytest.fixture(params=DATABASES)
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


def items(*ids: str, **fields: Any) -> list[WorkItem]:
    return [WorkItem(id=item, **fields) for item in ids]


def plan(ledger: SqlLedger, *work: WorkItem) -> Fence:
    """The session of the queue's own chain, `mine`, with its items."""
    fence = open_session(ledger, "mine", "holder of mine").fence
    ledger.add_items("mine", work, planned_by=fence)
    return fence


def join(ledger: SqlLedger, name: str, selector: Selector = EVERYTHING) -> Fence:
    """The first session of another chain on that queue."""
    ledger.add_chain(name, queue="mine", selector=selector)
    return open_session(ledger, name, f"holder of {name}").fence


def nothing(ledger: SqlLedger, fence: Fence) -> bool:
    """There is nothing to claim; whether others have what may lead to more."""
    found = ledger.claim(fence, lambda item: None)
    assert found.item is None
    return found.elsewhere


# Joining --------------------------------------------------------------------------------------------------------------


def test_a_chain_made_ahead_waits_for_its_first_session(ledger: SqlLedger) -> None:
    """It knows its queue and what it takes of it; its plan is the owner's, and where it has a template its first run is
    in the outbox. Made again it is the same chain, with another selector where that was changed."""
    plan(ledger, *items("a"))
    selector = Selector(kinds=("other",), ids=("part/*",))

    made = ledger.add_chain("second", queue="mine", selector=selector, template=TEMPLATE)

    assert (made.queue, made.selector, made.owns_queue, made.planned) == ("mine", selector, False, True)
    assert (made.status, made.ordinal) == (ChainStatus.WAITING, 0)
    (follow_on,) = ledger.pending_follow_ons("second")
    assert (follow_on.ordinal, follow_on.parameters) == (1, {"depth": 3, "chain": "second"})
    again = ledger.add_chain("second", queue="mine", template=TEMPLATE)
    assert (again.uid, again.selector) == (made.uid, EVERYTHING)
    assert len(ledger.pending_follow_ons("second")) == 1
    assert [chain.name for chain in ledger.chains("mine")] == ["mine", "second"]
    assert ledger.chain("mine").owns_queue


def test_who_cannot_join(ledger: SqlLedger) -> None:
    """A queue that is not there or belongs to somebody else, a chain that has another queue, a name that is none."""
    plan(ledger, *items("a"))
    ledger.add_chain("second", queue="mine")
    for name, queue, error, said in [
        ("third", "none", UnknownChain, "queue: got 'none'; expected one of the ledger's chains"),
        ("third", "second", InvalidInput, "queue: got 'second'; expected a chain with a queue of its own; it works on"),
        ("second", None, InvalidInput, "chain: got 'second'; expected one of the queue of second; it works on that of"),
        ("Third!", "mine", InvalidInput, "chain: got 'Third!'; expected 1 to 64"),
    ]:
        with pytest.raises(error) as refused:
            ledger.add_chain(name, queue=queue)
        assert str(refused.value).startswith(said)
    assert [chain.name for chain in ledger.chains()] in (["second", "mine"], ["mine", "second"])


def test_an_agent_takes_no_kind_that_it_does_not_know(ledger: SqlLedger) -> None:
    """Another agent may work on the queue, on the kinds that it knows."""
    plan(ledger, *items("a"), *items("b", kind="other"))
    ledger.add_chain("second", queue="mine")
    ledger.add_chain("third", queue="mine", selector=Selector(kinds=("other",)))
    reviewer = {"agent": "Reviewer", "settings": {"kinds": ["other"], "budget": []}}

    with pytest.raises(InvalidInput, match="all kinds that second takes of the queue of mine, default too"):
        open_session(ledger, "second", "x", **reviewer)
    fence = open_session(ledger, "third", "y", **reviewer).fence

    assert claim(ledger, fence).id == "b"


@pytest.mark.parametrize("change", ["add_items", "retry_items", "discard_items"])
def test_the_queue_is_its_owners(ledger: SqlLedger, change: str) -> None:
    """What a person does to items is said of the chain that they belong to."""
    plan(ledger, *items("a"))
    join(ledger, "second")
    calls: dict[str, Callable[[], object]] = {
        "add_items": lambda: ledger.add_items("second", items("b")),
        "retry_items": lambda: ledger.retry_items("second", ["a"]),
        "discard_items": lambda: ledger.discard_items("second", ["a"], "no"),
    }

    with pytest.raises(InvalidInput, match="expected one with a queue of its own; it works on that of mine"):
        calls[change]()


# Working --------------------------------------------------------------------------------------------------------------


def test_chains_share_items_and_nothing_else(ledger: SqlLedger) -> None:
    """What one completes unblocks another's next item. Usage, context and sessions are each chain's own; what is read
    of the queue is the same through each of them."""
    first = plan(ledger, WorkItem(id="a"), WorkItem(id="b", depends_on=("a",)))
    second = join(ledger, "second")
    item = claim(ledger, first)
    assert (item.id, nothing(ledger, second)) == ("a", True)

    commit_unit(ledger, first, item, Outcome(done=True, usage={"tokens": 10.0}), "key", {"tokens": 10}, {"of": 1})
    finish_next(ledger, second, context={"of": 2}, usage={"tokens": 5.0})

    assert status_of(ledger, "second") == status_of(ledger) == {"a": ItemStatus.COMPLETED, "b": ItemStatus.COMPLETED}
    assert ledger.counts("second") == ledger.counts("mine")
    assert [ledger.chain(name).context for name in ("mine", "second")] == [{"of": 1}, {"of": 2}]
    assert [ledger.sessions(name)[0].usage for name in ("mine", "second")] == [{"tokens": 10}, {"tokens": 5}]
    assert [len(ledger.spends(name, "tokens", 0.0)) for name in ("mine", "second")] == [1, 1]
    assert [len(ledger.unit_costs(name, 0)) for name in ("mine", "second")] == [1, 1]
    assert ledger.finished_in("mine", "b", 1) == ("second", 1, "run-of-holder of second")


def test_a_selector_says_what_is_taken(ledger: SqlLedger) -> None:
    """By kind, by id, by how an id begins; capitals count."""
    plan(ledger, *items("part/1", "Part/2", "single", "else"), *items("part/3", kind="other"))
    second = join(ledger, "second", Selector(kinds=("default",), ids=("part/*", "single")))
    third = join(ledger, "third", Selector(kinds=("other",)))

    assert [finish_next(ledger, second).id for _ in range(2)] == ["part/1", "single"]
    assert ledger.counts("second", taken=True)[ItemStatus.COMPLETED] == 2
    assert [item.id for item in ledger.items("third", taken=True)] == ["part/3"]
    assert finish_next(ledger, third).id == "part/3"
    assert nothing(ledger, second) is True, "the chain mine takes the others"


def test_a_dead_sessions_items_come_back(ledger: SqlLedger, clock: FakeClock) -> None:
    """Whoever rescues the chain gives its claims back, and no others; what the dead still commits is refused."""
    first = plan(ledger, *items("a", "b", "c"))
    second = join(ledger, "second")
    held = claim(ledger, first)
    lost = claim(ledger, second)
    clock.advance(LEASE + 1)
    ledger.heartbeat(first)

    opened = open_session(ledger, "second", "next")

    assert (opened.took_over, status_of(ledger)[lost.id], status_of(ledger)[held.id]) == (
        True,
        ItemStatus.AVAILABLE,
        ItemStatus.CLAIMED,
    )
    again = claim(ledger, first)
    assert (again.id, again.interruptions) == (lost.id, 1)
    with pytest.raises(Fenced):
        commit_unit(ledger, second, lost, Outcome(done=True, usage={}), "key", {})


def test_only_who_holds_an_item_ends_its_unit(ledger: SqlLedger) -> None:
    """Sessions of two chains have the same number; that does not make the one's item the other's."""
    from perpetual_blocks.errors import LedgerError

    first = plan(ledger, *items("a"))
    second = join(ledger, "second")
    assert first.ordinal == second.ordinal
    item = claim(ledger, first)

    ledger.release(second, [item], begun=True)
    with pytest.raises(LedgerError):
        commit_unit(ledger, second, item, Outcome(done=True, usage={}), "key", {})

    assert status_of(ledger) == {"a": ItemStatus.CLAIMED}


def test_an_items_story_is_told_by_all(ledger: SqlLedger, clock: FakeClock) -> None:
    """Its attempts are numbered and counted whoever makes them, and what they wasted adds up."""
    first = plan(ledger, WorkItem(id="a", max_attempts=2))
    second = join(ledger, "second")
    ledger.fail_unit(first, claim(ledger, first), "ValueError: one", {"tokens": 3.0}, {"tokens": 3.0})
    clock.advance(60)
    assert ledger.fail_unit(second, claim(ledger, second), "ValueError: two", {"tokens": 4.0}, {"tokens": 4.0}) == (
        ItemStatus.DISCARDED
    )

    for chain in ("mine", "second"):
        story = ledger.story(chain, "a")
        assert [(one.number, one.chain, one.session, one.error) for one in story.attempts] == [
            (1, "mine", 1, "ValueError: one"),
            (2, "second", 1, "ValueError: two"),
        ]
        assert story.wasted == {"tokens": 7.0}


def test_an_item_is_passed_over_once_in_a_session(ledger: SqlLedger) -> None:
    """However often two sessions pass it over in turn."""
    first = plan(ledger, WorkItem(id="large", priority=1), *items(*"abcdef"))
    second = join(ledger, "second")

    def misfit(item: Item) -> Misfit | None:
        return Misfit("too large") if item.id == "large" else None

    for fence in (first, second, first, second):
        assert ledger.claim(fence, misfit).item is not None

    assert item_in(ledger, "large").passed_over == 2


# Ending ---------------------------------------------------------------------------------------------------------------


def test_what_others_hold_may_come_back(ledger: SqlLedger) -> None:
    """A chain with nothing to claim is not done while another one's item is claimed, or waits to be taken by it."""
    first = plan(ledger, *items("a"), *items("b", kind="other"))
    second = join(ledger, "second", Selector(kinds=("default",)))
    held = claim(ledger, second)
    other = claim(ledger, first)
    assert (held.id, other.id) == ("a", "b")

    assert nothing(ledger, second) is True
    ledger.release(first, [other], begun=True)
    assert nothing(ledger, second) is True, "the chain mine takes it"
    assert ledger.is_elsewhere("second")
    close(ledger, first, ChainStatus.EXHAUSTED, state=SessionState.EXHAUSTED)
    assert nothing(ledger, second) is False, "nobody does any more"


def test_chains_that_leave_the_same_to_others_do_not_wait_for_each_other(ledger: SqlLedger) -> None:
    """An item that nobody takes is nobody's: each is done with its own."""
    first = plan(ledger, *items("a", "b", "c"))
    ledger.add_chain("mine", selector=Selector(ids=("a",)))
    close(ledger, first)
    first = open_session(ledger, "mine", "again").fence
    second = join(ledger, "second", Selector(ids=("b",)))
    finish_next(ledger, first)
    finish_next(ledger, second)

    assert (nothing(ledger, first), nothing(ledger, second)) == (False, False)


def test_a_queue_that_is_not_planned_yet_may_get_more(ledger: SqlLedger) -> None:
    """Its owner is at work on it, or will be."""
    ledger.add_chain("mine")
    ledger.add_chain("second", queue="mine")
    second = open_session(ledger, "second", settings={"kinds": list(KINDS), "budget": []}).fence
    assert nothing(ledger, second) is True
    first = open_session(ledger, "mine", "other").fence
    assert nothing(ledger, second) is True
    ledger.add_items("mine", [], planned_by=first)
    assert nothing(ledger, second) is False


def test_a_chain_does_not_finish_while_others_may_add_to_it(ledger: SqlLedger) -> None:
    """It found nothing, and while it was ending another one has begun: it goes on, and looks again."""
    first = plan(ledger, *items("a", "b"))
    second = join(ledger, "second")
    finish_next(ledger, second)
    held = claim(ledger, first)

    done = {"state": SessionState.FINISHED, "stop": StopReason("queue-empty", "every item is done")}
    close(ledger, second, ChainStatus.FINISHED, **done)
    assert ledger.chain("second").status is ChainStatus.WAITING

    commit_unit(ledger, first, held, Outcome(done=True, usage={}), "key", {})
    close(ledger, first, ChainStatus.FINISHED, **done)
    assert ledger.chain("mine").status is ChainStatus.FINISHED
    assert ledger.finish("second")
    assert (ledger.chain("second").status, ledger.chain("second").reason) == (
        ChainStatus.FINISHED,
        "every item is done",
    )


def test_a_chain_rests_and_is_woken(ledger: SqlLedger) -> None:
    """Fewer agents are enough: its session wraps, nothing follows, and no person needs to let it go on. What a person
    wants goes before."""
    plan(ledger, *items("a", "b"))
    ledger.add_chain("second", queue="mine", template=TEMPLATE)
    second = open_session(ledger, "second", template=TEMPLATE).fence
    assert ledger.want("second", Wanted.REST, "fewer agents are enough") is None
    assert ledger.wake("second") is False, "it is still at work"
    close(ledger, second)
    assert ledger.chain("second").status is ChainStatus.PAUSED
    assert ledger.finish("second") is False, "there is work for it"

    assert ledger.wake("second")
    assert (ledger.chain("second").status, ledger.chain("second").wanted) == (ChainStatus.WAITING, None)
    assert [follow_on.ordinal for follow_on in ledger.pending_follow_ons("second")] == [2]

    ledger.want("second", Wanted.PAUSE, "no")
    assert ledger.want("second", Wanted.REST, "fewer agents are enough") is None
    assert (ledger.wake("second"), ledger.chain("second").wanted) == (False, Wanted.PAUSE)


def test_a_finished_chain_is_woken_by_work_only(ledger: SqlLedger) -> None:
    """By an item that it takes, and no other."""
    first = plan(ledger, *items("a"))
    second = join(ledger, "second", Selector(kinds=("other",)))
    finish_next(ledger, first)
    done = {"state": SessionState.FINISHED, "stop": StopReason("queue-empty", "every item is done")}
    close(ledger, second, ChainStatus.FINISHED, **done)
    assert ledger.wake("second") is False
    ledger.add_items("mine", items("b"))
    assert ledger.wake("second") is False
    ledger.add_items("mine", items("c", kind="other"))
    assert ledger.wake("second") is True


# Verifying and restoring ----------------------------------------------------------------------------------------------


def test_claims_of_other_chains_are_in_order(ledger: SqlLedger) -> None:
    """Of a session that is at work. A claim of one that is over is found, and repaired when nobody works any more."""
    from sqlalchemy import update

    from perpetual_blocks.adapters.database import schema
    from perpetual_blocks.errors import Superseded

    first = plan(ledger, *items("a", "b"))
    second = join(ledger, "second")
    claim(ledger, second)
    with ledger.facts("mine") as facts:
        assert list(find_wrong_rows(facts)) == []
    with ledger.facts("second") as facts:
        assert list(find_wrong_rows(facts)) == []
    with pytest.raises(Superseded):
        ledger.repair_items("mine", ["a"])

    close(ledger, second)
    close(ledger, first)
    with ledger._engine.begin() as connection:
        row = schema.items.c.id == "a"
        connection.execute(update(schema.items).where(row).values(status="claimed", claimant="second", claimed_by=1))
    with ledger.facts("mine") as facts:
        (problem,) = find_wrong_rows(facts)
    assert (problem.what, problem.found) == ("claim", "is claimed by session 1 of second, which is over")
    ledger.repair_items("mine", ["a"])
    assert status_of(ledger) == {"a": ItemStatus.AVAILABLE, "b": ItemStatus.AVAILABLE}


def test_a_chain_is_restored_after_its_queue(
    ledger: SqlLedger, make_ledger: LedgerFactory, request: pytest.FixtureRequest
) -> None:
    """The queue's items are in the backup of its own chain; the others' have their sessions and what they spent."""
    first = plan(ledger, *items("a", "b", "c"))
    second = join(ledger, "second", Selector(ids=("*",)))
    finish_next(ledger, first)
    finish_next(ledger, second)
    claim(ledger, second)
    rows = {}
    for name in ("mine", "second"):
        with ledger.export(name, None) as export:
            rows[name] = list(export.rows)
    other = make_ledger(str(request.getfixturevalue("tmp_path") / "other.db"))

    with pytest.raises(InvalidInput, match=r"whose queue it works on first: `perpetual restore mine`"):
        other.rebuild("second", [rows["second"]], "restored")
    assert not other.has_chain("second")
    other.rebuild("mine", [rows["mine"]], "restored")
    other.rebuild("second", [rows["second"]], "restored")

    assert Counter(status_of(other, "second").values()) == {ItemStatus.COMPLETED: 2, ItemStatus.AVAILABLE: 1}
    assert (other.chain("second").queue, other.chain("second").selector) == ("mine", Selector(ids=("*",)))
    assert [spend.amount for spend in other.spends("second", "tokens", 0.0)] == [10.0]


# At the same moment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_claims_do_not_wait_for_each_other(ledger: SqlLedger) -> None:
    """While one chain is in the middle of its claim, another one takes the next item."""
    first = plan(ledger, *items("a", "b"))
    second = join(ledger, "second")
    looking, taken = Event(), Event()

    def slowly(item: Item) -> Misfit | None:
        looking.set()
        assert taken.wait(30)
        return None

    with ThreadPoolExecutor(1) as other:
        slow = other.submit(ledger.claim, first, slowly)
        assert looking.wait(30)
        assert claim(ledger, second).id == "b"
        taken.set()
        item = slow.result().item
    assert item is not None
    assert item.id == "a"


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_what_is_given_back_meanwhile_makes_nobody_claim_twice(ledger: SqlLedger) -> None:
    """What lies before the items of a claim is given back while it goes on: each of them is in it once."""
    first = plan(ledger, *items(*"abcdefgh"))
    second = join(ledger, "second")
    held = ledger.claim(second, lambda item: None, more=lambda last, item: item.id <= "c")
    assert [item.id for item in held.items] == ["a", "b", "c"]

    def more(last: Item, item: Item) -> bool:
        if item.id == "h":
            ledger.release(second, held.items, begun=False)
        return True

    claimed = ledger.claim(first, lambda item: None, more=more)

    assert [item.id for item in claimed.items] == ["d", "e", "f", "g", "h"]
    assert claim(ledger, second).id == "a"


@pytest.mark.parametrize("ledger", ["postgres"], indirect=True)
def test_what_is_just_being_looked_at_is_not_taken_for_nothing(ledger: SqlLedger) -> None:
    """The last item is passed over by one chain while another one looks: that one does not think that all is done."""
    first = plan(ledger, *items("a"))
    second = join(ledger, "second")
    looking, looked = Event(), Event()

    def slowly(item: Item) -> Misfit | None:
        looking.set()
        assert looked.wait(30)
        return Misfit("it does not fit")

    with ThreadPoolExecutor(1) as other:
        slow = other.submit(ledger.claim, first, slowly)
        assert looking.wait(30)
        assert nothing(ledger, second) is True
        looked.set()
        assert slow.result().item is None
    assert claim(ledger, second).id == "a"


def test_an_item_that_is_added_while_its_dependency_is_completed(ledger: SqlLedger) -> None:
    """Is available afterwards, whichever came first."""
    first = plan(ledger, *items(*(f"base-{n}" for n in range(20))), WorkItem(id="adder", priority=9))
    second = join(ledger, "second")
    together = Barrier(2)
    adding = claim(ledger, second)

    def complete(item: Item) -> None:
        together.wait(30)
        commit_unit(ledger, first, item, Outcome(done=True, usage={}), f"key/{item.id}", {})

    def add(item: Item, number: int, on: str) -> None:
        more = WorkItem(id=f"more-{number}", depends_on=(on,), priority=-1)
        together.wait(30)
        commit_unit(ledger, second, item, Outcome(done=False, usage={}, added=(more,)), f"key/adder/{number}", {})

    with ThreadPoolExecutor(1) as other:
        for number in range(20):
            base = claim(ledger, first)
            done = other.submit(complete, base)
            add(adding, number, base.id)
            done.result()
            assert status_of(ledger)[f"more-{number}"] is ItemStatus.AVAILABLE
            adding = claim(ledger, second)
            assert adding.id == "adder"


def test_many_chains_work_through_one_queue(ledger: SqlLedger) -> None:
    """Each item once, and none is left: with dependencies, items that units add, units that fail or are interrupted,
    and as many threads as chains."""
    work = [WorkItem(id=f"{n:03}", depends_on=(f"{n - 7:03}",) if n % 3 == 0 and n >= 7 else ()) for n in range(120)]
    fences = [plan(ledger, *work), *(join(ledger, f"agent-{number}") for number in range(1, AGENTS))]
    together = Barrier(AGENTS)

    def agent(fence: Fence) -> list[str]:
        together.wait(30)
        done: list[str] = []
        spent, turn = 0.0, 0
        while True:
            found = ledger.claim(fence, lambda item: None)
            if found.item is None:
                if not found.elsewhere:
                    return done
                continue
            turn += 1
            if turn % 11 == 0:
                ledger.release(fence, [found.item], begun=True)
                continue
            spent += 1
            added = ()
            if len(found.item.id) == 3 and int(found.item.id) % 5 == 0:
                added = (WorkItem(id=f"{found.item.id}-more", depends_on=(found.item.id, "000")),)
            outcome = Outcome(done=True, usage={"calls": 1.0}, added=added)
            commit_unit(ledger, fence, found.item, outcome, f"key/{found.item.id}", {"calls": spent})
            done.append(found.item.id)

    with ThreadPoolExecutor(AGENTS) as threads:
        done = [item for worked in threads.map(agent, fences) for item in worked]

    assert len(done) == len(set(done)) == 120 + 24
    assert set(status_of(ledger).values()) == {ItemStatus.COMPLETED}
    spends = [len(ledger.spends(fence.chain, "calls", 0.0)) for fence in fences]
    assert sum(spends) == 144
    assert [ledger.sessions(fence.chain)[0].units for fence in fences] == spends
