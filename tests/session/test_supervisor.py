"""What a rescuer does: pure decisions, and the supervisor on a real ledger with flow runs in memory."""

from collections.abc import Callable
from typing import Any

import pytest
from support import FakeClock, LedgerFactory, MemoryRuns, claim, close, finish_next, open_session, status_of

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.session.chain import ChainStatus, SessionRecord, SessionState, Wanted
from perpetual_blocks.session.follow_on import RunTemplate, create_follow_on
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.session.ports import RunFacts, RunState
from perpetual_blocks.session.supervisor import STUCK_SECONDS, Deed, Supervisor, fate
from perpetual_blocks.work import ItemStatus, WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment", parameters={"depth": 3}, tags=("perpetual",))


class KnownRuns(MemoryRuns):
    """Flow runs whose states the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, RunFacts] = {}

    def facts(self, flow_run_id: str) -> RunFacts:
        return self.states.get(flow_run_id, RunFacts(RunState.SCHEDULED, 0.0))


@pytest.fixture
def ledger(make_ledger: LedgerFactory) -> SqlLedger:
    return make_ledger("sqlite://")


@pytest.fixture
def runs() -> KnownRuns:
    return KnownRuns()


@pytest.fixture
def look(ledger: SqlLedger, runs: KnownRuns, clock: FakeClock) -> Callable[..., list[Deed]]:
    """Looks once; what is known of processes is said by the test."""

    def look(alive: bool | None = None) -> list[Deed]:
        return Supervisor(ledger, runs, clock, lambda session: alive).look()

    return look


def at_work(ledger: SqlLedger, **changes: Any) -> Any:
    """A session of a deployment that has finished an item and claimed another."""
    opened = open_session(ledger, template=TEMPLATE.to_json(), **changes)
    ledger.add_items("mine", [WorkItem(id=name) for name in "abc"])
    finish_next(ledger, opened.fence)
    claim(ledger, opened.fence)
    return opened


def test_a_session_that_works_is_left_alone(ledger: SqlLedger, look: Any, runs: KnownRuns) -> None:
    """As long as its lease runs, and nobody knows that its process is dead."""
    at_work(ledger)
    assert look() == look(alive=True) == []
    assert runs.created == {}


@pytest.mark.parametrize("known_dead", [True, False])
def test_a_dead_session_is_followed(
    ledger: SqlLedger, look: Any, runs: KnownRuns, clock: FakeClock, known_dead: bool
) -> None:
    """One whose process is gone at once, one that has not been heard of when its lease ends: its claims are free, one
    follow-on is created with its parameters, and its flow run is said to have crashed."""
    opened = at_work(ledger)
    if not known_dead:
        clock.advance(61)
    deeds = look(alive=False if known_dead else None)

    assert [deed.what for deed in deeds] == ["rescued", "created"]
    assert (ledger.chain("mine").status, ledger.chain("mine").epoch) == (ChainStatus.WAITING, 2)
    assert ledger.sessions("mine")[0].state is SessionState.CRASHED
    assert status_of(ledger)["b"] is ItemStatus.AVAILABLE
    (follow_on,) = runs.created.values()
    assert follow_on.parameters == {"depth": 3, "chain": "mine"}
    assert (follow_on.ordinal, follow_on.tags) == (2, ("perpetual", "chain:mine"))
    assert runs.crashes == ["run-of-first"]
    assert look(alive=False) == [], "nothing is left to do"
    assert len(runs.created) == 1
    assert opened.fence.epoch == 1


def test_a_process_that_lives_but_lost_its_lease_can_commit_nothing(
    ledger: SqlLedger, look: Any, clock: FakeClock
) -> None:
    """It hangs, or cannot reach the ledger: whatever it still tries is refused."""
    from perpetual_blocks.errors import Fenced

    opened = at_work(ledger)
    clock.advance(61)
    assert [deed.what for deed in look(alive=True)] == ["rescued", "created"]
    with pytest.raises(Fenced):
        ledger.heartbeat(opened.fence)


def test_several_supervisors_make_one_follow_on(ledger: SqlLedger, runs: KnownRuns, clock: FakeClock) -> None:
    """Hook, automation and schedule may all come at once, in any order of their steps."""
    at_work(ledger)
    clock.advance(61)
    supervisors = [Supervisor(ledger, runs, clock, lambda session: None) for _ in range(3)]
    deeds = [deed for one in supervisors for deed in [*one.look(), *one.run_is_over("run-of-first")]]
    assert [deed.what for deed in deeds] == ["rescued", "created"]
    assert len(runs.created) == 1


def test_a_run_that_is_over_is_not_waited_for(ledger: SqlLedger, runs: KnownRuns, clock: FakeClock) -> None:
    """Prefect saw its process end: nobody waits for the lease. A process that lives goes on, whatever Prefect says."""
    at_work(ledger)
    assert Supervisor(ledger, runs, clock, lambda session: True).run_is_over("run-of-first") == []
    deeds = Supervisor(ledger, runs, clock, lambda session: None).run_is_over("run-of-first")
    assert [deed.what for deed in deeds] == ["rescued", "created"]
    assert Supervisor(ledger, runs, clock, lambda session: None).run_is_over("of-nobody") == []


def test_a_cancelled_run_that_was_killed_ends_its_chain(ledger: SqlLedger, look: Any, runs: KnownRuns) -> None:
    """A person has cancelled it, and it had no time to say so: no follow-on."""
    at_work(ledger)
    runs.states["run-of-first"] = RunFacts(RunState.CANCELLED, 0.0)
    assert [deed.what for deed in look(alive=False)] == ["rescued"]
    assert ledger.chain("mine").status is ChainStatus.CANCELLED
    assert runs.created == {}


def test_what_a_person_wants_holds_for_a_dead_session_too(ledger: SqlLedger, look: Any, runs: KnownRuns) -> None:
    """Paused just before it died: the chain is Paused, and its follow-on waits in the outbox for `resume`."""
    at_work(ledger)
    ledger.want("mine", Wanted.PAUSE, "the provider is down")
    assert [deed.what for deed in look(alive=False)] == ["rescued"]
    assert (ledger.chain("mine").status, runs.created) == (ChainStatus.PAUSED, {})
    ledger.resume("mine")
    assert [deed.what for deed in look()] == ["created"]
    assert len(runs.created) == 1


def test_a_chain_without_a_deployment_waits_for_a_person(ledger: SqlLedger, look: Any, runs: KnownRuns) -> None:
    """Its dead session is buried and its claims are free; nobody can start the next one by itself."""
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="a")])
    claim(ledger, fence)
    assert [deed.what for deed in look(alive=False)] == ["rescued"]
    assert ledger.chain("mine").status is ChainStatus.WAITING
    assert status_of(ledger)["a"] is ItemStatus.AVAILABLE


def test_an_item_that_kills_its_processes_is_quarantined(ledger: SqlLedger, look: Any, clock: FakeClock) -> None:
    """After five of them in a row it is discarded, and the chain goes on with the others."""
    for number in range(5):
        opened = open_session(ledger, holder=f"h{number}", template=TEMPLATE.to_json())
        ledger.add_items("mine", [WorkItem(id="bad", priority=1), WorkItem(id="good")])
        assert claim(ledger, opened.fence).id == "bad"
        look(alive=False)
        clock.advance(400)
    bad = next(item for item in ledger.items("mine") if item.id == "bad")
    assert bad.status is ItemStatus.DISCARDED
    assert (bad.attempts, bad.interruptions) == (0, 5)
    assert "5 processes in a row" in (bad.error or "")
    assert claim(ledger, open_session(ledger, holder="next").fence).id == "good"


@pytest.mark.parametrize(
    ("state", "since", "expected"),
    [
        (RunState.SCHEDULED, 0, "late"),
        (RunState.PAUSED, 0, "late"),
        (RunState.STARTING, 5, "wait"),
        (RunState.RUNNING, 5, "wait"),
        (RunState.STARTING, STUCK_SECONDS, "renew"),
        (RunState.RUNNING, STUCK_SECONDS, "renew"),
        (RunState.ENDED, 5, "renew"),
        (RunState.BROKEN, 5, "renew"),
        (RunState.GONE, 5, "renew"),
        (RunState.CANCELLED, 5, "cancelled"),
    ],
)
def test_the_fate_of_a_follow_on(state: RunState, since: float, expected: str) -> None:
    """What a run says of itself decides whether it is waited for, replaced, or was a person's word."""
    now = 1_700_000_000.0
    assert fate(RunFacts(state, now - since), now) == expected


def test_each_run_in_its_place_is_given_more_time() -> None:
    """A machine that takes five minutes to start is not taken for dead for ever."""
    stuck = RunFacts(RunState.STARTING, 0.0)
    assert [fate(stuck, 300.0, renewals) for renewals in range(4)] == ["renew", "renew", "wait", "wait"]


def test_a_follow_on_that_was_created_ahead_waits_for_as_long_as_it_must() -> None:
    """Its time begins when the session before has ended, however long it has been up; and while it says that it waits
    at the fence, it lives. One that has come there and is silent is gone."""
    up = RunFacts(RunState.RUNNING, 0.0)
    assert fate(up, 1000.0, due=900.0) == "wait"
    assert fate(up, 900.0 + STUCK_SECONDS, due=900.0) == "renew"
    assert fate(up, 5000.0, due=900.0, waits_until=5001.0) == "wait"
    assert fate(up, 5000.0, due=4999.0, waits_until=5000.0) == "renew"
    assert fate(RunFacts(RunState.BROKEN, 0.0), 5000.0, due=4999.0, waits_until=5001.0) == "renew"
    assert fate(RunFacts(RunState.CANCELLED, 0.0), 5000.0, waits_until=5001.0) == "cancelled"


def ahead_of(ledger: SqlLedger, runs: KnownRuns, opened: Any, state: RunState) -> FollowOn:
    """The follow-on of a session at work, created ahead."""
    made = TEMPLATE.follow_on("mine", opened.chain.uid, 2, None)
    ledger.announce(opened.fence, 1_700_000_015.0, made)
    run = create_follow_on(ledger, runs, made)
    runs.states[run] = RunFacts(state, 1_700_000_000.0)
    return made


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.SCHEDULED, RunState.STARTING])
def test_a_successor_that_waits_is_no_late_follow_on(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, look: Any, state: RunState
) -> None:
    """Its session has worked for an hour since it was created, and has just ended: nothing is wrong."""
    opened = at_work(ledger)
    made = ahead_of(ledger, runs, opened, state)
    for _ in range(120):
        clock.advance(30)
        ledger.heartbeat(opened.fence)
        assert look() == []
    close(ledger, opened.fence, follow_on=made)
    clock.advance(59)
    assert look() == []
    assert Supervisor(ledger, runs, clock, lambda session: None).look_after("mine") == []
    assert len(runs.created) == 1


@pytest.mark.parametrize("died_as", ["a closing", "a crash"])
def test_a_successor_that_died_at_the_fence_is_replaced_at_once(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, look: Any, died_as: str
) -> None:
    """When its session ends, and also when that dies with it; whoever ends the session looks."""
    opened = at_work(ledger)
    made = ahead_of(ledger, runs, opened, RunState.RUNNING)
    ledger.wait_at_fence("mine", made.idempotency_key, 30.0)
    clock.advance(31)
    if died_as == "a closing":
        close(ledger, opened.fence, follow_on=made)
        deeds = Supervisor(ledger, runs, clock, lambda session: None).look_after("mine")
        assert [deed.what for deed in deeds] == ["renewed", "created"]
    else:
        assert [deed.what for deed in look(alive=False)] == ["rescued", "renewed", "created"]
    assert len(runs.created) == 2
    assert ledger.pending_follow_ons() == []


def test_a_successor_that_a_person_cancelled_ends_the_chain_with_its_session(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock
) -> None:
    """The session goes on to its end, and nothing follows it."""
    opened = at_work(ledger)
    made = ahead_of(ledger, runs, opened, RunState.CANCELLED)
    close(ledger, opened.fence, follow_on=made)
    (deed,) = Supervisor(ledger, runs, clock, lambda session: None).look_after("mine")
    assert (deed.what, ledger.chain("mine").status) == ("held", ChainStatus.CANCELLED)


def wrapped(ledger: SqlLedger, runs: KnownRuns, clock: FakeClock) -> str:
    """A chain whose session has ended in order, and whose follow-on was created; the follow-on's run."""
    opened = at_work(ledger)
    made = TEMPLATE.follow_on("mine", opened.chain.uid, 2, None)
    close(ledger, opened.fence, follow_on=made)
    assert [deed.what for deed in Supervisor(ledger, runs, clock, lambda session: None).look()] == ["created"]
    found = ledger.follow_on("mine", 2)
    assert found is not None
    return found[0].flow_run_id or ""


def test_a_follow_on_that_came_to_nothing_is_replaced_until_it_is_enough(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, look: Any
) -> None:
    """Each new run has a key of its own and starts later than the one before; in the end the chain is Stalled."""
    wrapped(ledger, runs, clock)
    for renewed in range(1, 6):
        found = ledger.follow_on("mine", 2)
        assert found is not None
        runs.states[found[0].flow_run_id or ""] = RunFacts(RunState.BROKEN, clock.now())
        clock.advance(400)
        assert [deed.what for deed in look()] == ["renewed", "created"]
        assert len(runs.created) == 1 + renewed
    clock.advance(400)
    look()
    assert ledger.chain("mine").status is ChainStatus.STALLED
    assert "6 runs in a row" in ledger.chain("mine").reason
    assert len(runs.created) == 6


def test_a_follow_on_that_nobody_takes_up_is_told(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, look: Any
) -> None:
    """Another run would not be taken up either: it is said, and waits. Before a minute has passed nothing is said."""
    run = wrapped(ledger, runs, clock)
    runs.states[run] = RunFacts(RunState.SCHEDULED, clock.now())
    clock.advance(59)
    assert look() == []
    clock.advance(2)
    (late,) = look()
    assert (late.what, len(runs.created)) == ("late", 1)
    assert "worker" in late.why


def test_a_follow_on_that_a_person_cancelled_ends_the_chain(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, look: Any
) -> None:
    """Cancelled before it began: the chain is Cancelled and not started again."""
    run = wrapped(ledger, runs, clock)
    runs.states[run] = RunFacts(RunState.CANCELLED, clock.now())
    clock.advance(120)
    assert [deed.what for deed in look()] == ["held"]
    assert ledger.chain("mine").status is ChainStatus.CANCELLED
    assert len(runs.created) == 1


def test_what_is_wrong_with_one_chain_keeps_nobody_from_the_others(
    ledger: SqlLedger, runs: KnownRuns, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain that cannot be looked at is reported; the next one is rescued."""
    for name in ("broken", "fine"):
        open_session(ledger, name, name, template=TEMPLATE.to_json())
    clock.advance(61)

    def facts(flow_run_id: str) -> RunFacts:
        if flow_run_id == "run-of-broken":
            raise ConnectionError("no route to host")
        return RunFacts(RunState.RUNNING, 0.0)

    monkeypatch.setattr(runs, "facts", facts)
    deeds = Supervisor(ledger, runs, clock, lambda session: None).look()
    assert sorted((deed.chain, deed.what) for deed in deeds) == [
        ("broken", "failed"), ("fine", "created"), ("fine", "rescued"),
    ]  # fmt: skip
    assert ledger.chain("broken").status is ChainStatus.RUNNING


def test_no_session_is_dead_that_has_ended() -> None:
    """Only a running session can be found dead."""
    from perpetual_blocks.session.supervisor import death

    record = SessionRecord(
        ordinal=1, epoch=1, state=SessionState.WRAPPED, flow_run_id=None, deployment_id=None, host="h", pid=1,
        process_started=0.0, started_at=0.0,
    )  # fmt: skip
    assert death(None, record, 10.0, alive=False) is None  # type: ignore[arg-type]
