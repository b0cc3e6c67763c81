"""Sessions from start to end: with the real ledger in an SQLite file, units run in this thread, and a clock of ours."""

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_rig import Rig, tokens
from sqlalchemy import update
from support import (
    KINDS,
    LEASE,
    FakeClock,
    LedgerFactory,
    MemoryRuns,
    commit_unit,
    item_in,
    one_line,
    open_session,
    status_of,
    wait_for,
)

import perpetual_blocks
from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.clock import isoformat, show_time
from perpetual_blocks.errors import (
    DamagedDocument,
    Fenced,
    InvalidInput,
    LedgerUnavailable,
    RunsUnavailable,
    StorageError,
    Superseded,
)
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.session import steps
from perpetual_blocks.session.account import learned
from perpetual_blocks.session.batch import Batch
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.session.continuation import BACK_OFF_SECONDS
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.follow_on import create_follow_ons, move_follow_ons
from perpetual_blocks.session.heartbeat import Heartbeat
from perpetual_blocks.session.ledger import Fence, FollowOn, Reserve
from perpetual_blocks.session.ports import Units
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.telemetry import (
    BudgetRead,
    BudgetWarned,
    ItemsAdded,
    SessionEnded,
    SessionStarted,
    StepEnded,
    StepFailed,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)
from perpetual_blocks.testing import LocalUnits, MemoryDocuments, ScriptedMeter
from perpetual_blocks.usage import define_resource
from perpetual_blocks.work import ItemStatus, Outcome, Unit, WorkItem


class Reader(PerpetualAgent):
    """Reads documents, each in as many units as it has pages."""

    documents: int = 4
    pages: int = 1
    tokens: float = 100

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"doc-{n}") for n in range(self.documents)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=self.tokens)
        unit.context["read"] = [*unit.context.get("read", []), f"{unit.id} p{unit.number}"]
        if unit.number < self.pages:
            return unit.advance(
                cursor={"page": unit.number},
                progress=(unit.number, self.pages),
                next_action=f"read page {unit.number + 1}",
            )
        return {"document": unit.id, "pages": unit.number}


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(make_ledger: LedgerFactory, clock: FakeClock) -> MakeRig:
    """Makes a chain of an agent, in a file of the test's folder."""

    def make(agent: PerpetualAgent, **parts: Any) -> Rig:
        return Rig(parts.pop("ledger", None) or make_ledger(), clock, agent, **parts)

    return make


# Whole chains ---------------------------------------------------------------------------------------------------------


def test_a_chain_runs_to_its_end_over_several_sessions(make_rig: MakeRig) -> None:
    """Each session stops before its budget is gone, saves, hands over, and the next goes on from there to the end."""
    rig = make_rig(Reader(documents=10))

    ends = rig.run_chain(tokens(450))

    assert [(end.ordinal, end.state, end.reason.code) for end in ends] == [
        (1, SessionState.WRAPPED, "budget:tokens"),
        (2, SessionState.WRAPPED, "budget:tokens"),
        (3, SessionState.FINISHED, "queue-empty"),
    ]
    sessions = rig.ledger.sessions("mine")
    assert [session.units for session in sessions] == [4, 4, 2]
    assert [session.usage["tokens"] for session in sessions] == [400, 400, 200]
    assert [session.verified for session in sessions] == [None, (6, 6), (6, 6)]
    assert all(session.graceful for session in sessions)
    chain = rig.ledger.chain("mine")
    assert (chain.status, chain.reason) == (ChainStatus.FINISHED, "every item is done")
    assert chain.context["read"] == [f"doc-{n} p1" for n in range(10)]
    assert set(status_of(rig.ledger).values()) == {ItemStatus.COMPLETED}
    assert len(rig.runner.ran) == len(set(rig.runner.ran)) == 10
    assert [follow_on.ordinal for follow_on in rig.runs.created.values()] == [2, 3]
    assert rig.ledger.pending_follow_ons() == []
    assert [len(rig.ledger.documents("mine", kind)) for kind in ("checkpoint", "handoff")] == [3, 3]


def test_the_handoff_tells_the_next_session(make_rig: MakeRig) -> None:
    """A session's handoff and checkpoint say what was done, why it stopped and what comes next."""
    rig = make_rig(Reader(documents=2, pages=3))
    rig.run(tokens(220))

    handoff = rig.document("handoff", 1)
    assert "# mine · session 1 · Wrapped" in handoff
    assert "**0 of 2 items done.** Session 2 goes on from here." in handoff
    assert "*Why it stopped:* 200 tokens of 220 tokens a session (91%) reached the 85% threshold." in handoff
    assert "- `doc-0` (2 of 3): read page 3" in handoff
    assert "*Outlook:* about 1 more session in 3.0 s, 200 tokens more." in handoff
    backup, copy = rig.saved_work.backups.values()
    assert backup == rig.document("checkpoint", 1)
    assert '"next_action":"read page 3"' in backup
    assert copy == handoff


def test_the_published_handoff_has_neighbours_and_a_picture(make_rig: MakeRig) -> None:
    """The run that goes on is known when it is published; the stored document, which agents read, has no picture."""
    rig = make_rig(Reader(documents=10))
    rig.run_chain(tokens(450))

    shown = {ordinal: page.partition("<details>")[0] for ordinal, page in rig.saved_work.published.items()}
    links = {ordinal: re.findall(r"\]\(../../runs/flow-run/([^)]*)\)", page) for ordinal, page in shown.items()}
    assert links == {
        1: ["run-1", "run-mine-2"],
        2: ["run-1", "run-2", "run-mine-3"],
        3: ["run-2", "run-3"],
    }
    assert ["](data:image/svg+xml;base64," in shown[ordinal] for ordinal in (1, 2, 3)] == [False, True, True]
    assert rig.saved_work.told[2] == f"Session 2 wrapped, 8 of 10 done: {rig.ledger.sessions('mine')[1].stop_message}"
    for ordinal, page in shown.items():
        stored = rig.document("handoff", ordinal).partition("<details>")[0]
        # Of a run that was created ahead, the stored one knows, too.
        without_next = [re.sub(r"\[session \d →\][^·]*· ", "", text) for text in (stored, page)]
        assert without_next[0] == re.sub(r"!\[.*\n\n", "", without_next[1])


def test_moments_are_told_in_order(make_rig: MakeRig) -> None:
    """Whoever observes a chain is told of each thing that happened, when it had happened."""
    rig = make_rig(Reader(documents=2))

    rig.run_chain(tokens(130, threshold=0.8))

    assert [moment for moment in rig.moments if not isinstance(moment, BudgetRead | StepEnded)] == [
        SessionStarted("mine", 1, took_over=False, notes=()),
        ItemsAdded("mine", 2),
        UnitCompleted("mine", "doc-0", 1, True, None, {"tokens": 100.0, "seconds": 1.0}),
        BudgetWarned("mine", "tokens", "100 tokens of 130 tokens a session (77%); the end is near"),
        UnitCompleted("mine", "doc-1", 1, True, None, {"tokens": 100.0, "seconds": 1.0}),
        SessionEnded(
            "mine",
            1,
            "Finished",
            "every item is done",
            code="queue-empty",
            seconds=2.0,
            units=2,
            usage={"tokens": 200.0, "seconds": 2.0},
            items={**dict.fromkeys(ItemStatus, 0), "completed": 2},
            status="finished",
        ),
    ]
    levels = [
        (level.limit, level.scope, level.used, level.amount) for told in rig.told(BudgetRead) for level in told.levels
    ]
    assert levels[0] == ("tokens", "session", 0.0, 130.0)
    assert levels[-1] == ("tokens", "session", 200.0, 130.0)
    steps = [(ended.step, ended.error) for ended in rig.told(StepEnded)]
    assert ("save_state", None) in steps
    assert steps[-1] == ("cleanup", None)


def test_a_follow_on_says_how_long_its_chain_has_waited_for_it(make_rig: MakeRig) -> None:
    """From the end of the session before; what the chain itself waits for is no gap, and a new chain has none."""
    rig = make_rig(Reader(documents=3))
    rig.run(tokens(130))
    rig.clock.advance(7)

    rig.run(tokens(130), invited=list(rig.runs.created)[-1])

    assert [(started.gap, started.after_crash) for started in rig.told(SessionStarted)] == [(None, False), (7.0, False)]


@settings(max_examples=20)
@given(
    documents=st.integers(0, 5),
    pages=st.integers(1, 2),
    spent=st.integers(0, 120),
    amount=st.integers(50, 400),
    threshold=st.sampled_from([0.3, 0.85, 1.0]),
)
def test_every_chain_comes_to_its_end(documents: int, pages: int, spent: int, amount: int, threshold: float) -> None:
    """Whatever the budget, the chain finishes; each unit runs once, is counted once, and its result is there."""
    ledger, clock = SqlLedger("sqlite://"), FakeClock()
    rig = Rig(ledger, clock, Reader(documents=documents, pages=pages, tokens=spent))

    ends = rig.run_chain(tokens(amount, threshold), most=documents * pages + 2)

    units = documents * pages
    assert ends[-1].state is SessionState.FINISHED
    assert sum(session.units for session in ledger.sessions("mine")) == units
    assert len(rig.runner.ran) == len(set(rig.runner.ran)) == units
    assert chain_usage(ledger.sessions("mine")).get("tokens", 0) == spent * units
    assert len(ledger.chain("mine").context.get("read", [])) == units
    for session in ledger.sessions("mine"):
        assert session.usage.get("tokens", 0) < max(amount * threshold, 1) + spent, "it stopped at its threshold"
    for item in ledger.items("mine"):
        assert item.result_key in rig.runner.documents.content
    ledger.close()


def test_a_finished_chain_goes_on_with_new_work(make_rig: MakeRig) -> None:
    """Starting a finished chain asks for the plan again and works on what is new in it, and on nothing else."""
    rig = make_rig(Reader(documents=2))
    rig.run_chain()
    rig.agent.documents = 3  # type: ignore[attr-defined]

    end = rig.run()

    assert (end.state, end.ordinal) == (SessionState.FINISHED, 2)
    assert rig.told(ItemsAdded) == [ItemsAdded("mine", 2), ItemsAdded("mine", 1)]
    assert [re.sub(r".*/units/", "", key) for key in rig.runner.ran] == ["doc-0/1", "doc-1/1", "doc-2/1"]


# Why a session stops --------------------------------------------------------------------------------------------------


def test_nothing_to_do(make_rig: MakeRig) -> None:
    """A plan without items is a finished chain, and there is no follow-on."""
    rig = make_rig(Reader(documents=0))

    end = rig.run()

    assert (end.state, end.reason.code) == (SessionState.FINISHED, "queue-empty")
    assert rig.runs.created == {}


class Estimated(Reader):
    """Reads documents that cost what they were estimated at."""

    costs: dict[str, float]

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=name, estimate={"tokens": cost}) for name, cost in self.costs.items()]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=self.costs[unit.id])


class Bounded(Estimated):
    """Reads documents that cannot cost more than was said of them."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=name, bound={"tokens": cost}) for name, cost in self.costs.items()]


def test_nothing_fits(make_rig: MakeRig) -> None:
    """What does not fit into what is left is passed over for what does; when nothing fits the session stops there."""
    rig = make_rig(Estimated(costs={"a": 60, "large": 60, "larger": 70, "small": 30}))

    first, second, third = rig.run_chain(tokens(100, threshold=0.95))

    assert (first.state, first.reason.code) == (SessionState.WRAPPED, "nothing-fits")
    assert first.reason.message == (
        "large does not fit into what is left "
        "(needs 60 tokens; 10 tokens left of 100 tokens a session), nor do 1 others"
    )
    assert (second.reason.code, third.state) == ("nothing-fits", SessionState.FINISHED)
    ran = [re.sub(r".*/units/", "", key) for key in rig.runner.ran]
    assert ran == ["a/1", "small/1", "large/1", "larger/1"]
    assert [session.usage["tokens"] for session in rig.ledger.sessions("mine")] == [90, 60, 70]


def test_the_first_unit_always_runs(make_rig: MakeRig) -> None:
    """A fresh session is all the room that there will ever be: an item of a whole budget runs first, and alone."""
    rig = make_rig(Estimated(costs={"a": 100, "b": 100}))

    ends = rig.run_chain(tokens(100))

    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.FINISHED]
    assert [session.units for session in rig.ledger.sessions("mine")] == [1, 1]


class SlowPlan(Reader):
    """Takes longer to plan than a session may last."""

    def plan(self) -> Iterable[WorkItem]:
        self._clock.advance(100)
        return super().plan()

    def __init__(self, clock: FakeClock, **fields: Any) -> None:
        super().__init__(**fields)
        self._clock = clock


def test_a_session_that_begins_over_its_budget_makes_progress(make_rig: MakeRig, clock: FakeClock) -> None:
    """A budget that is gone before the first unit lets one unit run, with a warning; the next is fresh."""
    rig = make_rig(SlowPlan(clock, documents=3))

    first, second = rig.run_chain(Budget(seconds=30))

    assert (first.state, first.reason.code) == (SessionState.WRAPPED, "budget:seconds")
    assert second.state is SessionState.FINISHED
    assert [session.units for session in rig.ledger.sessions("mine")] == [1, 2]
    assert [(warned.resource, warned.chain) for warned in rig.told(BudgetWarned)] == [("seconds", "mine")]


def test_a_total_that_is_gone_ends_the_chain(make_rig: MakeRig) -> None:
    """It does not go on by itself; with a larger budget, a person's next run does."""
    rig = make_rig(Bounded(costs={"a": 60, "b": 60, "c": 60}))
    total = Limit("tokens", 130, scope="total")

    ends = rig.run_chain(Budget(total, tokens=70))

    assert [(end.state, end.reason.code) for end in ends] == [
        (SessionState.WRAPPED, "budget:tokens"),
        (SessionState.EXHAUSTED, "exhausted:tokens"),
    ]
    assert rig.ledger.chain("mine").status is ChainStatus.EXHAUSTED
    assert ends[-1].reason.message == "needs 60 tokens; 10 tokens left of 130 tokens in all"
    assert "raise the total limit of tokens" in rig.document("handoff", 2)
    assert rig.run(Budget(tokens=70)).state is SessionState.FINISHED
    assert chain_usage(rig.ledger.sessions("mine"))["tokens"] == 180


def test_a_window_is_waited_for(make_rig: MakeRig, clock: FakeClock) -> None:
    """The follow-on is scheduled for the moment when the next unit fits, plus a little that differs between chains;
    what earlier sessions spent in the window counts."""
    rig = make_rig(Bounded(costs={"a": 60, "b": 30, "c": 60}))
    budget = Budget(Limit("tokens", 100, scope="window", window="1h"))
    began = clock.now()

    first = rig.run(budget)

    assert (first.state, first.reason.code) == (SessionState.WRAPPED, "budget:tokens")
    (follow_on,) = rig.runs.created.values()
    chain = rig.ledger.chain("mine")
    assert follow_on.not_before == chain.resume_at == first.reason.resume_at
    assert began + 3600 <= chain.resume_at < began + 3600 + 60 + 5, "when what `a` spent is forgotten"
    assert "60 tokens; 10 tokens left of 100 tokens in 1h" in chain.reason
    assert f"Session 2 goes on at {show_time(isoformat(chain.resume_at) or '')}" in rig.document("handoff", 1)
    too_early = rig.run(budget, invited=follow_on.idempotency_key)
    assert (too_early.state, rig.ledger.sessions("mine")[1].units) == (SessionState.WRAPPED, 0)
    clock.advance(3600)
    assert rig.run(budget, invited=list(rig.runs.created)[-1]).state is SessionState.FINISHED
    assert len(rig.runner.ran) == 3


def test_a_follow_on_starts_earlier_when_the_budget_is_raised(make_rig: MakeRig, clock: FakeClock) -> None:
    """A follow-on that waits for a window is moved when there is room before that, and only then."""
    rig = make_rig(Bounded(costs={"a": 60, "b": 60}))
    rig.run(Budget(Limit("tokens", 100, scope="window", window="5h")))
    assert move_follow_ons(rig.ledger, rig.runs, clock) == 0

    with rig.ledger._writing() as connection:  # as a person's next run of the chain would
        raised = Budget(Limit("tokens", 200, scope="window", window="5h")).to_json()
        connection.execute(update(schema.chains).values(settings={"kinds": list(KINDS), "budget": raised}))

    assert move_follow_ons(rig.ledger, rig.runs, clock) == 1
    assert rig.runs.moved == {"run-mine-2": clock.now()}
    assert rig.ledger.chain("mine").resume_at == clock.now()


def test_what_can_never_fit_does_not_loop(make_rig: MakeRig) -> None:
    """An item that a machine has too little memory for stalls its chain, and says so; it does not start for ever."""

    class Large(Reader):
        """Declares more memory than the container has."""

        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id="large", bound={"memory": 90})]

    class Small(ScriptedMeter):
        """A container of 50 bytes."""

        def capacity(self) -> float | None:
            return 50

    end = make_rig(Large()).run(Budget(memory=100), meters={"memory": Small(10)})

    assert (end.state, end.reason.code) == (SessionState.STALLED, "too-large")
    assert end.reason.message == "large does not fit into a fresh session (needs 90 B; 40 B left of 50 B a session)"


class Long(Reader):
    """Has one document that uses up whatever it is given."""

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-1":
            unit.spend(tokens=unit.remaining["tokens"])
        unit.reserve(tokens=self.tokens)
        return super().work_unit(unit)


def test_a_unit_is_cut_off_before_the_budget_is_overrun(make_rig: MakeRig) -> None:
    """A unit without room gives its item back, with what it spent counted, and the session ends in order; one that had
    a whole session twice is given up with the reason, and the chain goes on without it."""
    rig = make_rig(Long(documents=3))

    ends = rig.run_chain(tokens(450, threshold=1.0))

    assert [end.state for end in ends] == [SessionState.WRAPPED] * 3 + [SessionState.FINISHED]
    assert all(session.usage["tokens"] <= 450 for session in rig.ledger.sessions("mine"))
    given_up = next(item for item in rig.ledger.items("mine") if item.id == "doc-1")
    assert (given_up.status, given_up.attempts) == (ItemStatus.DISCARDED, 0)
    assert given_up.error == (
        "it had a whole session 2 times and could not finish: doc-1: unit 1 needs 100 tokens; 0 tokens left"
    )
    assert [told.discarded for told in rig.told(UnitCutOff)] == [False, False, True]
    assert rig.ledger.counts("mine")[ItemStatus.COMPLETED] == 2


def test_agents_share_a_pool(make_rig: MakeRig, clock: FakeClock) -> None:
    """What one chain has spent of a pool is gone for the other; neither goes over it, and both wait for the window."""
    shared = Limit("tokens", 500, scope="window", window="1h", pool="team")
    one = make_rig(Bounded(costs=dict.fromkeys("abc", 100.0)), chain="one")
    other = make_rig(Bounded(costs=dict.fromkeys("defg", 100.0)), chain="other", ledger=one.ledger)

    began = clock.now()
    assert one.run(Budget(shared)).state is SessionState.FINISHED
    end = other.run(Budget(shared))

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "budget:tokens")
    assert end.reason.resume_at is not None
    assert end.reason.resume_at >= began + 3600
    assert one.ledger.sessions("other")[0].units == 2
    assert one.ledger.sessions("other")[0].limits[0]["used"] == 500
    clock.advance(3700)
    assert other.run(Budget(shared), invited=list(other.runs.created)[-1]).state is SessionState.FINISHED


def test_a_session_waits_for_what_others_have_reserved(
    make_rig: MakeRig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that is all reserved is not used up: the session waits for the others, and goes on when they are done."""
    shared = Limit("tokens", 100, scope="total", pool="team")
    rig = make_rig(Bounded(costs={"a": 60}), chain="waits")
    settings = {"kinds": list(KINDS), "budget": Budget(shared).to_json()}
    other = open_session(rig.ledger, "other", "other", flow_run_id="other", settings=settings).fence
    rig.ledger.add_items("other", [WorkItem(id="x")])
    item = rig.ledger.claim(other, lambda item: None, lambda item: [Reserve(shared, 90)]).item
    assert item is not None
    done = Outcome(done=True, usage={"tokens": 40.0})
    waits: list[float] = []

    def settle_at_the_third(event: Event, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            commit_unit(rig.ledger, other, item, done, "key", {"tokens": 40.0})
        return event.is_set()

    monkeypatch.setattr(clock, "wait", settle_at_the_third)

    end = rig.run(Budget(shared))

    assert len(waits) == 3
    assert (end.state, rig.ledger.sessions("waits")[0].units) == (SessionState.FINISHED, 1)


def test_a_unit_reserves_more_of_a_pool_while_it_runs(make_rig: MakeRig) -> None:
    """What it was granted at first is a guess; it asks for more, and is cut off where the pool has no more."""
    rooms = []

    class Asks(Reader):
        """Asks for more and more."""

        def work_unit(self, unit: Unit) -> Any:
            rooms.append(unit.remaining["tokens"])
            for _ in range(9):
                unit.reserve(tokens=100)
                unit.spend(tokens=100)

    end = make_rig(Asks(documents=1)).run(Budget(Limit("tokens", 500, scope="total", pool="team")))

    assert rooms == [50]
    assert (end.reason.code, end.state) == ("exhausted:tokens", SessionState.EXHAUSTED)
    assert "needs 100 tokens; 0 tokens left" in end.reason.message


def test_the_rung_of_the_ladder_is_told(make_rig: MakeRig) -> None:
    """A unit learns how far the budget is used, by names of its agent's; each choice is recorded with its reason."""
    rungs = []

    class Climbs(Reader):
        """Notes its rung."""

        ladder: ClassVar = {0.5: "smaller", 0.75: "cheaper"}

        def work_unit(self, unit: Unit) -> Any:
            rungs.append(unit.rung)
            return super().work_unit(unit)

    rig = make_rig(Climbs(documents=4))
    rig.run(tokens(400, threshold=1.0))

    assert rungs == [None, None, "smaller", "cheaper"]
    assert rig.ledger.sessions("mine")[0].choices == [
        "rung 'smaller': 200 tokens of 400 tokens a session (50%)",
        "rung 'cheaper': 300 tokens of 400 tokens a session (75%)",
    ]
    assert "- rung 'smaller': 200 tokens of 400 tokens a session (50%)" in rig.document("handoff", 1)


def test_a_follow_on_has_learned(make_rig: MakeRig, clock: FakeClock) -> None:
    """What a session learned is with the next one, also when its process died before it could save that; then from the
    units that it had committed."""
    rig = make_rig(Reader(documents=8))
    rig.run(tokens(200, threshold=1.0))
    saved = learned(rig.ledger, rig.ledger.chain("mine"))["tokens"]
    assert saved.constant.scores.samples() == [100.0, 100.0]

    class Dies(LocalUnits):
        """Dies at the second unit."""

        def run(self, units: Units) -> None:
            if len(self.ran) == 1:
                raise KeyboardInterrupt
            super().run(units)

    rig.runner = Dies(rig.agent, MemoryDocuments(), rig.clock)
    with pytest.raises(KeyboardInterrupt):
        rig.run(tokens(900), invited=list(rig.runs.created)[-1])
    assert learned(rig.ledger, rig.ledger.chain("mine"))["tokens"].constant.scores.samples() == [100.0] * 3


def test_what_was_foretold_is_compared_in_the_handoff(make_rig: MakeRig) -> None:
    """A handoff compares forecasts with what units used, over all sessions so far; its metrics count its own end."""
    rig = make_rig(Reader(documents=9))
    rig.run(tokens(300, threshold=1.0))
    rig.run(tokens(300, threshold=1.0), invited=list(rig.runs.created)[-1])

    # Nothing was known of the first unit; of the six that were finished, five were foretold.
    assert "| tokens | default | 5 | 500 tokens | 500 tokens | 1.00 | 100% |" in rig.document("handoff", 2)
    assert '"graceful_shutdowns": 1.0' in rig.document("handoff", 1)
    assert '"resource_efficiency": 1.0' in rig.document("handoff", 1)


def test_a_context_that_grows_is_told(make_rig: MakeRig) -> None:
    """The handoff and the status advise against a context that keeps whatever was read."""

    class Hoarder(Reader):
        """Keeps everything."""

        def work_unit(self, unit: Unit) -> Any:
            unit.context["kept"] = unit.context.get("kept", "") + 5000 * "x"
            return super().work_unit(unit)

    rig = make_rig(Hoarder(documents=6))
    rig.run_chain(tokens(100, threshold=1.0))

    (grown,) = chain_status(rig.ledger, "mine")["advice"]
    assert grown.startswith("The checkpoint grew from ")
    assert "## Advice" not in rig.document("handoff", 4)
    assert f"- {grown}" in rig.document("handoff", 6)


def test_a_resume_costs_what_its_first_unit_used_beyond_others(make_rig: MakeRig, clock: FakeClock) -> None:
    """An agent that reads its notes in again when it starts shows it in what a resume costs."""

    class Rereads(Reader):
        """Its first unit of each session costs more."""

        def work_unit(self, unit: Unit) -> Any:
            session, said = len(rig.ledger.sessions("mine")), super().work_unit(unit)
            if session != unit.context.get("session", 1):
                unit.context["session"] = session
                unit.spend(tokens=300)
            return said

    rig = make_rig(Rereads(documents=6))
    rig.run(tokens(300, threshold=1.0))
    rig.run(tokens(600, threshold=1.0), invited=list(rig.runs.created)[-1])

    assert chain_status(rig.ledger, "mine")["resume"] == {"seconds": 0.0, "tokens": 400 - 900 / 6}


def test_a_gauge_stops_the_session(make_rig: MakeRig) -> None:
    """A level that reaches its threshold stops the session before its next unit."""
    meter = ScriptedMeter(10)

    class Hungry(Reader):
        """Takes more memory with each document."""

        def work_unit(self, unit: Unit) -> Any:
            meter.now += 30

    rig = make_rig(Hungry(documents=9))

    end = rig.run(Budget(memory=Limit("memory", 100, threshold=0.85)), meters={"memory": meter})

    assert (end.reason.code, rig.ledger.sessions("mine")[0].units) == ("budget:memory", 3)
    assert rig.ledger.sessions("mine")[0].limits == [
        {"name": "memory", "resource": "memory", "used": 100, "amount": 100.0, "reserve": 0.0}
    ]


def test_a_gauge_without_a_meter_is_refused(make_rig: MakeRig) -> None:
    """A budget of what nobody reads is found before the session begins."""
    rig = make_rig(Reader())

    with pytest.raises(InvalidInput) as refused:
        rig.run(Budget(cpu_seconds=10))

    one_line(refused.value, "Budget.cpu_seconds", "expected a meter")


def test_resources_of_your_own_stop_the_session(make_rig: MakeRig) -> None:
    """A counter that units report, and a gauge with a meter, are counted, forecast and shown as ours are."""
    define_resource("pages", "counter", "pages")
    define_resource("gpu_memory", "gauge", "bytes")
    meter = ScriptedMeter(0, capacity=2**30)

    class Renders(Reader):
        """Renders pages, and leaves some of each on the card."""

        def work_unit(self, unit: Unit) -> Any:
            unit.spend(pages=self.pages)
            meter.now += 2**27

    def ends(**budget: Any) -> tuple[str, str]:
        meter.now = 0
        rig = make_rig(Renders(pages=10, documents=30), chain="-".join(budget))
        end = rig.run(Budget(**budget), meters={"gpu_memory": meter})
        return end.reason.code, end.reason.message

    code, message = ends(pages=95)
    assert (code, "pages left of 95 pages a session" in message) == ("budget:pages", True)
    code, message = ends(gpu_memory="2GiB")
    assert (code, "left of 1.0 GiB a session" in message) == ("budget:gpu_memory", True)


def test_cpu_seconds_are_forecast(make_rig: MakeRig) -> None:
    """A level that only grows: a unit's cost is what it adds, and the last that would not fit is left for later."""
    meter = ScriptedMeter(5)

    class Busy(Reader):
        """Uses ten seconds for each document."""

        def work_unit(self, unit: Unit) -> Any:
            meter.now += 10

    rig = make_rig(Busy(documents=20))

    end = rig.run(Budget(cpu_seconds=102), meters={"cpu_seconds": meter})

    assert end.reason.code == "budget:cpu_seconds"
    assert re.search(r"left of 1 min 42 s of CPU a session; a unit takes about \d+ s of CPU", end.reason.message)
    assert 5 <= rig.ledger.sessions("mine")[0].units <= 9


class Chained(Reader):
    """The second document needs the first, which cannot be read."""

    def plan(self) -> Iterable[WorkItem]:
        yield WorkItem(id="broken", max_attempts=2)
        yield WorkItem(id="waits", depends_on=("broken",))
        yield WorkItem(id="waits too", depends_on=("waits",))

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=10)
        raise ValueError(f"cannot read {unit.id}, attempt {unit.attempt}")


def test_a_chain_whose_items_wait_for_a_dead_letter_is_stalled(make_rig: MakeRig) -> None:
    """When all that is left waits for what was discarded the chain stops, says so, and creates no follow-on."""
    rig = make_rig(Chained())

    end = rig.run()

    assert (end.state, end.reason.code) == (SessionState.STALLED, "blocked")
    assert rig.ledger.chain("mine").status is ChainStatus.STALLED
    assert status_of(rig.ledger) == {
        "broken": ItemStatus.DISCARDED,
        "waits": ItemStatus.BLOCKED,
        "waits too": ItemStatus.BLOCKED,
    }
    assert item_in(rig.ledger, "broken").error == "ValueError: cannot read broken, attempt 2"
    told = "- `broken`: failed 2 times (session 1), 20 tokens spent in vain: ValueError: cannot read broken, attempt 2"
    assert told in rig.document("handoff", 1)
    assert rig.runs.created == {}


class Asking(Reader):
    """Asks its own session to stop while it reads the second document."""

    code: str

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-1":
            self._stop.ask(StopReason(self.code, "the process was asked to end"))
            self._stop.ask(StopReason("asked", "too late: the first reason wins"))
        return super().work_unit(unit)

    def __init__(self, stop: StopRequest, **fields: Any) -> None:
        super().__init__(**fields)
        self._stop = stop


def test_a_signal_stops_between_units(make_rig: MakeRig) -> None:
    """The unit that runs when the signal comes is finished and committed, and the session ends in order after it."""
    stop = StopRequest()
    rig = make_rig(Asking(stop, code="signal"))

    end = rig.run(stop=stop)

    assert (end.state, end.reason) == (
        SessionState.WRAPPED,
        StopReason("signal", "the process was asked to end"),
    )
    assert rig.ledger.sessions("mine")[0].units == 2
    assert rig.ledger.counts("mine")[ItemStatus.AVAILABLE] == 2
    assert [follow_on.ordinal for follow_on in rig.runs.created.values()] == [2]
    assert rig.run().state is SessionState.FINISHED


class Surprised(Reader):
    """Is at work in the second document when a signal comes: its process will be killed in thirty seconds."""

    documents: int = 3

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-1" and self._signals:
            unit.spend(tokens=30)
            self._stop.ask(self._signals.pop(), by=self._clock.monotonic() + 30)
            self._stop.ask(StopReason("signal", "a second signal"), by=self._clock.monotonic() + 60)
            self.ended.wait()
            if self.is_cut_off:
                raise RuntimeError("whatever it makes of it")
        return super().work_unit(unit)

    def __init__(self, stop: StopRequest, clock: FakeClock, **fields: Any) -> None:
        super().__init__(**fields)
        self._stop, self._clock = stop, clock
        self._signals = [StopReason("signal", "the process was asked to end")]
        self._ended = Event()
        self._cut_off = False

    @property
    def ended(self) -> Event:
        """Set when the unit is to go on."""
        return self._ended

    @property
    def is_cut_off(self) -> bool:
        return self._cut_off

    def cut_off(self) -> bool:
        """What a runner of units that can be interrupted does."""
        self._cut_off = True
        self._ended.set()
        return True


class WaitingClock(FakeClock):
    """Lets the time pass until an agent's unit is to end, and waits for that then."""

    agent: Surprised

    def wait(self, event: Event, seconds: float) -> bool:
        return event.wait(30) if self.agent.ended.is_set() else super().wait(event, seconds)


def test_a_unit_that_does_not_end_before_the_process_is_left_behind(make_rig: MakeRig, clock: FakeClock) -> None:
    """The session ends in order without it; no attempt is counted, and what it still finishes is not done again."""
    stop = StopRequest()
    agent = Surprised(stop, clock)
    rig = make_rig(agent)

    end = rig.run(stop=stop)

    assert (end.state, end.reason) == (SessionState.WRAPPED, StopReason("signal", "the process was asked to end"))
    (session,) = rig.ledger.sessions("mine")
    assert (session.graceful, session.units, [step for step in session.steps if not step["ok"]]) == (True, 1, [])
    given_back = item_in(rig.ledger, "doc-1")
    assert (given_back.status, given_back.attempts, given_back.failures, given_back.interruptions) == (
        ItemStatus.AVAILABLE, 0, 0, 1
    )  # fmt: skip
    (told,) = rig.told(UnitCutOff)
    assert (told.item, told.discarded) == ("doc-1", False)
    assert "session 1 · Wrapped" in rig.document("handoff", 1)
    assert list(rig.runs.created)

    agent.ended.set()  # it is done before the process is killed after all
    wait_for(lambda: len(rig.runner.documents.content) == 2)

    assert rig.run().state is SessionState.FINISHED
    assert len(rig.runner.ran) == len(set(rig.runner.ran)) == 3


def test_a_unit_that_can_be_interrupted_is_given_back_with_what_it_spent(
    make_rig: MakeRig, make_ledger: LedgerFactory
) -> None:
    """Whatever it makes of the interruption is no failure: no attempt is counted, and it is not taken for hopeless."""
    stop, clock = StopRequest(), WaitingClock()
    clock.agent = agent = Surprised(stop, clock)
    rig = Rig(make_ledger(clock=clock), clock, agent)
    rig.runner.interrupt = agent.cut_off  # type: ignore[method-assign]

    end = rig.run(stop=stop)

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "signal")
    given_back = item_in(rig.ledger, "doc-1")
    assert (given_back.status, given_back.attempts, given_back.cut_offs, given_back.interruptions) == (
        ItemStatus.AVAILABLE, 0, 0, 1
    )  # fmt: skip
    (session,) = rig.ledger.sessions("mine")
    assert session.usage["tokens"] == 130
    assert [told.item for told in rig.told(UnitCutOff)] == ["doc-1"]
    assert rig.run().state is SessionState.FINISHED


class Slow(Reader):
    """Has hooks that take their time."""

    seconds: float

    def finish_unit(self) -> None:
        self._stop.ask(StopReason("signal", "too late to be the reason"), by=self._clock.monotonic() + 12)
        self._clock.advance(self.seconds)

    def __init__(self, stop: StopRequest, clock: FakeClock, **fields: Any) -> None:
        super().__init__(**fields)
        self._stop, self._clock = stop, clock


def test_a_shutdown_without_time_still_closes_the_session(make_rig: MakeRig, clock: FakeClock) -> None:
    """A signal in the middle of the shutdown: what does not fit is skipped and recorded; the session is closed, its
    follow-on is created, and the next session writes what is missing."""
    stop = StopRequest()
    rig = make_rig(Slow(stop, clock, documents=3, seconds=10))

    end = rig.run(tokens(200), stop=stop)

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "budget:tokens")
    (session,) = rig.ledger.sessions("mine")
    assert session.graceful
    assert [step["step"] for step in session.steps if step.get("skipped")] == [
        "save_state", "backup", "prune", "back_up_ledger", "commit_changes", "create_handoff", "handoff"
    ]  # fmt: skip
    assert rig.documents.content == {}
    assert [follow_on.ordinal for follow_on in rig.runs.created.values()] == [2]
    assert learned(rig.ledger, rig.ledger.chain("mine"))["seconds"].shutdown_cost(0.01) == 0

    assert rig.run(tokens(200), invited=next(iter(rig.runs.created))).state is SessionState.FINISHED
    for kind in ("checkpoint", "handoff"):
        assert [document.ordinal for document in rig.ledger.documents("mine", kind)] == [2, 1]
    handoff = rig.document("handoff", 1)
    assert "session 1 ended without a handoff of its own" in handoff
    assert rig.saved_work.published[1] == handoff
    assert rig.ledger.sessions("mine")[1].verified == (6, 6)


def test_a_follow_on_for_which_there_is_no_time_stays_in_the_outbox(make_rig: MakeRig, clock: FakeClock) -> None:
    """The closing transaction records it, whatever the time is; whoever comes by next creates it."""
    stop = StopRequest()
    rig = make_rig(Slow(stop, clock, documents=3, seconds=12))

    assert rig.run(tokens(200), stop=stop).state is SessionState.WRAPPED

    assert rig.runs.created == {}
    assert [follow_on.ordinal for follow_on in rig.ledger.pending_follow_ons("mine")] == [2]


def test_how_long_a_shutdown_takes_is_learned_without_a_limit_on_time(make_rig: MakeRig, clock: FakeClock) -> None:
    """Whoever ends the process gives it so many seconds, whatever the budget limits."""
    rig = make_rig(Slow(StopRequest(), clock, documents=3, seconds=9))

    rig.run(tokens(200))

    assert learned(rig.ledger, rig.ledger.chain("mine"))["seconds"].shutdown_cost(0.5) >= 9


def test_a_cancelled_session_cancels_its_chain(make_rig: MakeRig) -> None:
    """A person's cancel ends the session in order; there is no follow-on, and nobody else is let in."""
    stop = StopRequest()
    rig = make_rig(Asking(stop, code="cancelled"))

    end = rig.run(stop=stop)

    assert (end.state, rig.ledger.chain("mine").status) == (SessionState.CANCELLED, ChainStatus.CANCELLED)
    assert rig.runs.created == {}
    assert "session 1 · Cancelled" in rig.document("handoff", 1)
    with pytest.raises(Superseded):
        rig.run()


def test_a_cancel_that_comes_during_the_shutdown_cancels_the_chain(make_rig: MakeRig) -> None:
    """A person who cancels a run while its session ends for its budget has cancelled the chain: no follow-on."""
    stop = StopRequest()

    class Cancelled(Reader):
        """Is cancelled while its work is committed."""

        def commit_changes(self) -> Iterable[Path]:
            stop.ask(StopReason("cancelled", "its flow run was cancelled"))
            return []

    rig = make_rig(Cancelled(documents=2))

    end = rig.run(tokens(100), stop=stop)

    assert (end.state, rig.ledger.chain("mine").status) == (SessionState.CANCELLED, ChainStatus.CANCELLED)
    assert rig.runs.created == {}


def test_a_stop_that_was_asked_for_before_the_start(make_rig: MakeRig) -> None:
    """A session that is asked to stop while it starts plans, runs no unit, and hands over."""
    stop = StopRequest()
    stop.ask(StopReason("signal", "the process was asked to end"))
    rig = make_rig(Reader(documents=2))

    end = rig.run(stop=stop)

    assert (end.state, rig.runner.ran) == (SessionState.WRAPPED, [])
    assert rig.ledger.counts("mine")[ItemStatus.AVAILABLE] == 2


# Owning the chain -----------------------------------------------------------------------------------------------------


def test_a_late_follow_on_does_nothing(make_rig: MakeRig) -> None:
    """A flow run whose session somebody else has been ends as superseded, and leaves everything as it is."""
    rig = make_rig(Reader(documents=3))
    first, *_ = rig.run_chain(tokens(150))
    assert first.ordinal == 1
    before = (rig.ledger.chain("mine"), rig.ledger.sessions("mine"), dict(rig.documents.content), list(rig.moments))

    with pytest.raises(Superseded):
        rig.run(invited=next(iter(rig.runs.created)))

    assert (rig.ledger.chain("mine"), rig.ledger.sessions("mine"), rig.documents.content, rig.moments) == before


class Robbed(Reader):
    """Loses its chain while it reads the second document."""

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-1":
            self._rob()
        return super().work_unit(unit)

    def __init__(self, rob: Callable[[], object], **fields: Any) -> None:
        super().__init__(**fields)
        self._rob = rob


def test_a_session_whose_chain_was_taken_over_commits_nothing_more(
    make_rig: MakeRig, make_ledger: LedgerFactory, clock: FakeClock
) -> None:
    """Its last unit is refused, it writes no documents and does not close: all of that is the new owner's."""
    ledger = make_ledger()

    def take_over() -> None:
        clock.advance(LEASE)
        open_session(ledger, "mine", "robber", agent="Robbed")

    rig = make_rig(Robbed(take_over), ledger=ledger)

    with pytest.raises(Fenced) as fenced:
        rig.run()

    one_line(fenced.value, "session 1 of mine")
    lost, robber = ledger.sessions("mine")
    assert (lost.state, lost.units, robber.state) == (SessionState.CRASHED, 1, SessionState.RUNNING)
    found = item_in(ledger, "doc-1")
    assert (found.status, found.units, found.attempts) == (ItemStatus.AVAILABLE, 0, 0)
    assert rig.documents.content == {}
    assert rig.told(SessionEnded) == []


class Beating(SqlLedger):
    """A ledger that says when a heartbeat has come."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.beat = Event()

    def heartbeat(self, fence: Fence) -> None:
        super().heartbeat(fence)
        self.beat.set()


def test_the_lease_is_kept_while_a_unit_runs(tmp_path: Path, clock: FakeClock) -> None:
    """A unit that takes longer than a lease does not lose the chain: the heartbeat moves the lease on."""
    ledger = Beating(str(tmp_path / "ledger.db"), clock=clock, lease_seconds=0.1)
    refused: list[str] = []

    def outlast_the_lease() -> None:
        for _ in range(3):
            clock.advance(0.09)
            ledger.beat.clear()
            assert ledger.beat.wait(30)
        try:
            open_session(ledger, "mine", "second", agent="Robbed")
        except Superseded as error:
            refused.append(str(error))

    rig = Rig(ledger, clock, Robbed(outlast_the_lease))

    assert rig.run().state is SessionState.FINISHED

    assert len(refused) == 1
    ledger.close()


def test_no_lock_is_held_while_the_agent_plans(make_rig: MakeRig, tmp_path: Path) -> None:
    """A plan may take its time: other chains of the same ledger go on working, and so does the heartbeat."""
    locked: list[str] = []

    class Slow(Reader):
        """Looks, while it plans, whether somebody else could write."""

        def plan(self) -> Iterable[WorkItem]:
            yield WorkItem(id="a")
            with closing(sqlite3.connect(tmp_path / "ledger.db", timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                    other.execute("ROLLBACK")
                except sqlite3.OperationalError as error:
                    locked.append(str(error))
            yield WorkItem(id="b")

    rig = make_rig(Slow())

    assert rig.run().state is SessionState.FINISHED

    assert locked == []


# What goes wrong in a unit --------------------------------------------------------------------------------------------


class Failing(Reader):
    """Fails on some documents: on each attempt, or on the first ones."""

    failures: dict[str, int]

    def work_unit(self, unit: Unit) -> Any:
        if unit.attempt <= self.failures.get(unit.id, 0):
            unit.spend(tokens=7)
            unit.context["lost"] = True
            raise ValueError(f"attempt {unit.attempt}")
        return super().work_unit(unit)


def test_failing_units_are_discarded_and_the_others_go_on(make_rig: MakeRig) -> None:
    """A unit that keeps failing uses up its attempts, one that recovers is done, and the rest of the queue is too."""
    rig = make_rig(Failing(documents=4, failures={"doc-0": 99, "doc-2": 2}))

    end = rig.run()

    assert (end.state, end.reason.message) == (SessionState.FINISHED, "every item is done but 1, which was discarded")
    assert status_of(rig.ledger)["doc-0"] is ItemStatus.DISCARDED
    assert rig.ledger.counts("mine")[ItemStatus.COMPLETED] == 3
    assert [(failed.item, failed.attempt) for failed in rig.told(UnitFailed)] == [
        ("doc-0", 1),
        ("doc-2", 1),
        ("doc-0", 2),
        ("doc-2", 2),
        ("doc-0", 3),
    ]
    (session,) = rig.ledger.sessions("mine")
    assert (session.units, session.usage["tokens"]) == (3, 3 * 100 + 5 * 7)
    assert rig.ledger.chain("mine").context == {"read": ["doc-1 p1", "doc-3 p1", "doc-2 p1"]}


def test_an_error_of_any_text_is_counted(make_rig: MakeRig) -> None:
    """An error whose text cannot be stored as it is, as of a file name that is no UTF-8, is a failed attempt too."""

    class Strange(Reader):
        """Cannot read a file of a strange name."""

        def work_unit(self, unit: Unit) -> Any:
            raise ValueError("cannot read \udcff.md\nor so")

    rig = make_rig(Strange(documents=1))

    assert rig.run().state is SessionState.FINISHED

    found = item_in(rig.ledger, "doc-0")
    assert (found.status, found.failures) == (ItemStatus.DISCARDED, 3)
    assert (found.error or "").startswith("ValueError: cannot read ")


def test_failures_spend_the_budget_too(make_rig: MakeRig) -> None:
    """What failed attempts spend counts against the session's budget, so that a broken unit cannot use it up unseen."""
    rig = make_rig(Failing(documents=3, failures={f"doc-{n}": 99 for n in range(3)}))

    end = rig.run(tokens(20))

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "budget:tokens")
    assert rig.ledger.sessions("mine")[0].usage["tokens"] == 21


def test_a_unit_that_adds_a_wrong_item_has_failed(make_rig: MakeRig) -> None:
    """Items that the ledger refuses make their unit a failed one, with what it spent; nothing of it is kept."""

    class Adding(Reader):
        """Adds an item of a kind that it does not know."""

        def work_unit(self, unit: Unit) -> Any:
            if unit.id == "doc-0":
                unit.add(WorkItem(id="fine"), WorkItem(id="wrong", kind="strange"))
            return super().work_unit(unit)

    rig = make_rig(Adding(documents=2))

    end = rig.run()

    assert end.state is SessionState.FINISHED
    assert status_of(rig.ledger) == {"doc-0": ItemStatus.DISCARDED, "doc-1": ItemStatus.COMPLETED}
    assert "WorkItem('wrong').kind" in (item_in(rig.ledger, "doc-0").error or "")
    assert rig.ledger.sessions("mine")[0].usage["tokens"] == 400
    assert rig.ledger.chain("mine").context == {"read": ["doc-1 p1"]}


def test_a_unit_whose_outcome_cannot_be_kept_is_given_back(make_rig: MakeRig) -> None:
    """Where the results storage fails the unit has not failed: the session does, and the item has lost no attempt."""
    rig = make_rig(Reader(documents=2))
    broken = rig.runner.run

    def run(units: Batch) -> None:
        if units.items[0].id == "doc-1":
            raise StorageError("results storage: the disk is full")
        broken(units)

    rig.runner.run = run  # type: ignore[method-assign]

    with pytest.raises(StorageError):
        rig.run()

    found = item_in(rig.ledger, "doc-1")
    assert (found.status, found.attempts, found.interruptions) == (ItemStatus.AVAILABLE, 0, 1)
    (session,) = rig.ledger.sessions("mine")
    assert (session.state, session.stop_message) == (
        SessionState.FAILED,
        "StorageError: results storage: the disk is full",
    )
    assert rig.ledger.chain("mine").status is ChainStatus.WAITING


# What goes wrong around units -----------------------------------------------------------------------------------------


class Unhelpful(Reader):
    """Raises in every hook but those that do the work."""

    def finish_unit(self) -> None:
        raise RuntimeError("in finish_unit")

    def backup(self, checkpoint: str) -> None:
        raise RuntimeError("in backup")

    def commit_changes(self) -> Iterable[Path]:
        raise RuntimeError("in commit_changes")

    def create_handoff(self, handoff: Handoff) -> Handoff:
        raise RuntimeError("in create_handoff")

    def cleanup(self) -> None:
        raise RuntimeError("in cleanup")


HOOKS = ["finish_unit", "backup", "commit_changes", "create_handoff", "cleanup"]


def test_an_agent_whose_hooks_all_raise_still_hands_over(make_rig: MakeRig) -> None:
    """Every step but saving and closing is best effort: what failed is recorded, and the chain goes on."""
    rig = make_rig(Unhelpful(documents=3))

    ends = rig.run_chain(tokens(200))

    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.FINISHED]
    for session in rig.ledger.sessions("mine"):
        assert session.graceful
        failed = {step["step"]: step["error"] for step in session.steps if not step["ok"]}
        assert failed == {hook: f"RuntimeError: in {hook}" for hook in HOOKS if hook != "cleanup"}
        assert "save_state" in [step["step"] for step in session.steps if step["ok"]]
    handoff = rig.document("handoff", 1)
    assert "## Went wrong at the end" in handoff
    for hook in ("finish_unit", "backup", "commit_changes"):
        assert f"- {hook}: RuntimeError: in {hook}" in handoff
    assert [failed.step for failed in rig.told(StepFailed)] == HOOKS * 2


def test_the_agent_may_add_to_the_handoff_and_commit_its_work(make_rig: MakeRig) -> None:
    """What the agent notes is in the handoff; what it names is committed under a message that says of which session."""

    class Helpful(Reader):
        """Notes and commits."""

        def commit_changes(self) -> Iterable[Path]:
            return [Path("notes.md")]

        def create_handoff(self, handoff: Handoff) -> Handoff:
            handoff.notes.append(f"Begin with page 7; the work is in {handoff.commit}.")
            return handoff

    rig = make_rig(Helpful(documents=1))

    rig.run()

    handoff, checkpoint = rig.document("handoff", 1), digest(rig.document("checkpoint", 1))
    assert "## Notes\n\nBegin with page 7; the work is in commit-1." in handoff
    assert f"- Committed as `commit-1` with checkpoint 1 (`{checkpoint[:16]}`)" in handoff
    (message,) = rig.saved_work.commits
    assert message == (
        "mine: work of session 1\n\nPerpetual-Chain: mine\nPerpetual-Session: 1\nPerpetual-Stop: queue-empty\n"
        f"Perpetual-Checkpoint: {checkpoint}\nPerpetual-Units: 1\n"
    )
    assert rig.saved_work.pushes == 0


def test_a_handoff_that_the_agent_lost_is_written_all_the_same(make_rig: MakeRig) -> None:
    """An agent that forgets to return the handoff is told so; the handoff as it was is there."""

    class Forgetful(Reader):
        """Returns nothing."""

        def create_handoff(self, handoff: Handoff) -> Handoff:
            return None  # type: ignore[return-value]

    rig = make_rig(Forgetful(documents=1))

    rig.run()

    assert "# mine · session 1 · Finished" in rig.document("handoff", 1)
    (failed,) = rig.told(StepFailed)
    assert (failed.step, failed.error) == (
        "create_handoff",
        "InvalidInput: create_handoff: got None; expected the Handoff, changed or not",
    )


def test_a_handoff_that_cannot_be_shown(make_rig: MakeRig) -> None:
    """What the agent makes of the handoff may be wrong: the session ends in order, with the handoff as it was."""

    class Careless(Reader):
        """Notes what is no text."""

        def create_handoff(self, handoff: Handoff) -> Handoff:
            handoff.notes.append({"begin with": 7})  # type: ignore[arg-type]
            return handoff

    rig = make_rig(Careless(documents=3))

    assert [end.state for end in rig.run_chain(tokens(200))] == [SessionState.WRAPPED, SessionState.FINISHED]

    assert "# mine · session 1 · Wrapped" in rig.document("handoff", 1)
    assert rig.told(StepFailed) != []


def test_a_hook_that_hangs_does_not_keep_the_handoff_back(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the agent's hook does, also nothing at all, there is a handoff, and the session ends."""
    monkeypatch.setattr(steps, "STEP_SECONDS", 0.5)
    never = Event()

    class Hanging(Reader):
        """Waits for what does not come."""

        def create_handoff(self, handoff: Handoff) -> Handoff:
            never.wait()
            return handoff

    rig = make_rig(Hanging(documents=1))

    assert rig.run().state is SessionState.FINISHED

    assert [failed.step for failed in rig.told(StepFailed)] == ["create_handoff"]
    written = [document.ordinal for document in rig.ledger.documents("mine", "handoff")]
    never.set()
    assert written == [1]


def test_a_follow_on_that_cannot_be_created_stays_in_the_outbox(make_rig: MakeRig) -> None:
    """When Prefect cannot be reached the session has ended in order; whoever comes by next creates its follow-on."""

    class Unreachable(MemoryRuns):
        """An API that answers from the second call on."""

        def create(self, follow_on: FollowOn) -> str:
            if self.calls == 0:
                self.calls += 1
                raise ConnectionError("no route to host")
            return super().create(follow_on)

    rig = make_rig(Reader(documents=3), runs=Unreachable())

    end = rig.run(tokens(150))

    assert end.state is SessionState.WRAPPED
    assert [failed.step for failed in rig.told(StepFailed)] == ["follow_on"]
    (pending,) = rig.ledger.pending_follow_ons("mine")
    assert (create_follow_ons(rig.ledger, rig.runs), create_follow_ons(rig.ledger, rig.runs)) == (1, 0)
    assert list(rig.runs.created) == [pending.idempotency_key]


def test_a_follow_on_is_tried_again_while_prefect_is_away(make_rig: MakeRig) -> None:
    """An API that is away for less than three quarters of a minute costs no follow-on."""

    class Restarting(MemoryRuns):
        """An API that answers after a while."""

        def create(self, follow_on: FollowOn) -> str:
            if rig.clock.now() < since + 40:
                self.calls += 1
                raise RunsUnavailable("Prefect's API: cannot be asked: ConnectError")
            return super().create(follow_on)

    rig = make_rig(Reader(documents=3), runs=Restarting())
    since = rig.clock.now()

    rig.run(tokens(150))

    assert rig.told(StepFailed) == []
    assert 5 < rig.runs.calls < 40
    assert (len(rig.runs.created), rig.ledger.pending_follow_ons("mine")) == (1, [])


class FullStorage(MemoryDocuments):
    """A storage that cannot be written while it is full."""

    full = True

    def write(self, key: str, text: str) -> None:
        if self.full:
            raise StorageError(f"results storage: cannot write {key}: no space left")
        super().write(key, text)


def test_a_session_that_cannot_save_fails_and_can_be_started_again(make_rig: MakeRig) -> None:
    """A checkpoint that cannot be written fails the session; the chain says why, and its follow-on goes on half a
    minute later; no unit is lost."""
    storage = FullStorage()
    rig = make_rig(Reader(documents=3), documents=storage)

    with pytest.raises(StorageError):
        rig.run(tokens(200))

    (failed,) = rig.ledger.sessions("mine")
    assert (failed.state, failed.graceful, failed.units) == (SessionState.FAILED, False, 2)
    chain = rig.ledger.chain("mine")
    assert chain.status is ChainStatus.WAITING
    assert "no space left" in chain.reason
    (follow_on,) = rig.runs.created.values()
    assert chain.resume_at == failed.ended_at + 30  # type: ignore[operator]
    assert 0 <= (follow_on.not_before or 0) - chain.resume_at < 2
    assert rig.told(SessionEnded)[-1].state is SessionState.FAILED
    storage.full = False

    end = rig.run(tokens(200))

    assert (end.state, end.ordinal) == (SessionState.FINISHED, 2)
    assert len(rig.runner.ran) == len(set(rig.runner.ran)) == 3


def test_a_storage_that_gives_back_other_bytes(make_rig: MakeRig) -> None:
    """What was written is read back: where it is something else, no row points at it and the session fails."""

    class Lossy(MemoryDocuments):
        """Loses the last byte."""

        def read(self, key: str) -> str:
            return super().read(key)[:-1]

    rig = make_rig(Reader(documents=1), documents=Lossy())

    with pytest.raises(DamagedDocument) as damaged:
        rig.run()

    one_line(damaged.value, "results storage", "checkpoints/000001-")
    assert rig.ledger.documents("mine", "checkpoint") == []
    assert rig.ledger.sessions("mine")[0].state is SessionState.FAILED
    assert rig.ledger.chain("mine").status is ChainStatus.WAITING


def test_outages_in_a_row(make_rig: MakeRig, clock: FakeClock) -> None:
    """A storage that stays away is tried later and later, for a night; then the chain is stalled, and says so."""
    storage = FullStorage()
    rig = make_rig(Reader(documents=1), documents=storage)
    waits = []
    for _ in range(1 + len(BACK_OFF_SECONDS)):
        with pytest.raises(StorageError):
            rig.run()
        waits.append((rig.ledger.chain("mine").resume_at or clock.now()) - clock.now())

    chain, tries = rig.ledger.chain("mine"), len(rig.runs.created)
    # The first has finished a unit, so the second is the first in a row.
    assert (waits[:6], chain.status) == ([30, 30, 120, 480, 1800, 1800], ChainStatus.WAITING)
    assert 8 * 3600 < sum(waits) < 12 * 3600
    assert [follow_on.ordinal for follow_on in rig.runs.created.values()] == list(range(2, 2 + tries))
    with pytest.raises(StorageError):
        rig.run()
    chain = rig.ledger.chain("mine")
    assert (chain.status, chain.resume_at, len(rig.runs.created)) == (ChainStatus.STALLED, None, tries)
    assert chain.reason.endswith(f"no space left; {len(BACK_OFF_SECONDS)} sessions before ended in the same way")
    storage.full = False
    assert rig.run().state is SessionState.FINISHED


def test_an_outage_is_waited_out(make_rig: MakeRig, clock: FakeClock) -> None:
    """Whoever moves follow-ons whose quota is free leaves alone those that wait for the world to come back."""
    storage = FullStorage()
    rig = make_rig(Reader(documents=1), documents=storage)
    for _ in range(3):
        with pytest.raises(StorageError):
            rig.run()

    assert move_follow_ons(rig.ledger, rig.runs, clock) == 0
    assert rig.runs.moved == {}


def test_a_failed_run_may_be_tried_again_at_once(make_rig: MakeRig) -> None:
    """The same flow run is admitted after an outage, as Retry starts it; its follow-on then comes too late."""
    storage = FullStorage()
    rig = make_rig(Reader(documents=1), documents=storage)
    with pytest.raises(StorageError):
        rig.run()
    (invited,) = rig.runs.created
    storage.full = False

    rig.started -= 1
    assert rig.run().state is SessionState.FINISHED
    with pytest.raises(Superseded):
        rig.run(invited=invited)


class AwayLedger(SqlLedger):
    """A ledger that cannot be reached while it is away."""

    away = False

    def heartbeat(self, fence: Fence) -> None:
        if self.away:
            raise LedgerUnavailable("ledger: no route to host")
        super().heartbeat(fence)


def test_a_ledger_that_cannot_be_reached_is_not_a_chain_that_was_lost(make_ledger: LedgerFactory) -> None:
    """The session works on until its lease has run out, by the monotonic clock and from the last beat that came
    through; beats that fail are repeated soon."""
    clock, stop = FakeClock(), StopRequest()
    ledger = AwayLedger("sqlite://", clock=clock, lease_seconds=LEASE)
    heartbeat = Heartbeat(ledger, open_session(ledger).fence, stop, clock, clock.monotonic())
    clock.advance(15)
    assert heartbeat.beat() == LEASE / 4
    ledger.away = True
    clock.advance(50)
    assert (heartbeat.beat(), stop.reason) == (1.0, None)
    clock.advance(9.5)
    assert (heartbeat.beat(), stop.reason) == (0.5, None)
    clock.advance(0.5)

    assert heartbeat.beat() is None

    assert stop.reason is not None
    assert (stop.reason.code, "no route to host" in stop.reason.message) == ("unreachable", True)
    ledger.close()


def test_a_ledger_that_comes_back_in_time_changes_nothing(make_ledger: LedgerFactory) -> None:
    """Its lease is counted anew from the beat that came through."""
    clock, stop = FakeClock(), StopRequest()
    ledger = AwayLedger("sqlite://", clock=clock, lease_seconds=LEASE)
    heartbeat = Heartbeat(ledger, open_session(ledger).fence, stop, clock, clock.monotonic())
    ledger.away = True
    clock.advance(LEASE - 1)
    assert heartbeat.beat() == 1.0
    ledger.away = False
    assert heartbeat.beat() == LEASE / 4
    ledger.away = True
    clock.advance(LEASE - 1)

    assert heartbeat.beat() == 1.0

    assert stop.reason is None
    ledger.close()


def test_a_session_that_lost_the_ledger_commits_nothing_more(make_rig: MakeRig, clock: FakeClock) -> None:
    """When its lease runs out in the middle of a unit the session stops with an error; its outcome is kept, and whoever
    comes next commits it and does not run it again."""
    stop = StopRequest()
    rig = make_rig(
        Robbed(lambda: stop.ask(StopReason("unreachable", "its lease of 60 s ran out; ledger: no route")), documents=3)
    )

    with pytest.raises(LedgerUnavailable) as away:
        rig.run(stop=stop)

    one_line(away.value, "its lease of 60 s ran out")
    (session,) = rig.ledger.sessions("mine")
    assert (session.state, session.units, rig.documents.content) == (SessionState.RUNNING, 1, {})
    assert rig.told(SessionEnded)[-1].state is SessionState.FAILED
    clock.advance(LEASE)
    assert rig.run().state is SessionState.FINISHED
    assert len(rig.runner.ran) == len(set(rig.runner.ran)) == 3


def test_a_damaged_checkpoint(make_rig: MakeRig) -> None:
    """Where the last checkpoint is damaged the one before is used, nothing is lost, and the handoff says so."""
    rig = make_rig(Reader(documents=3))
    rig.run(tokens(100))
    rig.run(tokens(100))
    damaged, *_ = rig.ledger.documents("mine", "checkpoint")
    rig.documents.content[damaged.key] = rig.documents.content[damaged.key].replace(b"Reader", b"Leader")

    end = rig.run(tokens(100))

    assert end.state is SessionState.FINISHED
    handoff = rig.document("handoff", 3)
    assert "- the checkpoint of session 2 is not usable (checkpoint: got SHA-256" in handoff
    assert "- the checkpoint of session 1 agrees with the ledger in 5 fields" in handoff
    assert rig.ledger.sessions("mine")[2].verified == (5, 5)
    assert len(rig.ledger.chain("mine").context["read"]) == 3


def test_old_checkpoints_are_let_go(make_rig: MakeRig) -> None:
    """Of a long chain the latest checkpoints are kept, and all handoffs; nothing points at what is gone."""
    rig = make_rig(Reader(documents=4))

    for _ in range(4):
        rig.run(tokens(100), keep_checkpoints=2)

    kept = rig.ledger.documents("mine", "checkpoint")
    assert [document.ordinal for document in kept] == [4, 3]
    assert [key for key in rig.documents.content if "/checkpoints/" in key] == [kept[1].key, kept[0].key]
    assert len(rig.ledger.documents("mine", "handoff")) == 4
    assert [session.verified for session in rig.ledger.sessions("mine")] == [None, (6, 6), (6, 6), (6, 6)]


def test_a_plan_that_raises(make_rig: MakeRig) -> None:
    """A plan that breaks fails the session and adds nothing; the next start plans again."""

    class Hasty(Reader):
        """Breaks at its first plan."""

        plans: int = 0

        def plan(self) -> Iterable[WorkItem]:
            self.plans += 1
            yield WorkItem(id="doc-0")
            if self.plans == 1:
                raise FileNotFoundError("docs")
            yield WorkItem(id="doc-1")

    rig = make_rig(Hasty())

    with pytest.raises(FileNotFoundError):
        rig.run()

    assert rig.ledger.chain("mine").reason == "FileNotFoundError: docs"
    assert sum(rig.ledger.counts("mine").values()) == 0
    assert rig.run().state is SessionState.FINISHED
    assert rig.ledger.counts("mine")[ItemStatus.COMPLETED] == 2


def test_a_wrong_plan_is_refused(make_rig: MakeRig) -> None:
    """A plan with a cycle fails the session with the cycle named, which is also the chain's reason."""

    class Circular(Reader):
        """Plans what cannot be done."""

        def plan(self) -> Iterable[WorkItem]:
            yield WorkItem(id="a", depends_on=("b",))
            yield WorkItem(id="b", depends_on=("a",))

    rig = make_rig(Circular())

    with pytest.raises(InvalidInput) as refused:
        rig.run()

    one_line(refused.value, "a -> b -> a")
    assert "a -> b -> a" in rig.ledger.chain("mine").reason


def test_a_meter_that_breaks_fails_the_session(make_rig: MakeRig) -> None:
    """A session that cannot read its budget any more is recorded as failed at once, not left to its lease."""

    class Breaking(ScriptedMeter):
        """Cannot be read after the first unit."""

        def level(self) -> float:
            if self.now > 100:
                raise OSError("no such file: /proc/1/status")
            return self.now

    meter = Breaking(10)

    class Hungry(Reader):
        """Takes more than there is."""

        def work_unit(self, unit: Unit) -> Any:
            meter.now = 1000

    rig = make_rig(Hungry())

    with pytest.raises(OSError, match="no such file"):
        rig.run(Budget(memory=100), meters={"memory": meter})

    (session,) = rig.ledger.sessions("mine")
    assert (session.state, session.units) == (SessionState.FAILED, 1)
    assert "no such file" in rig.ledger.chain("mine").reason


# Interrupted at every point -------------------------------------------------------------------------------------------


class Everything(PerpetualAgent):
    """Uses all that a unit can do: advances, fails once, adds items, keeps a context."""

    def plan(self) -> Iterable[WorkItem]:
        yield WorkItem(id="book", priority=1)
        yield WorkItem(id="review", depends_on=("book",))
        yield WorkItem(id="shy")

    def commit_changes(self) -> Iterable[Path]:
        return [Path("review.md")]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100, calls=1)
        if unit.id == "shy" and unit.attempt == 1:
            raise ValueError("not at first")
        unit.context["log"] = [*unit.context.get("log", []), f"{unit.id}/{unit.number}"]
        if unit.id == "book" and unit.number == 1:
            return unit.advance(cursor={"page": 1}, progress=(1, 2), next_action="page 2")
        if unit.id == "book":
            unit.add(WorkItem(id="chapter", depends_on=("book",), priority=2))
        return {"done": unit.id, "cursor": unit.cursor}


class Interrupted(Exception):
    """What goes wrong at a point, as an error that the program may catch."""


class Killed(BaseException):
    """The end of the process at a point: nothing catches it, nothing is done after it."""


def interruption(point: str, count: int, error: type[BaseException]) -> Callable[[str], None]:
    """A handler that raises when the point is reached for the count-th time, and never again."""
    seen: Counter[str] = Counter()

    def handle(reached: str) -> None:
        seen[reached] += 1
        if (reached, seen[reached]) == (point, count):
            raise error(f"{point} #{count}")

    return handle


def run_whatever_happens(rig: Rig) -> None:
    """Starts session after session, as a supervisor and a person would, until the chain is finished."""
    for _ in range(20):
        known = {chain.name: chain for chain in rig.ledger.chains()}
        if rig.chain in known and known[rig.chain].status is ChainStatus.FINISHED:
            break
        create_follow_ons(rig.ledger, rig.runs, rig.chain)
        ordinal = known[rig.chain].ordinal if rig.chain in known else 0
        invited = [
            key
            for key, follow_on in rig.runs.created.items()
            if follow_on.ordinal > ordinal and f"run-{rig.chain}-{follow_on.ordinal}" not in rig.runs.cancelled
        ]
        try:
            rig.run(tokens(330), invited=next(iter(invited), None), alive=lambda session: False)
        except Superseded:
            rig.clock.advance(LEASE)
        except (Interrupted, Killed):
            continue
    else:
        pytest.fail("the chain does not come to an end")
    create_follow_ons(rig.ledger, rig.runs, rig.chain)


def without_chain(key: str | None) -> str:
    """A key without the chain's name and uid, so that chains can be compared."""
    return re.sub(r"^perpetual/[^/]*/", "", key or "")


def outcome_of(rig: Rig) -> dict[str, Any]:
    """What a chain came to, as far as it must not depend on what happened on the way."""
    items = rig.ledger.items(rig.chain)
    return {
        "items": sorted(
            (item.id, item.status, item.units, item.attempts, item.failures, item.cursor, item.error) for item in items
        ),
        "results": {item.id: rig.runner.documents.content[item.result_key or ""] for item in items},
        "keys": {item.id: without_chain(item.result_key) for item in items},
        "usage": chain_usage(rig.ledger.sessions(rig.chain)),
        "units": sum(session.units for session in rig.ledger.sessions(rig.chain)),
        "context": rig.ledger.chain(rig.chain).context,
        "ran": [without_chain(key) for key in rig.runner.ran],
    }


def points_in_source() -> list[str]:
    """The names that the package gives to the points of a session, as patterns: `shutdown.{name}` is `shutdown.*`."""
    package = Path(perpetual_blocks.__file__).parent
    found = {
        name
        for path in package.rglob("*.py")
        if path.name not in ("faults.py", "supervisor.py", "turn.py")
        for name in re.findall(r"\breached\(f?\"([^\"]+)\"\)", path.read_text())
    }
    return sorted(re.sub(r"\\{.*?\\}", ".*", re.escape(name)) for name in found)


@pytest.mark.parametrize("error", [Interrupted, Killed])
def test_interrupted_at_every_point(make_ledger: LedgerFactory, clock: FakeClock, error: type[BaseException]) -> None:
    """Whatever point an error or the end of the process comes at: the chain goes on to the same end as without it, and
    no unit runs again whose outcome was kept."""
    rig_of = partial(Rig, make_ledger("sqlite://"), clock, unit_seconds=2.0)  # long enough for a successor
    points: list[tuple[str, int]] = []
    seen: Counter[str] = Counter()

    def record(point: str) -> None:
        seen[point] += 1
        points.append((point, seen[point]))

    faults.install(record)
    uninterrupted = rig_of(Everything(), "uninterrupted")
    run_whatever_happens(uninterrupted)
    expected = outcome_of(uninterrupted)
    assert len(uninterrupted.ledger.sessions("uninterrupted")) == 2
    assert expected["usage"] == {"tokens": 600.0, "calls": 6.0, "seconds": 10.0}
    not_reached = [name for name in points_in_source() if not any(re.fullmatch(name, point) for point, _ in points)]
    assert not_reached == []

    if error is Interrupted:  # the end of the process is tried each time, an error the first and the last time
        points = [(point, count) for point, count in points if count in (1, seen[point])]
    for number, (point, count) in enumerate(points):
        faults.install(interruption(point, count, error))
        rig = rig_of(Everything(), f"interrupted-{number}")
        run_whatever_happens(rig)

        found = outcome_of(rig)
        if point == "unit.returned":  # the one unit whose outcome was not kept has run again
            found["ran"] = list(dict.fromkeys(found["ran"]))
        assert found == expected, f"{error.__name__} at {point} #{count}"
        assert rig.ledger.pending_follow_ons(rig.chain) == [], f"{error.__name__} at {point} #{count}"
        states = [session.state for session in rig.ledger.sessions(rig.chain)]
        assert SessionState.RUNNING not in states, f"{error.__name__} at {point} #{count}"
