"""The handoff of the session before, in the next session's agent."""

from collections.abc import Iterable

import pytest
from pydantic import PrivateAttr
from session_rig import Rig, tokens
from support import FakeClock, LedgerFactory

from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.testing import run_chain
from perpetual_blocks.work import Unit, WorkItem


class Heir(PerpetualAgent):
    """Notes the handoff that it finds in each unit."""

    _found: list[str | None] = PrivateAttr(default_factory=list)

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"doc-{n}") for n in range(6)]

    def work_unit(self, unit: Unit) -> None:
        unit.spend(tokens=100)
        self._found.append(self.handoff)

    def create_handoff(self, handoff: Handoff) -> Handoff:
        handoff.notes.append(f"told by session {handoff.ordinal}")
        return handoff


@pytest.fixture
def rig(make_ledger: LedgerFactory, clock: FakeClock) -> Rig:
    """A chain whose sessions have room for two units."""
    return Rig(make_ledger(), clock, Heir())


def test_each_session_has_the_handoff_of_the_one_before(rig: Rig) -> None:
    """The document as it is stored, with the agent's own notes; the first session has none."""
    rig.run_chain(tokens(200))

    first, second = rig.document("handoff", 1), rig.document("handoff", 2)
    assert "told by session 1" in first
    assert rig.agent._found == [None, None, first, first, second, second]


def test_an_agent_outside_of_any_session_has_none() -> None:
    """It can be asked for wherever an agent is."""
    assert Heir().handoff is None


def test_it_is_read_once_and_not_before_it_is_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose agent does not want it reads nothing; one that does reads it once."""
    rig.run(tokens(200))
    read: list[str] = []
    plain = rig.documents.read

    def noted(key: str) -> str:
        read.extend([key] if "/handoffs/" in key else [])
        return plain(key)

    monkeypatch.setattr(rig.documents, "read", noted)
    rig.run(tokens(200))
    written, before = rig.ledger.documents("mine", "handoff")
    assert read.count(before.key) == 1
    assert read.count(written.key) == 1, "what is written is read back"


@pytest.mark.parametrize("damage", ["gone", "changed", "bytes"])
def test_one_that_cannot_be_read_is_none_and_fails_nothing(rig: Rig, damage: str) -> None:
    """Missing, changed, or no text at all: the work goes on without."""
    rig.run(tokens(200))
    key = rig.ledger.documents("mine", "handoff")[0].key
    if damage == "gone":
        rig.documents.delete(key)
    else:
        rig.documents.content[key] = b"something else" if damage == "changed" else b"\xff\xfe"

    assert rig.run().state is SessionState.FINISHED
    assert rig.agent._found[2:] == [None] * 4


def test_a_killed_session_is_told_of_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left no handoff: the next session has written one before its agent asks."""
    rig.run(tokens(200))
    monkeypatch.setattr(type(rig.ledger), "close_session", _dies)
    with pytest.raises(KeyboardInterrupt):
        rig.run(tokens(200))
    monkeypatch.undo()
    rig.ledger.declare_dead("mine", 2)

    assert rig.run().state is SessionState.FINISHED
    assert rig.agent._found[-1] is not None
    assert rig.agent._found[-1].startswith("# mine · session 2")


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_users_tests_have_it_too() -> None:
    """`run_chain` hands over as every other session does."""
    agent = Heir()
    runs = run_chain(agent, budget=tokens(200))

    assert agent._found == [None, None, *[runs[0].handoff] * 2, *[runs[1].handoff] * 2]
