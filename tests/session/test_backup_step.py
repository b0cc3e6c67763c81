"""Backups at the end of real sessions, and what the sessions of a restored chain find."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support import KINDS, FakeClock, LedgerFactory, MemorySavedWork, session_request

from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import StorageError
from perpetual_blocks.session.backup import Indexes, rebuild
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.world import World
from perpetual_blocks.testing import LocalUnits, MemoryDocuments
from perpetual_blocks.work import ItemStatus, Unit, WorkItem

TWO_UNITS = Budget(Limit("tokens", 230, threshold=0.85))


class Writer(PerpetualAgent):
    """Writes chapters, two units each, and remembers them."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"chapter-{n}") for n in range(6)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100)
        unit.context["written"] = [*unit.context.get("written", []), f"{unit.id}.{unit.number}"]
        if unit.number < 2:
            return unit.advance(cursor=unit.number, progress=(unit.number, 2))
        return unit.id


class Full(MemoryDocuments):
    """A storage that can be full."""

    full = False

    def write(self, key: str, text: str) -> None:
        if self.full:
            raise StorageError("backup storage: no space left")
        super().write(key, text)


@dataclass
class Desk:
    """A chain's world, of which the ledger can be exchanged."""

    ledger: SqlLedger
    clock: FakeClock
    documents: MemoryDocuments = field(default_factory=MemoryDocuments)
    backup: Full = field(default_factory=Full)
    saved_work: MemorySavedWork = field(default_factory=MemorySavedWork)
    started: int = 0

    def __post_init__(self) -> None:
        self.runner = LocalUnits(Writer(), MemoryDocuments(), self.clock)

    def session(self, budget: Budget = TWO_UNITS) -> SessionEnd:
        """The chain's next session."""
        self.started += 1
        settings = {"kinds": list(KINDS), "budget": budget.to_json()}
        request = session_request(holder=f"holder-{self.started}", agent="Writer", settings=settings)
        world = World(
            ledger=self.ledger,
            documents=self.documents,
            runner=self.runner,
            saved_work=self.saved_work,
            clock=self.clock,
            backup=self.backup,
        )
        return Session(Writer(), request, budget, world, task="Write.").run()

    def restore(self, ledger: SqlLedger) -> None:
        """Loses the ledger, and goes on with a new one."""
        rebuild(ledger, self.backup, "mine")
        with ledger._writing() as connection:  # as `perpetual resume` does
            connection.execute(schema.chains.update().values(status=ChainStatus.WAITING))
        self.ledger = ledger

    def failed_steps(self) -> dict[str, str]:
        """The failed steps of the latest session."""
        return {step["step"]: step["error"] for step in self.ledger.sessions("mine")[-1].steps if not step["ok"]}


@pytest.fixture
def desk(make_ledger: LedgerFactory, clock: FakeClock) -> Desk:
    """A chain that has not begun."""
    return Desk(make_ledger(), clock)


def test_what_was_finished_after_the_last_backup_is_not_run_again(
    desk: Desk, make_ledger: LedgerFactory, tmp_path: Path
) -> None:
    """A session whose backup failed is lost with its ledger; the units that it finished are found in the results
    storage and applied when the restored chain comes to them, so that each unit ran once."""
    undisturbed = Desk(make_ledger(str(tmp_path / "undisturbed.db")), FakeClock())
    while undisturbed.session().state is SessionState.WRAPPED:
        pass

    desk.session()
    desk.session()
    desk.backup.full = True
    desk.session()
    lost = list(desk.runner.ran)
    desk.backup.full = False
    desk.restore(make_ledger(str(tmp_path / "other.db")))
    assert desk.ledger.chain("mine").ordinal == 2
    assert sum(item.units for item in desk.ledger.items("mine")) < len(lost)
    while desk.session().state is SessionState.WRAPPED:
        pass

    assert len(desk.runner.ran) == len(set(desk.runner.ran)) == 12
    assert desk.ledger.counts("mine")[ItemStatus.COMPLETED] == 6
    assert desk.ledger.chain("mine").context == undisturbed.ledger.chain("mine").context
    assert sorted(desk.runner.documents.content.values()) == sorted(undisturbed.runner.documents.content.values())


def test_a_restored_chain_agrees_with_its_checkpoint(desk: Desk, make_ledger: LedgerFactory, tmp_path: Path) -> None:
    """Nothing happened between a session's checkpoint and its backup, and the next session finds that confirmed."""
    desk.session()
    desk.restore(make_ledger(str(tmp_path / "other.db")))

    desk.session()

    [restored, second] = desk.ledger.sessions("mine")
    assert (restored.state, restored.stop_reason) == (SessionState.WRAPPED, "restored")
    assert second.verified is not None
    assert second.verified[0] == second.verified[1] > 0


def test_a_backup_that_failed_is_made_up_by_the_next(desk: Desk, make_ledger: LedgerFactory, tmp_path: Path) -> None:
    """A full backup storage never stops the chain; the handoff tells, and the next backup has what was missed."""
    desk.session()
    desk.backup.full = True
    desk.session()
    assert desk.failed_steps() == {"back_up_ledger": "StorageError: backup storage: no space left"}
    handoff = desk.ledger.documents("mine", "handoff")[0]
    assert "- back_up_ledger: StorageError: backup storage: no space left" in desk.documents.read(handoff.key)

    desk.backup.full = False
    desk.session()

    assert desk.failed_steps() == {}
    index = Indexes.of(desk.backup, "mine").newest
    assert index is not None
    assert [segment.mark.ordinal for segment in index.segments] == [1, 3]
    before = {item.id: item for item in desk.ledger.items("mine")}
    desk.restore(make_ledger(str(tmp_path / "other.db")))
    # Of what is open it is not known whether it was begun after the backup: its outcome is looked for.
    assert {item.id: replace(item, claims=before[item.id].claims) for item in desk.ledger.items("mine")} == before


def test_the_ledger_points_at_the_latest_index_only(desk: Desk) -> None:
    """However many backups there were, the ledger has one entry for them, which is the newest index."""
    for _ in range(4):
        desk.session()

    [entry] = desk.ledger.documents("mine", "backup")
    index = Indexes.of(desk.backup, "mine").newest
    assert index is not None
    assert (entry.ordinal, desk.backup.read(entry.key)) == (4, index.text())


def test_checkpoint_and_handoff_are_copied(desk: Desk) -> None:
    """Both documents of a session lie in the second storage, too, under the same keys."""
    desk.session()

    kinds = ("checkpoint", "handoff")
    keys = [document.key for kind in kinds for document in desk.ledger.documents("mine", kind)]
    assert desk.saved_work.backups == {key: desk.documents.read(key) for key in keys}
