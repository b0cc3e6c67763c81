"""The orchestrator on a real ledger, with flow runs in memory and a clock of ours."""

from dataclasses import replace
from typing import Any

import pytest
from support import KINDS, LEASE, FakeClock, LedgerFactory, MemoryRuns, close, finish_next, open_session

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.session.orchestration import MEASURE_SECONDS, SETTLE_SECONDS, Bounds, Rate
from perpetual_blocks.session.orchestrator import RESCUE_SECONDS, Orchestrator, Part, Report
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import ItemStatus, Selector, WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment", parameters={"depth": 3}, tags=("perpetual",)).to_json()
DONE: dict[str, Any] = {"state": SessionState.FINISHED, "stop": StopReason("queue-empty", "every item is done")}


class Crew:
    """The orchestrator of a queue, and the sessions that the runs which it creates would have."""

    def __init__(self, ledger: SqlLedger, clock: FakeClock, bounds: str, *parts: Part) -> None:
        self.ledger = ledger
        self.clock = clock
        self.runs = MemoryRuns()
        self.sessions: dict[str, Fence] = {}
        self._bounds = Bounds.parse(bounds)
        self._parts = parts
        self.begin()

    def begin(self) -> None:
        """The orchestrator is started, for the first time or again."""
        supervisor = Supervisor(self.ledger, self.runs, self.clock, lambda session: None)
        self.orchestrator = Orchestrator(
            self.ledger, "mine", self._bounds, self.clock, supervisor, self._parts, TEMPLATE, self.runs
        )

    def look(self, seconds: float = 1.0) -> Report:
        """A look after a while; then the sessions begin whose runs were created."""
        self.clock.advance(seconds)
        report = self.orchestrator.look()
        for follow_on in self.runs.created.values():
            chain = self.ledger.chain(follow_on.chain)
            if chain.status is ChainStatus.WAITING and chain.ordinal == follow_on.ordinal - 1:
                self.open(follow_on.chain, follow_on.idempotency_key)
        return report

    def open(self, chain: str, key: str | None = None, budget: Budget | None = None) -> Fence:
        settings = {"kinds": list(KINDS), "budget": (budget or Budget()).to_json()}
        template = RunTemplate.from_json(TEMPLATE)
        opened = open_session(
            self.ledger,
            chain,
            f"{chain} {key}",
            flow_run_id=f"run-{key}",
            invitation=key,
            template=template.to_json(),
            settings=settings,
            attended=False,
        )
        self.sessions[chain] = opened.fence
        return opened.fence

    def plan(self, count: int) -> None:
        """The owner's session makes the items."""
        self.ledger.add_items("mine", [WorkItem(id=f"{n:04}") for n in range(count)], planned_by=self.sessions["mine"])

    def states(self) -> dict[str, str]:
        return {line.chain: line.state for line in self.orchestrator.look().agents}


@pytest.fixture
def ledger(make_ledger: LedgerFactory) -> SqlLedger:
    return make_ledger("sqlite://")


def test_agents_begin_when_there_is_work_for_them(ledger: SqlLedger, clock: FakeClock) -> None:
    """The owner first, which makes the items; then as many as are wanted, each a run of the deployment."""
    crew = Crew(ledger, clock, "4")
    report = crew.look()
    assert ([line.chain for line in report.agents], report.decision.why) == (["mine"], "the queue is being planned")
    assert not report.over
    assert [chain.name for chain in ledger.chains()] == ["mine"]

    crew.plan(100)
    crew.look()

    assert sorted(crew.sessions) == ["mine", "mine-2", "mine-3", "mine-4"]
    assert crew.states() == dict.fromkeys(("mine", "mine-2", "mine-3", "mine-4"), "at work")
    assert {run.parameters["chain"]: run.parameters["depth"] for run in crew.runs.created.values()} == dict.fromkeys(
        crew.sessions, 3
    )
    for fence in crew.sessions.values():
        finish_next(ledger, fence)
    report = crew.look()
    assert (report.units, report.usage) == (4, {"tokens": 40.0})
    assert len(crew.runs.created) == 4


def test_killed_and_started_again_it_finds_its_agents(ledger: SqlLedger, clock: FakeClock) -> None:
    """At any moment, also when two are looking at once: nobody is started a second time."""
    crew = Crew(ledger, clock, "3")
    crew.look()
    crew.plan(50)
    crew.look()
    crew.begin()
    report = crew.look()

    assert [line.chain for line in report.agents] == ["mine", "mine-2", "mine-3"]
    assert len(crew.runs.created) == 3


def test_no_more_than_there_is_to_do(ledger: SqlLedger, clock: FakeClock) -> None:
    crew = Crew(ledger, clock, "4")
    crew.look()
    crew.plan(2)
    report = crew.look()
    assert (sorted(crew.sessions), report.decision.agents) == (["mine", "mine-2"], 2)


def test_a_dead_agent_is_rescued(ledger: SqlLedger, clock: FakeClock) -> None:
    """What it had claimed is free, and its chain goes on in another run."""
    crew = Crew(ledger, clock, "2")
    crew.look()
    crew.plan(10)
    crew.look()
    ledger.claim(crew.sessions["mine-2"], lambda item: None)
    clock.advance(LEASE + 1)
    ledger.heartbeat(crew.sessions["mine"])

    report = crew.look(RESCUE_SECONDS)

    assert [(deed.chain, deed.what) for deed in report.deeds] == [("mine-2", "rescued"), ("mine-2", "created")]
    assert ledger.counts("mine")[ItemStatus.CLAIMED] == 0
    assert ledger.chain("mine-2").ordinal == 2


def test_agents_rest_and_go_on(ledger: SqlLedger, clock: FakeClock) -> None:
    """Where more bring nothing, the last one ends its unit and rests; it goes on when the others are gone."""
    crew = Crew(ledger, clock, "1-2")
    crew.look()
    crew.plan(1000)
    now = clock.now()
    crew.orchestrator._throughput.rates = {1: Rate(5.0, now)}
    crew.look()
    assert sorted(crew.sessions) == ["mine", "mine-2"]

    crew.orchestrator._throughput.rates = {1: Rate(5.0, now), 2: Rate(5.1, now)}
    report = crew.look()
    assert report.decision.agents == 1
    assert ledger.wanted("mine-2") == (Wanted.REST, "fewer agents are enough for now")
    assert crew.states() == {"mine": "at work", "mine-2": "ending"}
    close(ledger, crew.sessions["mine-2"], stop=StopReason("paused", "fewer agents are enough for now"))
    assert crew.states() == {"mine": "at work", "mine-2": "resting"}
    assert not crew.look().over

    close(ledger, crew.sessions["mine"], ChainStatus.EXHAUSTED, state=SessionState.EXHAUSTED)
    crew.look()
    assert crew.states() == {"mine": "exhausted", "mine-2": "at work"}
    assert ledger.chain("mine-2").ordinal == 2


def test_more_begin_where_they_bring_something(ledger: SqlLedger, clock: FakeClock) -> None:
    """As it is measured: each agent does a unit a second."""
    crew = Crew(ledger, clock, "1-4")
    crew.look()
    crew.plan(2000)
    grown: list[int] = []
    for _ in range(int(4 * (SETTLE_SECONDS + MEASURE_SECONDS) + 30)):
        for fence in crew.sessions.values():
            finish_next(ledger, fence)
        crew.look()
        if len(crew.sessions) not in grown:
            grown.append(len(crew.sessions))

    assert grown == [1, 2, 3, 4]


def test_nobody_is_replaced(ledger: SqlLedger, clock: FakeClock) -> None:
    """Another agent in the place of one whose budget is gone, or that a person holds, would go around that."""
    crew = Crew(ledger, clock, "3")
    crew.look()
    crew.plan(50)
    crew.look()
    close(ledger, crew.sessions["mine-2"], ChainStatus.EXHAUSTED, state=SessionState.EXHAUSTED)
    ledger.want("mine-3", Wanted.PAUSE, "no")
    close(ledger, crew.sessions["mine-3"])

    crew.look()

    assert crew.states() == {"mine": "at work", "mine-2": "exhausted", "mine-3": "paused"}


def test_none_more_than_a_pool_has_room_for(ledger: SqlLedger, clock: FakeClock) -> None:
    """Each is to have a unit's worth of it at least."""
    crew = Crew(ledger, clock, "4")
    pool = Budget(Limit("cost", 10, scope="total", pool="team"))
    ledger.add_chain("mine", template=TEMPLATE)
    fence = crew.open("mine", budget=pool)
    crew.plan(50)
    finish_next(ledger, fence, usage={"cost": 6.0})

    report = crew.look()

    assert (report.decision.agents, report.decision.why) == (1, "pool team has room for no more")
    assert sorted(crew.sessions) == ["mine"]


def test_at_the_end_nobody_waits(ledger: SqlLedger, clock: FakeClock) -> None:
    """Those that wait for the others' last items, or rest, are over without another session."""
    crew = Crew(ledger, clock, "3")
    crew.look()
    crew.plan(3)
    crew.look()
    for name in ("mine-2", "mine-3"):
        finish_next(ledger, crew.sessions[name])
    finish_next(ledger, crew.sessions["mine"])
    waiting = StopReason("waiting", "what is left is with others", clock.now() + 600)
    close(ledger, crew.sessions["mine-2"], stop=waiting)
    ledger.want("mine-3", Wanted.REST, "fewer")
    close(ledger, crew.sessions["mine-3"])
    assert not crew.look().over, "the owner is at work"
    close(ledger, crew.sessions["mine"], ChainStatus.FINISHED, **DONE)

    report = crew.look()

    assert (report.over, report.finished) == (True, True)
    assert {line.state for line in report.agents} == {"finished"}
    assert [chain.ordinal for chain in ledger.chains("mine")] == [1, 1, 1]


def test_what_is_left_is_told(ledger: SqlLedger, clock: FakeClock) -> None:
    """All agents have come to the end of what they may use: it is over, and not finished."""
    crew = Crew(ledger, clock, "2")
    crew.look()
    crew.plan(9)
    crew.look()
    for fence in crew.sessions.values():
        close(ledger, fence, ChainStatus.EXHAUSTED, state=SessionState.EXHAUSTED)
    report = crew.look()
    assert (report.over, report.finished) == (True, False)
    assert report.to_json()["items"]["available"] == 9


def test_each_has_its_part(ledger: SqlLedger, clock: FakeClock) -> None:
    """Agents for a subset, beside those that take everything, so that nothing is left."""
    part = Part("json", Selector(ids=("json.*",)))
    crew = Crew(ledger, clock, "1", part, Part("slow", Selector(kinds=("other",))))
    crew.look()
    assert sorted(crew.sessions) == ["mine"]
    ledger.add_items("mine", [WorkItem(id=name) for name in ("a", "json.x")], planned_by=crew.sessions["mine"])
    crew.look()

    assert sorted(crew.sessions) == ["mine", "mine-json", "mine-slow"]
    takes = {line.chain: line.takes for line in crew.look().agents}
    assert takes == {"mine": "everything", "mine-json": "ids json.*", "mine-slow": "kinds other"}
    assert finish_next(ledger, crew.sessions["mine-json"]).id == "json.x"

    crew._parts = (replace(part, selector=Selector(ids=("a",))),)
    crew.begin()
    crew.look()
    assert ledger.chain("mine-json").selector == Selector(ids=("a",))


@pytest.mark.parametrize("parts", [("one", "one"), ("2",), ("No",)])
def test_agents_have_names_of_their_own(ledger: SqlLedger, clock: FakeClock, parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        Crew(ledger, clock, "3", *(Part(name, Selector(ids=("a",))) for name in parts))


def test_work_that_comes_later_is_begun(ledger: SqlLedger, clock: FakeClock) -> None:
    """A person has added an item to a queue that was done: its chains go on."""
    crew = Crew(ledger, clock, "2")
    crew.look()
    crew.plan(2)
    crew.look()
    for name in ("mine-2", "mine"):
        finish_next(ledger, crew.sessions[name])
    for name in ("mine-2", "mine"):
        close(ledger, crew.sessions[name], ChainStatus.FINISHED, **DONE)
    assert crew.look().finished
    ledger.add_items("mine", [WorkItem(id="later")])

    report = crew.look()

    assert not report.over
    assert {chain.name: chain.ordinal for chain in ledger.chains("mine")} == {"mine": 2, "mine-2": 1}


def test_sessions_whose_end_is_near_are_told(ledger: SqlLedger, clock: FakeClock) -> None:
    """With their ordinal, for who starts the process of the next; not those that are to rest, or have ended."""
    crew = Crew(ledger, clock, "3")
    crew.look()
    crew.plan(50)
    assert crew.look().near_end == {}
    for name in ("mine-2", "mine-3"):
        ledger.announce(crew.sessions[name], clock.now() + 15, None)
    assert crew.look().near_end == {"mine-2": 1, "mine-3": 1}

    ledger.want("mine-3", Wanted.REST, "fewer agents are enough")
    assert crew.look().near_end == {"mine-2": 1}
    close(ledger, crew.sessions["mine-2"])
    assert crew.orchestrator.look().near_end == {}
