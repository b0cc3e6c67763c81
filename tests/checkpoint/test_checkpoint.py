"""Checkpoints: written, read back, damaged and compared."""

import json
from typing import Any

import pytest
from support import MemoryDocuments, one_line

from perpetual_blocks.checkpoint import Checkpoint, compare, digest, to_json
from perpetual_blocks.errors import DamagedDocument, StorageError


def checkpoint(**changes: Any) -> Checkpoint:
    """A small checkpoint, changed."""
    fields: dict[str, Any] = {
        "chain": "mine",
        "uid": "0123456789abcdef",
        "ordinal": 2,
        "agent": "Tester",
        "task": "Tests.",
        "items": {"available": 3, "completed": 4},
        "units": 5,
        "context": {"seen": ["ü", 1.5]},
        "next_action": None,
        "usage": {"tokens": 10.0},
        "at": "2023-11-14T22:13:20.000Z",
    }
    return Checkpoint(**{**fields, **changes})


def test_a_checkpoint_is_read_back() -> None:
    """What is read with the digest of what was written is the checkpoint; its text is canonical JSON."""
    written = checkpoint(next_action="page 2")

    assert Checkpoint.read(written.text(), digest(written.text())) == written
    assert to_json(json.loads(written.text()), "x") == written.text()


def test_every_flipped_bit_is_found() -> None:
    """Whichever bit of a checkpoint is turned over, it is not taken for the checkpoint that was written."""
    text = checkpoint().text()
    documents, good = MemoryDocuments(), text.encode()

    for place in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        documents.content["key"] = bytes(damaged)
        with pytest.raises(StorageError) as found:
            Checkpoint.read(documents.read("key"), digest(text))
        one_line(found.value)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cut_checkpoint_is_found(cut: int) -> None:
    """A checkpoint that was written in part is damaged; both digests are named."""
    text = checkpoint().text()

    with pytest.raises(DamagedDocument) as found:
        Checkpoint.read(text[:cut], digest(text))

    one_line(found.value, "checkpoint", digest(text[:cut])[:12], digest(text)[:12])


def test_an_older_checkpoint_in_its_place_is_found() -> None:
    """A whole checkpoint that is not the one that was written is damaged too."""
    with pytest.raises(DamagedDocument):
        Checkpoint.read(checkpoint(ordinal=1).text(), digest(checkpoint(ordinal=2).text()))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"units": "many"}, "units"),
        ({"context": [1]}, "context"),
        ({"items": {"completed": "four"}}, "items.completed"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_another_schema_is_refused(changes: dict[str, Any], field: str) -> None:
    """A document with the right digest that this version does not know is refused; the field is named."""
    text = json.dumps({**json.loads(checkpoint().text()), **changes})

    with pytest.raises(DamagedDocument) as refused:
        Checkpoint.read(text, digest(text))

    one_line(refused.value, f"checkpoint.{field}", "schema 1")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "not JSON"])
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    """Something else under the checkpoint's key is refused in one line."""
    with pytest.raises(DamagedDocument) as refused:
        Checkpoint.read(text, digest(text))

    one_line(refused.value, "checkpoint")


# Comparing ------------------------------------------------------------------------------------------------------------


def disagreements(now: Checkpoint, *, exact: bool) -> list[str]:
    return [name for name, same in compare(checkpoint(), now, exact=exact).items() if not same]


def test_a_checkpoint_agrees_with_itself() -> None:
    """Nothing has changed: every field agrees, and the context is among them after a graceful end only."""
    assert set(compare(checkpoint(), checkpoint(), exact=True)) == {
        "chain",
        "uid",
        "units",
        "completed",
        "usage",
        "context",
    }
    assert disagreements(checkpoint(), exact=True) == []
    assert "context" not in compare(checkpoint(), checkpoint(), exact=False)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"chain": "other"}, "chain"),
        ({"uid": "f" * 16}, "uid"),
        ({"units": 4}, "units"),
        ({"items": {"completed": 3}}, "completed"),
        ({"items": {}}, "completed"),
        ({"usage": {"tokens": 9.0}}, "usage"),
        ({"usage": {}}, "usage"),
    ],
)
@pytest.mark.parametrize("exact", [True, False])
def test_what_was_lost_is_found(changes: dict[str, Any], name: str, exact: bool) -> None:
    """A ledger that has less than the checkpoint, or is another chain's, disagrees, after a crash too."""
    assert disagreements(checkpoint(**changes), exact=exact) == [name]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"units": 6}, "units"),
        ({"items": {"completed": 5}}, "completed"),
        ({"usage": {"tokens": 11.0}}, "usage"),
        ({"context": {}}, "context"),
    ],
)
def test_a_ledger_that_is_ahead(changes: dict[str, Any], name: str) -> None:
    """After a crash the ledger is ahead of the checkpoint, and that is right; after a graceful end it is not."""
    assert disagreements(checkpoint(**changes), exact=False) == []
    assert disagreements(checkpoint(**changes), exact=True) == [name]


def test_items_that_were_added_in_between_change_nothing() -> None:
    """Somebody may add items between two sessions: what was completed is compared, not what is open."""
    assert disagreements(checkpoint(items={"available": 30, "completed": 4}), exact=True) == []
