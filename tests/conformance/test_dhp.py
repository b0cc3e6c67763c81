"""The rules of dhp-conform, each against our ledger and session loop; `rules.py` says what each demands."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from rig import ONE_UNIT, UNIT_TOKENS, Killed, MakeRig, item, proves
from support import (
    LEASE,
    FakeClock,
    LedgerFactory,
    MemoryRuns,
    claim,
    close,
    follow_on_in_memory,
    item_in,
    one_line,
    open_session,
)

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput, Superseded
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.follow_on import create_follow_ons
from perpetual_blocks.work import CutOff, ItemStatus, Unit

RACERS = 8


@proves("no-lost-results")
def test_a_dead_workers_progress_is_taken_up(make_rig: MakeRig) -> None:
    """A worker saves its progress and dies in the next unit: the next session begins with that progress, runs the
    unit that was lost, and no other, and counts no attempt."""

    def work(unit: Unit) -> Any:
        if unit.number == 1:
            return unit.advance(cursor={"pages": 1})
        if rig.ran.count("a/2") == 1:
            raise Killed
        return {"x": 7, "from": unit.cursor}

    rig = make_rig([item("a")], work)
    rig.run_killed()

    assert rig.run().state is SessionState.FINISHED

    assert rig.result("a") == {"x": 7, "from": {"pages": 1}}
    assert rig.ran == ["a/1", "a/2", "a/2"]
    assert (rig.found("a").attempts, rig.found("a").failures) == (0, 0)
    states = [session.state for session in rig.ledger.sessions("mine")]
    assert states == [SessionState.CRASHED, SessionState.FINISHED]


@proves("no-crossed-inputs")
def test_an_id_keeps_its_input(make_rig: MakeRig) -> None:
    """Neither a second item of the same id nor the unit itself exchanges what an item was made with."""
    seen: list[Any] = []

    def work(unit: Unit) -> Any:
        seen.append(dict(unit.payload))
        unit.payload["n"] = 999
        return "read" if unit.number == 2 else unit.advance()

    rig = make_rig([item("a", payload={"n": 1})], work)
    rig.run(ONE_UNIT)
    with pytest.raises(InvalidInput) as refused:
        rig.ledger.add_items("mine", [item("a", payload={"n": 999})])
    rig.run_chain()

    one_line(refused.value, "WorkItem('a').payload", "999")
    assert seen == [{"n": 1}, {"n": 1}]
    assert rig.found("a").payload == {"n": 1}


@proves("no-untyped-results")
def test_what_is_no_result_completes_nothing(make_rig: MakeRig) -> None:
    """A unit whose result is no JSON has failed: its item is not completed, and neither result nor context is kept."""

    def work(unit: Unit) -> Any:
        unit.context["kept"] = True
        return {"x": {1, 2}}

    rig = make_rig([item("a", max_attempts=1)], work)

    rig.run()

    found = rig.found("a")
    assert (found.status, found.units, found.result_key) == (ItemStatus.DISCARDED, 0, None)
    assert "set" in (found.error or "")
    assert rig.ledger.chain("mine").context == {}


@proves("no-silent-budget-overrun")
def test_an_overrun_is_told_recorded_and_final(make_rig: MakeRig) -> None:
    """A unit that asks for more than is left is told; one that goes on all the same is recorded as it was, and is the
    chain's last, however often somebody starts it again."""
    told: list[str] = []

    def work(unit: Unit) -> Any:
        unit.spend(calls=2)
        try:
            unit.reserve(calls=1)
        except CutOff as refused:
            told.append(str(refused))
        unit.spend(calls=1)

    rig = make_rig([item("a"), item("b")], work)
    budget = Budget(Limit("calls", 2, scope="total"))

    assert [rig.run(budget).state, rig.run(budget).state] == [SessionState.EXHAUSTED, SessionState.EXHAUSTED]

    assert told == ["a: unit 1 needs 1 calls; 0 calls left"]
    assert rig.ran == ["a/1"]
    assert chain_usage(rig.ledger.sessions("mine"))["calls"] == 3
    assert rig.ledger.chain("mine").status is ChainStatus.EXHAUSTED


@proves("no-runner-lock-in")
def test_another_machine_goes_on(make_rig: MakeRig, make_ledger: LedgerFactory, address: str) -> None:
    """What one machine has put down, another with a connection of its own takes up and completes."""

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        return unit.cursor if unit.number == 2 else unit.advance(cursor={"pages": 1})

    rig = make_rig([item("a")], work)
    assert rig.run(ONE_UNIT, host="first").state is SessionState.WRAPPED
    rig.ledger = make_ledger(address)

    assert rig.run(ONE_UNIT, host="second").state is SessionState.FINISHED

    assert [session.host for session in rig.ledger.sessions("mine")] == ["first", "second"]
    assert (rig.ran, rig.result("a")) == (["a/1", "a/2"], {"pages": 1})


@proves("exactly-one-wins")
def test_one_of_many_takes_over(make_ledger: LedgerFactory, ledger: SqlLedger, clock: FakeClock, address: str) -> None:
    """Of eight that take over from a dead session at the same moment one does, with what it had claimed; the others
    are superseded. Five times."""
    chains = [f"chain-{n}" for n in range(5)]
    for chain in chains:
        fence = open_session(ledger, chain, "dead").fence
        ledger.add_items(chain, [item("a")])
        claim(ledger, fence)
    clock.advance(LEASE)
    ledgers = [make_ledger(address) for _ in range(RACERS)]
    barrier = Barrier(RACERS)

    def race(number: int) -> list[str]:
        won = []
        for chain in chains:
            barrier.wait(60)
            try:
                open_session(ledgers[number], chain, f"racer-{number}")
            except Superseded:
                continue
            won.append(chain)
        return won

    with ThreadPoolExecutor(RACERS) as threads:
        won = [chain for chains_won in threads.map(race, range(RACERS)) for chain in chains_won]

    assert sorted(won) == chains
    for chain in chains:
        assert (ledger.chain(chain).epoch, item_in(ledger, "a", chain).status) == (2, ItemStatus.AVAILABLE)


@proves("leader-election")
def test_supervisors_need_no_leader(
    make_ledger: LedgerFactory, ledger: SqlLedger, clock: FakeClock, address: str
) -> None:
    """A supervisor that dies between creating a follow-on and ticking it off, and eight others that come by at once
    after it: there is one flow run."""
    opened = open_session(ledger)
    close(ledger, opened.fence, follow_on=follow_on_in_memory(opened.chain.uid, opened.fence))
    runs, barrier = MemoryRuns(), Barrier(RACERS)
    ledgers = [make_ledger(address) for _ in range(RACERS)]

    def die(point: str) -> None:
        if point == "follow_on.created":
            raise Killed

    def supervise(number: int) -> None:
        barrier.wait(60)
        create_follow_ons(ledgers[number], runs)

    faults.install(die)
    with pytest.raises(Killed):
        create_follow_ons(ledger, runs)
    faults.install(None)
    assert len(ledger.pending_follow_ons()) == 1
    with ThreadPoolExecutor(RACERS) as threads:
        list(threads.map(supervise, range(RACERS)))

    assert [follow_on.ordinal for follow_on in runs.created.values()] == [2]
    assert ledger.pending_follow_ons() == []
