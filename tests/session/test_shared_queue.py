"""Sessions of several chains on one queue."""

from collections.abc import Callable
from dataclasses import replace
from threading import Event

import pytest
from support import LEASE, FakeClock, LedgerFactory, claim, close, commit_unit, open_session, status_of
from test_admission import latest
from test_loop import Reader, Rig

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.continuation import LONGEST_WAIT_SECONDS, wait_for_others
from perpetual_blocks.session.follow_on import ready_at
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import ItemStatus, Outcome, Selector, WorkItem


class Killed(BaseException):
    """The process ends here."""


class BusyClock(FakeClock):
    """A clock by which, while somebody waits for it, others do something once."""

    meanwhile: Callable[[], object] | None = None

    def wait(self, event: Event, seconds: float) -> bool:
        if self.meanwhile is not None:
            self.meanwhile, done = None, self.meanwhile
            done()
        return super().wait(event, seconds)


@pytest.fixture
def clock() -> BusyClock:
    return BusyClock()


@pytest.fixture
def ledger(make_ledger: LedgerFactory) -> SqlLedger:
    return make_ledger("sqlite://")


@pytest.fixture
def owner(ledger: SqlLedger) -> Fence:
    """A session of the queue's own chain, `mine`, that is at work: it has claimed the first of three items."""
    fence = open_session(ledger, "mine", agent="Reader").fence
    ledger.add_items("mine", [WorkItem(id=f"doc-{n}") for n in range(3)], planned_by=fence)
    assert claim(ledger, fence).id == "doc-0"
    return fence


@pytest.fixture
def second(ledger: SqlLedger, clock: FakeClock, owner: Fence) -> Rig:
    """Another chain on that queue."""
    ledger.add_chain("second", queue="mine")
    return Rig(ledger, clock, Reader(), chain="second")


def test_it_works_on_the_others_items(ledger: SqlLedger, second: Rig, owner: Fence) -> None:
    """The plan is not its own, and what it does is: context, usage, documents. Then it waits for the rest, and says
    when it looks again: later and later, as long as there is nothing for it."""
    end = second.run()

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "waiting")
    assert end.reason.message == "what is left is with other chains of mine"
    chain = ledger.chain("second")
    assert chain.context == {"read": ["doc-1 p1", "doc-2 p1"]}
    assert (chain.status, chain.resume_at) == (ChainStatus.WAITING, end.reason.resume_at)
    assert status_of(ledger) == {
        "doc-0": ItemStatus.CLAIMED,
        "doc-1": ItemStatus.COMPLETED,
        "doc-2": ItemStatus.COMPLETED,
    }
    assert [len(ledger.documents(name, "checkpoint")) for name in ("mine", "second")] == [0, 1]
    assert "second" in second.document("handoff", 1)

    waits = []
    for _ in range(4):
        ledger.heartbeat(owner)
        asked = second.clock.now()
        end = second.run(invited=list(second.runs.created)[-1])
        waits.append(round((end.reason.resume_at or 0.0) - asked - 30))
    assert waits == pytest.approx([60, 120, 240, 480], rel=0.1)
    assert ledger.chain("second").status is ChainStatus.WAITING, "it is not held back for it"


def test_it_takes_what_comes_back_while_it_waits(
    ledger: SqlLedger, second: Rig, owner: Fence, clock: BusyClock
) -> None:
    """Another session gives back what it held: it is noticed at the next look, and everything is done."""
    item = next(item for item in ledger.items("mine", ItemStatus.CLAIMED))
    clock.meanwhile = lambda: ledger.release(owner, [item], begun=True)

    end = second.run()

    # The chain `mine` holds nothing any more, and goes on; nothing that it could take is left.
    assert (end.state, end.reason.message) == (SessionState.FINISHED, "every item is done")
    assert set(status_of(ledger).values()) == {ItemStatus.COMPLETED}
    assert len(second.runner.ran) == 3


def test_it_knows_when_to_go_on(ledger: SqlLedger, second: Rig, owner: Fence, clock: BusyClock) -> None:
    """It waits for another chain's item: not until that comes back, or is done and it may end."""
    end = second.run()
    ledger.heartbeat(owner)
    assert ready_at(ledger, "second", clock) is None
    item = next(item for item in ledger.items("mine", ItemStatus.CLAIMED))
    ledger.release(owner, [item], begun=True)
    assert ready_at(ledger, "second", clock) == pytest.approx(clock.now())

    again = claim(ledger, owner)
    assert ready_at(ledger, "second", clock) is None
    commit_unit(ledger, owner, again, Outcome(done=True, usage={}), "key", {})
    assert ready_at(ledger, "second", clock) == clock.now()
    end = second.run()
    assert end.state is SessionState.FINISHED


def die_with_an_outcome(rig: Rig) -> None:
    """Kills a session when its first unit is persisted, and not committed."""

    def die(point: str) -> None:
        if point == "unit.committing":
            raise Killed

    faults.install(die)
    with pytest.raises(Killed):
        rig.run()
    faults.install(None)


def test_an_outcome_that_a_dead_chain_had_persisted_is_found(
    ledger: SqlLedger, second: Rig, clock: BusyClock, owner: Fence
) -> None:
    """It is not run again by the chain that takes the item over: outcomes are the queue's."""
    die_with_an_outcome(second)
    clock.advance(LEASE + 1)
    ledger.heartbeat(owner)
    assert [deed.what for deed in Supervisor(ledger, None, clock, lambda session: None).look_at("second")] == [
        "rescued"
    ]
    ledger.add_chain("third", queue="mine")
    third = Rig(ledger, clock, Reader(), chain="third", documents=second.documents)
    third.runner.documents = second.runner.documents

    third.run()

    assert [key.split("/")[-2] for key in (*second.runner.ran, *third.runner.ran)] == ["doc-1", "doc-2"]
    assert ledger.sessions("third")[0].units == 2
    assert ledger.chain("third").context == {"read": ["doc-2 p1"]}, "what the other remembered is not its own"
    uid = ledger.chain("mine").uid
    assert {key.split("/")[1] for key in second.runner.documents.content} == {f"mine-{uid}"}


def test_a_chain_finds_its_own_first(ledger: SqlLedger, second: Rig, clock: BusyClock, owner: Fence) -> None:
    """What it had persisted when it died it applies itself, with what it remembered, if nobody has come before."""
    die_with_an_outcome(second)
    clock.advance(LEASE + 1)
    ledger.heartbeat(owner)

    second.run()

    assert [key.split("/")[-2] for key in second.runner.ran] == ["doc-1", "doc-2"]
    assert ledger.chain("second").context == {"read": ["doc-1 p1", "doc-2 p1"]}


def test_budgets_are_each_chains_own(ledger: SqlLedger, second: Rig, owner: Fence) -> None:
    """One whose total is gone ends, and leaves the rest to the others."""
    end = second.run(Budget(Limit("tokens", 150, scope="total")))

    assert (end.state, ledger.chain("second").status) == (SessionState.EXHAUSTED, ChainStatus.EXHAUSTED)
    assert ledger.counts("mine")[ItemStatus.AVAILABLE] == 1
    assert ledger.chain("mine").status is ChainStatus.RUNNING


def test_what_others_do_is_no_disagreement(ledger: SqlLedger, second: Rig, owner: Fence) -> None:
    """A session that resumes finds more done than its checkpoint says, and that is in order."""
    second.run(Budget(Limit("tokens", 110, threshold=0.9)))
    commit_unit(
        ledger, owner, ledger.items("mine", ItemStatus.CLAIMED)[0], Outcome(done=True, usage={}), "key", {"calls": 1.0}
    )

    second.run(invited=list(second.runs.created)[-1])

    checked, agreed = ledger.sessions("second")[1].verified or (0, 1)
    assert checked == agreed == 6


def test_a_chain_is_done_with_what_it_takes(ledger: SqlLedger, clock: FakeClock, owner: Fence) -> None:
    """What is left is taken by nobody who goes on: it does not wait for that."""
    ledger.add_chain("part", queue="mine", selector=Selector(ids=("doc-1",)))
    part = Rig(ledger, clock, Reader(), chain="part")
    close(ledger, owner, ChainStatus.EXHAUSTED)

    end = part.run()

    assert (end.state, end.reason.message) == (SessionState.FINISHED, "every item is done")
    assert ledger.counts("mine")[ItemStatus.AVAILABLE] == 2


@pytest.mark.parametrize(("waits", "seconds"), [(0, 60), (1, 120), (5, 1800), (500, LONGEST_WAIT_SECONDS)])
def test_waits_grow_and_have_an_end(waits: int, seconds: float) -> None:
    """Twice as long each time, up to half an hour; a session that had something to do begins anew."""
    before = [replace(latest(), stop_reason="waiting")] * waits
    assert wait_for_others([*before, latest(SessionState.RUNNING)]) == seconds
    worked = replace(latest(SessionState.RUNNING), units=1)
    assert wait_for_others([*before, worked]) == 60
