"""Restoring: the latest checkpoint that is whole is found, and compared with the ledger."""

from typing import Any

import pytest

from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.session.restore import Restored, restore
from perpetual_blocks.testing import MemoryDocuments


def checkpoint(ordinal: int, **changes: Any) -> Checkpoint:
    """The checkpoint of a session: two items and 20 tokens a session."""
    fields: dict[str, Any] = {
        "chain": "mine",
        "uid": "0123456789abcdef",
        "ordinal": ordinal,
        "checkpoints": ordinal,
        "agent": "Tester",
        "task": "Tests.",
        "items": {"completed": 2 * ordinal},
        "units": 2 * ordinal,
        "context": {"sessions": ordinal},
        "next_action": None,
        "usage": {"tokens": 20.0 * ordinal},
        "at": "2023-11-14T22:13:20.000Z",
    }
    return Checkpoint(**{**fields, **changes})


class Saved:
    """Three sessions' checkpoints in a storage, the latest first in the index."""

    def __init__(self) -> None:
        self.documents = MemoryDocuments()
        self.index = [self._save(ordinal) for ordinal in (3, 2, 1)]

    def _save(self, ordinal: int) -> Document:
        text = checkpoint(ordinal).text()
        self.documents.write(f"key/{ordinal}", text)
        return Document("checkpoint", ordinal, f"key/{ordinal}", digest(text), len(text))

    def restore(self, now: Checkpoint, *, graceful: bool = True) -> Restored:
        return restore(self.index, self.documents, now, graceful=graceful)


@pytest.fixture
def saved() -> Saved:
    """A storage with three good checkpoints."""
    return Saved()


def test_there_is_nothing_to_restore() -> None:
    """Without a checkpoint there is nothing to verify and nothing to say."""
    assert restore([], MemoryDocuments(), checkpoint(1), graceful=True) == Restored(None, ())


def test_all_is_as_it_was(saved: Saved) -> None:
    """After a graceful end every field agrees, the context included."""
    restored = saved.restore(checkpoint(3))

    assert restored.verified == (6, 6)
    assert restored.notes == ("the checkpoint of session 3 agrees with the ledger in 6 fields",)


def test_the_ledger_is_ahead_after_a_crash(saved: Saved) -> None:
    """A session that died has committed more than the last checkpoint says: that agrees."""
    restored = saved.restore(checkpoint(4), graceful=False)

    assert restored.verified == (5, 5)
    assert restored.notes == ("the checkpoint of session 3 agrees with the ledger in 5 fields",)


def test_disagreement_is_counted_and_noted(saved: Saved) -> None:
    """What does not agree is named, and the ledger is what counts."""
    restored = saved.restore(checkpoint(3, units=5, context={}))

    assert restored.verified == (6, 4)
    assert restored.notes == (
        "the checkpoint of session 3 and the ledger disagree in units, context; the ledger is used",
    )


def test_a_damaged_checkpoint_is_passed_over(saved: Saved) -> None:
    """Where the latest checkpoint is damaged the one before is used, by the rules for a ledger that is ahead of it."""
    content = saved.documents.content["key/3"]
    saved.documents.content["key/3"] = content.replace(b"Tester", b"Tastor")

    restored = saved.restore(checkpoint(3))

    assert restored.verified == (5, 5)
    damaged, used = restored.notes
    assert damaged.startswith("the checkpoint of session 3 is not usable (checkpoint: got SHA-256 ")
    assert damaged.endswith("; the one before is used")
    assert used == "the checkpoint of session 2 agrees with the ledger in 5 fields"


def test_a_missing_checkpoint_is_passed_over(saved: Saved) -> None:
    """A checkpoint that cannot be read is treated as a damaged one, with what the storage said."""
    del saved.documents.content["key/3"], saved.documents.content["key/2"]

    restored = saved.restore(checkpoint(3))

    assert restored.verified == (5, 5)
    assert [note.partition(" (")[0] for note in restored.notes] == [
        "the checkpoint of session 3 is not usable",
        "the checkpoint of session 2 is not usable",
        "the checkpoint of session 1 agrees with the ledger in 5 fields",
    ]
    assert "cannot read key/3" in restored.notes[0]


def test_no_checkpoint_is_usable(saved: Saved) -> None:
    """With every checkpoint gone the session goes on from the ledger, and the handoff will say what was lost."""
    saved.documents.content.clear()

    restored = saved.restore(checkpoint(3))

    assert restored.verified is None
    assert len(restored.notes) == 3
    assert "the one before is used" not in restored.notes[-1], "there is none before the first"


def test_notes_are_lines(saved: Saved) -> None:
    """Each note is one line, for the handoff's list."""
    saved.documents.content["key/3"] = b"\xff\n\xff"

    assert not [note for note in saved.restore(checkpoint(3)).notes if "\n" in note]
