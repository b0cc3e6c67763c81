"""What is done to a chain from outside, on every database: rescue, and what a person wants."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from postgres_server import address_of
from support import FakeClock, LedgerFactory, claim, close, finish_next, one_line, open_session, session_request

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.errors import Fenced, InvalidInput, Superseded, UnknownChain
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted, invited_to
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.work import WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment", parameters={"depth": 3})
GOES_ON = Ending(SessionState.CRASHED, ChainStatus.WAITING, StopReason("crashed", "it died"), goes_on=True)


@pytest.fixture(params=("sqlite-file", "sqlite-memory", "postgres"))
def address(request: pytest.FixtureRequest) -> str:
    """The address of an empty ledger."""
    return address_of(request.param, request)


@pytest.fixture
def ledger(address: str, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address)


def at_work(ledger: SqlLedger, chain: str = "mine", **changes: Any) -> Any:
    """A session of a deployment with two items, one of which is claimed."""
    opened = open_session(ledger, chain, **{"template": TEMPLATE.to_json(), **changes})
    ledger.add_items(chain, [WorkItem(id="a"), WorkItem(id="b")])
    claim(ledger, opened.fence)
    return opened


def waiting(ledger: SqlLedger, chain: str = "mine") -> FollowOn:
    """A chain whose session has wrapped and whose follow-on's run was created."""
    opened = at_work(ledger, chain)
    follow_on = TEMPLATE.follow_on(chain, opened.chain.uid, 2, None)
    close(ledger, opened.fence, follow_on=follow_on)
    ledger.follow_on_created(follow_on, f"run-of-{chain}-2")
    return follow_on


def test_rescue_is_one_transaction(ledger: SqlLedger, clock: FakeClock) -> None:
    """The dead session is buried, its claims are free, its holder fenced off, and the follow-on recorded: once."""
    opened = at_work(ledger)
    assert ledger.rescue("mine", 1, "why", lambda chain, sessions: GOES_ON) is None, "its lease runs"
    clock.advance(61)
    assert ledger.rescue("mine", 2, "why", lambda chain, sessions: GOES_ON) is None, "another session"

    seen = []
    assert ledger.rescue("mine", 1, "why", lambda chain, sessions: seen.append(sessions) or GOES_ON) == GOES_ON

    assert [session.state for session in seen[0]] == [SessionState.CRASHED]
    assert (ledger.sessions("mine")[0].stop_message, ledger.sessions("mine")[0].graceful) == ("why", False)
    (follow_on,) = ledger.pending_follow_ons("mine")
    assert (follow_on.ordinal, follow_on.parameters) == (2, {"depth": 3, "chain": "mine"})
    with pytest.raises(Fenced):
        ledger.heartbeat(opened.fence)
    assert ledger.rescue("mine", 1, "why", lambda chain, sessions: GOES_ON) is None, "it is done"
    assert ledger.rescue("nobody", 1, "why", lambda chain, sessions: GOES_ON) is None


def test_a_decision_that_fails_changes_nothing(ledger: SqlLedger, clock: FakeClock) -> None:
    """The rescue is rolled back as a whole, and can be tried again."""
    at_work(ledger)
    clock.advance(61)
    before = (ledger.chain("mine"), ledger.sessions("mine"), ledger.items("mine"))

    def decide(_chain: Any, _sessions: Any) -> Ending:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError):
        ledger.rescue("mine", 1, "why", decide)
    assert (ledger.chain("mine"), ledger.sessions("mine"), ledger.items("mine")) == before


@pytest.mark.parametrize("kind", ["sqlite-file", "postgres"])
def test_many_rescuers_at_once(kind: str, request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> None:
    """Of eight that come at the same moment, with a starter among them, one rescues; never more than one follow-on."""
    address = address_of(kind, request)
    ledgers = [make_ledger(address) for _ in range(8)]
    for number in range(10):
        chain = f"chain-{number}"
        at_work(ledgers[0], chain)
        assert ledgers[0].declare_dead(chain, 1)
        barrier = Barrier(9)

        def rescue(ledger: SqlLedger, chain: str = chain, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            return ledger.rescue(chain, 1, "why", lambda chain, sessions: GOES_ON) is not None

        def start(chain: str = chain, barrier: Barrier = barrier) -> bool:
            ledger = make_ledger(address)
            barrier.wait()
            open_session(ledger, chain, "starter")
            return True

        with ThreadPoolExecutor(9) as threads:
            tried = [threads.submit(rescue, ledger) for ledger in ledgers]
            started = threads.submit(start)
            rescued = [one.result() for one in tried]
            assert started.result()
        assert sum(rescued) <= 1
        assert [session.state for session in ledgers[0].sessions(chain)] == [
            SessionState.CRASHED, SessionState.RUNNING,
        ]  # fmt: skip
        assert ledgers[0].pending_follow_ons(chain) == [], "the session that has begun needs none"


def test_a_wish_reaches_a_session_at_work(ledger: SqlLedger) -> None:
    """It is read while the session works, and decides how the chain stands when the session ends as if without it."""
    opened = at_work(ledger)
    assert ledger.wanted("mine") is None
    assert ledger.want("mine", Wanted.PAUSE, "the provider is down") is None
    assert ledger.wanted("mine") == (Wanted.PAUSE, "the provider is down")
    assert ledger.chain("mine").status is ChainStatus.RUNNING

    close(ledger, opened.fence, follow_on=TEMPLATE.follow_on("mine", opened.chain.uid, 2, None))

    assert (ledger.chain("mine").status, ledger.chain("mine").reason) == (ChainStatus.PAUSED, "the provider is down")
    assert ledger.pending_follow_ons() == [], "it waits for resume"
    with pytest.raises(Superseded) as refused:
        open_session(ledger, holder="other")
    one_line(refused.value, "paused", "the provider is down", "perpetual resume mine")

    assert ledger.resume("mine").status is ChainStatus.WAITING
    assert [follow_on.ordinal for follow_on in ledger.pending_follow_ons()] == [2]
    assert ledger.wanted("mine") is None


def test_a_finished_chain_is_finished_whatever_was_wanted(ledger: SqlLedger) -> None:
    """A wish that came too late changes nothing of an end."""
    opened = at_work(ledger)
    ledger.want("mine", Wanted.PAUSE, "later")
    close(ledger, opened.fence, ChainStatus.FINISHED, state=SessionState.FINISHED)
    assert ledger.chain("mine").status is ChainStatus.FINISHED


def test_a_chain_that_waits_is_held_at_once(ledger: SqlLedger) -> None:
    """Its follow-on's run is named, so that it can be kept from starting; when it goes on, another run is created."""
    first = waiting(ledger)
    scheduled = ledger.want("mine", Wanted.PAUSE, "why")
    assert scheduled is not None
    assert (scheduled.flow_run_id, scheduled.idempotency_key) == ("run-of-mine-2", first.idempotency_key)
    assert ledger.chain("mine").status is ChainStatus.PAUSED
    assert ledger.pending_follow_ons() == []

    ledger.resume("mine")

    (renewed,) = ledger.pending_follow_ons()
    assert renewed.idempotency_key != first.idempotency_key
    assert invited_to(renewed.idempotency_key, ledger.chain("mine").uid) == 2


@pytest.mark.parametrize(
    "status", [ChainStatus.PAUSED, ChainStatus.CANCELLED, ChainStatus.STALLED, ChainStatus.EXHAUSTED]
)
def test_resume_makes_a_follow_on_of_the_latest_session(ledger: SqlLedger, status: ChainStatus) -> None:
    """Whatever held the chain: it waits, with a follow-on of the latest session's deployment and parameters."""
    opened = at_work(ledger)
    close(ledger, opened.fence, status, state=SessionState.STALLED)
    ledger.resume("mine")
    assert (ledger.chain("mine").status, ledger.chain("mine").attended) == (ChainStatus.WAITING, 1)
    (follow_on,) = ledger.pending_follow_ons()
    assert (follow_on.ordinal, follow_on.deployment_id) == (2, "deployment")


def test_what_cannot_be_wanted(ledger: SqlLedger) -> None:
    """A finished chain cannot be paused, one that goes on cannot be resumed, an unknown one neither."""
    opened = at_work(ledger)
    close(ledger, opened.fence, ChainStatus.FINISHED, state=SessionState.FINISHED)
    for wanted in Wanted:
        with pytest.raises(InvalidInput) as refused:
            ledger.want("mine", wanted, "why")
        one_line(refused.value, "chain", "'mine'", "finished")
    with pytest.raises(InvalidInput):
        ledger.resume("mine")
    with pytest.raises(UnknownChain):
        ledger.want("nobody", Wanted.PAUSE, "why")
    with pytest.raises(UnknownChain):
        ledger.resume("nobody")


def test_stop_all_and_back(ledger: SqlLedger) -> None:
    """Every chain that goes on is held, and no new one starts; `resume_all` lets go of these, not of those that a
    person held before."""
    waiting(ledger, "waits")
    works = at_work(ledger, "works")
    waiting(ledger, "held")
    ledger.want("held", Wanted.PAUSE, "for itself")
    finished = at_work(ledger, "finished")
    close(ledger, finished.fence, ChainStatus.FINISHED, state=SessionState.FINISHED)

    assert [follow_on.chain for follow_on in ledger.stop_all("the bill")] == ["waits"]
    assert ledger.stop_all("again") == []

    assert ledger.all_stopped() == "the bill"
    assert ledger.wanted("works") == (Wanted.STOP_ALL, "the bill")
    for chain in ("new", "waits", "finished"):
        with pytest.raises(Superseded) as refused:
            open_session(ledger, chain, "other")
        one_line(refused.value, "all chains are stopped (the bill)", "perpetual resume --all")
    finish_next_of(ledger, works)
    close(ledger, works.fence)
    assert ledger.chain("works").status is ChainStatus.PAUSED

    assert ledger.resume_all() == ["waits", "works"]

    assert ledger.all_stopped() is None
    assert {chain.name: chain.status.value for chain in ledger.chains()} == {
        "waits": "waiting", "works": "waiting", "held": "paused", "finished": "finished",
    }  # fmt: skip
    assert sorted(follow_on.chain for follow_on in ledger.pending_follow_ons()) == ["waits", "works"]
    open_session(ledger, "new", "other")


def finish_next_of(ledger: SqlLedger, opened: Any) -> None:
    """A session that was asked to stop may still finish its unit."""
    finish_next(ledger, opened.fence)


def test_a_person_s_start_is_attended(ledger: SqlLedger) -> None:
    """A session that a person starts, or the run that was paused and resumed, counts as looked after."""
    opened = open_session(ledger)
    assert ledger.chain("mine").attended == 1
    ledger.add_items("mine", [WorkItem(id="a")])
    close(ledger, opened.fence)
    second = open_session(ledger, holder="second", attended=False)
    assert ledger.chain("mine").attended == 1
    close(ledger, second.fence, ChainStatus.PAUSED, state=SessionState.PAUSED)
    with pytest.raises(Superseded):
        open_session(ledger, holder="other", attended=False)
    ledger.open_session(session_request(holder="again", flow_run_id="run-of-second", attended=False))
    assert (ledger.chain("mine").attended, ledger.chain("mine").status) == (3, ChainStatus.RUNNING)
