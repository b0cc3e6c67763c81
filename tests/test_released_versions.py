"""Upgrades: what every released version wrote is read, and worked with to the end; `fixtures/README.md` says how each
folder was made."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import PrivateAttr
from support import FakeClock, MemoryRuns, session_request, status_of

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.outcome_records import read_record
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.adapters.saved_work import LocalSavedWork
from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.session.world import World
from perpetual_blocks.work import ItemStatus, Outcome

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir())
CHAIN = "papers"
READ_BEFORE = ["paper-1 p1", "paper-3 p1", "ünï/côde p1", "paper-2 p1"]


class Reader(PerpetualAgent):
    """Read papers, and keep what they say."""

    _asked: list[str] = PrivateAttr(default_factory=list)

    def plan(self) -> Iterable[WorkItem]:
        yield WorkItem(id="paper-1", payload={"pages": 1}, estimate={"tokens": 100}, priority=5)
        yield WorkItem(id="broken", payload={"pages": 0}, max_attempts=1, priority=4)
        yield WorkItem(id="paper-2", payload={"pages": 3}, bound={"tokens": 200}, priority=3)
        yield WorkItem(id="paper-3", payload={"pages": 1}, complexity="complex", priority=2)
        yield WorkItem(id="ünï/côde", payload={"pages": 1}, priority=1)
        yield WorkItem(id="summary", payload={"pages": 1}, depends_on=("paper-2", "paper-3"))
        yield WorkItem(id="letter", payload={"pages": 1}, depends_on=("summary",))

    def work_unit(self, unit: Unit) -> Any:
        pages = unit.payload["pages"]
        self._asked.append(f"{unit.id} p{unit.number}")
        unit.spend(tokens=100, calls=1)
        unit.context["read"] = [*unit.context.get("read", []), f"{unit.id} p{unit.number}"]
        if unit.number < pages:
            return unit.advance(cursor={"page": unit.number}, progress=(unit.number, pages))
        return {"pages": unit.number}


@dataclass
class Old:
    """A copy of what a version wrote, opened by this one."""

    ledger: SqlLedger
    results: Path
    clock: FakeClock

    def go_on(self, agent: Reader) -> SessionEnd:
        """The chain's next session, to its end."""
        storage = load_storage(None)
        units = PrefectUnits(agent, storage, None)
        world = World(
            ledger=self.ledger,
            documents=StoredDocuments(storage),
            runner=units,
            saved_work=LocalSavedWork(),
            clock=self.clock,
            runs=MemoryRuns(),
        )
        request = session_request(CHAIN, "today", agent="Reader", settings={"kinds": ["default"], "budget": []})
        try:
            return Session(agent, request, Budget(), world, task=agent.task()).run()
        finally:
            units.close()


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, results: Path) -> Iterator[Old]:
    """The files of a released version, whose last session has been dead for a day."""
    folder = FIXTURES / request.param
    shutil.copytree(folder / "results", results)
    shutil.copyfile(folder / "ledger.db", results.parent / "ledger.db")
    clock = FakeClock()
    ledger = SqlLedger(str(results.parent / "ledger.db"), clock=clock)
    clock.advance(ledger.chain(CHAIN).lease_until + 24 * 3600 - clock.now())
    yield Old(ledger, results, clock)
    ledger.close()


def test_its_ledger_is_read(old: Old) -> None:
    """The migrations keep everything: items, sessions, usage, context and what there is to say of the chain."""
    chain, sessions = old.ledger.chain(CHAIN), old.ledger.sessions(CHAIN)

    assert (chain.status, chain.agent, chain.ordinal) == (ChainStatus.RUNNING, "Reader", 2)
    assert chain.context == {"read": READ_BEFORE}
    assert (chain.context_version, chain.code) == (1, None)
    assert [(session.state, session.units) for session in sessions] == [
        (SessionState.WRAPPED, 3),
        (SessionState.RUNNING, 1),
    ]
    assert status_of(old.ledger, CHAIN) == {
        "paper-1": ItemStatus.COMPLETED,
        "broken": ItemStatus.DISCARDED,
        "paper-2": ItemStatus.CLAIMED,
        "paper-3": ItemStatus.COMPLETED,
        "ünï/côde": ItemStatus.COMPLETED,
        "summary": ItemStatus.BLOCKED,
        "letter": ItemStatus.BLOCKED,
    }
    assert old.ledger.forecasts(CHAIN)[1] == 1
    status = chain_status(old.ledger, CHAIN)
    assert {name: status["usage"][name] for name in ("tokens", "calls")} == {"tokens": 500, "calls": 5}


def test_its_documents_are_read(old: Old) -> None:
    """The checkpoint and the handoff are those that the ledger points at, and all outcomes are whole."""
    documents = StoredDocuments(load_storage(None))
    (checkpoint,), (handoff,) = (old.ledger.documents(CHAIN, kind) for kind in ("checkpoint", "handoff"))

    read = Checkpoint.read(documents.read(checkpoint.key), checkpoint.digest)

    assert (read.chain, read.ordinal, read.checkpoints, read.context_version) == (CHAIN, 1, 1, 1)
    assert read.context == {"read": READ_BEFORE[:3]}
    assert digest(documents.read(handoff.key)) == handoff.digest
    outcomes = [
        Outcome.from_document(read_record(path.read_text())) for path in (old.results / "perpetual").glob("*/units/*/*")
    ]
    assert sorted((outcome.done, outcome.usage["tokens"]) for outcome in outcomes) == [
        *[(False, 100.0)] * 2,
        *[(True, 100.0)] * 3,
    ]


def test_its_chain_is_worked_to_the_end(old: Old) -> None:
    """A session of today takes over: it verifies the checkpoint, applies the outcome that was persisted, and asks the
    agent for nothing that was done before."""
    agent = Reader()

    end = old.go_on(agent)

    assert (end.ordinal, end.state) == (3, SessionState.FINISHED)
    assert agent._asked == ["paper-2 p3", "summary p1", "letter p1"]
    assert old.ledger.chain(CHAIN).context == {"read": [*READ_BEFORE, "paper-2 p2", *agent._asked]}
    statuses = status_of(old.ledger, CHAIN)
    assert {item for item, status in statuses.items() if status is not ItemStatus.COMPLETED} == {"broken"}
    dead, today = old.ledger.sessions(CHAIN)[1:]
    assert (dead.state, today.verified) == (SessionState.CRASHED, (5, 5))
    assert {name: today.usage[name] for name in ("tokens", "calls")} == {"tokens": 400, "calls": 4}


def test_its_follow_ons_are_known(old: Old) -> None:
    """What it had created is not created again."""
    assert old.ledger.pending_follow_ons() == []
    assert old.ledger.chain(CHAIN).uid in old.ledger.documents(CHAIN, "handoff")[0].key
