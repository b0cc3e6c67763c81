"""What is decided about a chain whose total is gone, on every database: by whom, how often, and when it counts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from postgres_server import address_of
from support import FakeClock, LedgerFactory, MemoryRuns, close, finish_next, one_line, open_session

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.session.approval import Approval, Decision
from perpetual_blocks.session.asking import close_question
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment", parameters={"depth": 3})
BUDGET = Budget(Limit("tokens", 100, scope="total"), Limit("calls", 5, scope="total", pool="team"))
SETTINGS = {"kinds": ["default"], "budget": BUDGET.to_json()}
MORE = Approval(decision=Decision.MORE, session=1, by="command", key="one", amounts={"tokens": 50.0})


@pytest.fixture(params=("sqlite-file", "sqlite-memory", "postgres"))
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


def exhausted(ledger: SqlLedger, chain: str = "mine", holder: str = "first", **changes: Any) -> None:
    """A chain whose session has ended because its total is gone."""
    opened = open_session(ledger, chain, holder, **{"template": TEMPLATE.to_json(), "settings": SETTINGS, **changes})
    ledger.add_items(chain, [WorkItem(id="a"), WorkItem(id="b"), WorkItem(id="c")])
    finish_next(ledger, opened.fence)
    stop = StopReason("exhausted:tokens", "needs 60 tokens; 10 tokens left of 100 tokens in all")
    close(ledger, opened.fence, ChainStatus.EXHAUSTED, state=SessionState.EXHAUSTED, stop=stop)


def refused(ledger: SqlLedger, approval: Approval, *parts: str) -> None:
    """The decision is refused in one line with these parts, and changes nothing."""
    before = ledger.chain("mine")
    with pytest.raises(InvalidInput) as error:
        ledger.approve("mine", approval)
    one_line(error.value, *parts)
    assert ledger.chain("mine") == before


def test_more_is_approved_in_one_transaction(ledger: SqlLedger, clock: FakeClock) -> None:
    """The grant, the follow-on and the chain's status; the same decision told twice is one, and the total stays raised
    in the sessions that follow, whatever their code says."""
    exhausted(ledger)
    assert ledger.ask("mine", 1, clock.now() + 3600)
    assert ledger.chain("mine").asks_until == clock.now() + 3600

    stands = ledger.approve("mine", MORE)
    assert ledger.approve("mine", MORE) == stands, "an answer that was lost on the way"

    assert (stands.status, stands.attended, stands.asks_until) == (ChainStatus.WAITING, 1, None)
    assert stands.reason == "a person has approved 50 tokens more"
    assert stands.approvals == (replace(MORE, at=clock.now()),)
    (follow_on,) = ledger.pending_follow_ons("mine")
    assert (follow_on.ordinal, follow_on.parameters) == (2, {"depth": 3, "chain": "mine"})
    assert stands.budget.total("tokens") == Limit("tokens", 150, scope="total")
    opened = open_session(ledger, "mine", "second", settings=SETTINGS, invitation=follow_on.idempotency_key)
    assert opened.chain.budget == stands.budget
    refused(ledger, replace(MORE, key="two"), "mine", "running")


def test_without_a_deployment_a_person_starts_the_run(ledger: SqlLedger) -> None:
    """There is nothing that could be created; the words say what to do."""
    exhausted(ledger, template=None)
    assert ledger.approve("mine", MORE).reason == "a person has approved 50 tokens more; start a run of it"
    assert ledger.pending_follow_ons() == []
    assert open_session(ledger, "mine", "second", settings=SETTINGS).fence.ordinal == 2


@pytest.mark.parametrize("kind", ["sqlite-file", "postgres"])
def test_many_decide_at_once(kind: str, request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> None:
    """A form and commands at the same moment: one of them has decided, and the others are told."""
    address = address_of(kind, request)
    ledgers = [make_ledger(address) for _ in range(6)]
    for number in range(5):
        chain = f"chain-{number}"
        exhausted(ledgers[0], chain)
        barrier = Barrier(len(ledgers))

        def decide(place: int, chain: str = chain, barrier: Barrier = barrier) -> bool:
            barrier.wait()
            by: Any = "form" if place == 0 else "command"
            try:
                ledgers[place].approve(chain, replace(MORE, by=by, key=f"key-{place}"))
            except InvalidInput:
                return False
            return True

        with ThreadPoolExecutor(len(ledgers)) as threads:
            assert sum(threads.map(decide, range(len(ledgers)))) == 1
        row = ledgers[0].chain(chain)
        assert row.budget.total("tokens").amount == 150  # type: ignore[union-attr]
        assert len(ledgers[0].pending_follow_ons(chain)) == len(row.approvals) == 1


def test_a_question_is_answered_once_and_a_command_counts_all_the_same(ledger: SqlLedger, clock: FakeClock) -> None:
    """Stop leaves the chain as it is, with words that say how to go on; the form has no second say, a person has."""
    exhausted(ledger)
    stop = Approval(decision=Decision.STOP, session=1, by="form", key="stop")

    stands = ledger.approve("mine", stop)

    assert (stands.status, stands.approvals) == (ChainStatus.EXHAUSTED, (replace(stop, at=clock.now()),))
    assert stands.reason.startswith("needs 60 tokens; 10 tokens left of 100 tokens in all; a person says stop")
    assert "`perpetual approve mine`" in stands.reason
    assert not ledger.ask("mine", 1, clock.now()), "it has been answered"
    refused(ledger, replace(MORE, by="form"), "a person says stop")
    assert ledger.approve("mine", MORE).status is ChainStatus.WAITING


def test_nobody_answers(ledger: SqlLedger, clock: FakeClock) -> None:
    """The supervisor leaves a suspended run alone until its time is over, then ends it; a late answer is refused."""
    exhausted(ledger)
    ledger.ask("mine", 1, clock.now() + 3600)
    runs = MemoryRuns()
    supervisor = Supervisor(ledger, runs, clock, lambda session: False)
    assert supervisor.look() == []
    assert (runs.ended, ledger.chain("mine").status) == ({}, ChainStatus.EXHAUSTED)

    clock.advance(3600)
    (deed,) = supervisor.look()

    assert (deed.what, deed.chain) == ("unanswered", "mine")
    assert runs.ended == {"run-of-first": ("Exhausted", ledger.chain("mine").reason)}
    assert "nobody has answered in time; `perpetual approve mine`" in ledger.chain("mine").reason
    assert supervisor.look() == []
    refused(ledger, replace(MORE, by="form"), "nobody has answered")
    assert ledger.approve("mine", MORE).status is ChainStatus.WAITING


def test_an_answer_at_the_last_moment(ledger: SqlLedger, clock: FakeClock) -> None:
    """What somebody has decided between the supervisor's look and its deed stands."""
    exhausted(ledger)
    ledger.ask("mine", 1, clock.now())
    seen, runs = ledger.chain("mine"), MemoryRuns()
    ledger.approve("mine", MORE)
    assert close_question(ledger, runs, seen, clock.now()) is None
    assert (ledger.chain("mine").status, runs.ended) == (ChainStatus.WAITING, {})


@pytest.mark.parametrize("how", ["a run", "resume", "cancel"])
def test_others_go_on_meanwhile(ledger: SqlLedger, clock: FakeClock, how: str) -> None:
    """A person starts a run by hand, resumes or cancels the chain: then nothing is asked, and the form comes too late,
    also where the chain is exhausted again."""
    exhausted(ledger)
    ledger.ask("mine", 1, clock.now() + 3600)
    match how:
        case "a run":
            exhausted(ledger, holder="second")
        case "resume":
            ledger.resume("mine")
        case "cancel":
            ledger.want("mine", Wanted.CANCEL, "enough")
    assert ledger.chain("mine").asks_until is None
    assert not ledger.ask("mine", 1, clock.now() + 3600)
    said = {"a run": "others have gone on", "resume": "waiting", "cancel": "cancelled"}[how]
    refused(ledger, replace(MORE, by="form"), said)


@pytest.mark.parametrize(
    ("amounts", "parts"),
    [
        ({"tokens": -1.0}, ["more.tokens", "-1.0", "above 0"]),
        ({"tokens": 0.0}, ["more.tokens", "above 0"]),
        ({"tokens": float("nan")}, ["more.tokens", "nan"]),
        ({"tokens": float("inf")}, ["more.tokens", "at most 100"]),
        ({"tokens": 100.5}, ["more.tokens", "100.5", "at most 100"]),
        ({"tokens": True}, ["more.tokens", "True", "a number"]),
        ({"tokens": "9"}, ["more.tokens", "'9'", "a number"]),
        ({"cost": 1.0}, ["'cost'", "a total limit", "tokens"]),
        ({"calls": 1.0}, ["more.calls", "pool team", "`perpetual resume mine`"]),
        ({}, ["more", "tokens=50000"]),
    ],
)
def test_amounts_that_are_none(ledger: SqlLedger, amounts: Any, parts: list[str]) -> None:
    """Each is refused with what was expected, and nothing is recorded."""
    exhausted(ledger)
    refused(ledger, replace(MORE, amounts=amounts), *parts)


def test_as_much_again_each_time(ledger: SqlLedger) -> None:
    """The bound is the budget's own amount, however much was approved before; grants add up."""
    exhausted(ledger)
    ledger.approve("mine", replace(MORE, amounts={"tokens": 100.0}))
    exhausted(ledger, holder="second")
    refused(ledger, replace(MORE, session=2, key="two", amounts={"tokens": 101.0}), "at most 100")
    stands = ledger.approve("mine", replace(MORE, session=2, key="two", amounts={"tokens": 100.0}))
    assert stands.budget.total("tokens").amount == 300  # type: ignore[union-attr]


def test_an_unknown_chain(ledger: SqlLedger) -> None:
    """It is named."""
    with pytest.raises(UnknownChain):
        ledger.approve("nobody", MORE)
    assert not ledger.ask("nobody", 1, 0.0)


def test_approvals_are_backed_up(ledger: SqlLedger, make_ledger: LedgerFactory) -> None:
    """A chain that is rebuilt from its backup has what was approved, and asks nobody."""
    exhausted(ledger)
    ledger.approve("mine", MORE)
    exhausted(ledger, holder="second")
    ledger.ask("mine", 2, 1e9)
    with ledger.export("mine", None) as export:
        rows = list(export.rows)
    other = make_ledger("sqlite://")
    other.rebuild("mine", [rows], "restored")
    chain = other.chain("mine")
    assert (chain.approvals, chain.asks_until) == (ledger.chain("mine").approvals, None)
    assert chain.budget == ledger.chain("mine").budget
