"""Checkpoints: written, read back, damaged and compared."""

import hmac
import json
from typing import Any

import pytest
from support import one_line

from perpetual_blocks.checkpoint import Checkpoint, Signer, compare, digest, to_json
from perpetual_blocks.checkpoint.upgrades import SCHEMA, UPGRADES
from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.testing import MemoryDocuments

SIGNER = Signer(b"a secret")


def checkpoint(**changes: Any) -> Checkpoint:
    """A small checkpoint, changed."""
    fields: dict[str, Any] = {
        "chain": "mine",
        "uid": "0123456789abcdef",
        "ordinal": 2,
        "checkpoints": 2,
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


def test_a_cut_checkpoint_is_found() -> None:
    """A checkpoint that was written in part, wherever it was cut, is damaged; both digests are named."""
    text = checkpoint().text()

    for cut in range(len(text)):
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
        ({"schema_version": "2"}, "schema_version"),
        ({"schema_version": 0}, "schema_version"),
        ({"schema_version": None}, "schema_version"),
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

    one_line(refused.value, f"checkpoint.{field}", "expected schema")


def test_a_newer_schema_says_that_it_is_one() -> None:
    """A checkpoint of a version to come is told from a damaged one."""
    text = json.dumps({**json.loads(checkpoint().text()), "schema_version": 3})

    with pytest.raises(DamagedDocument) as refused:
        Checkpoint.read(text, digest(text))

    one_line(refused.value, "checkpoint.schema_version: got 3; expected at most 2", "written by a newer version")


def test_a_checkpoint_of_schema_1_is_upgraded() -> None:
    """It had neither a sequence number, as each session wrote one, nor a version of its context."""
    now = checkpoint(ordinal=7, checkpoints=7)
    first = {**json.loads(now.text()), "schema_version": 1}
    del first["checkpoints"], first["context_version"]
    text = to_json(first, "x")

    assert Checkpoint.read(text, digest(text)) == now


def test_there_is_an_upgrade_for_every_schema() -> None:
    """Each step leads to the next schema, and the last one to this version's."""
    assert sorted(UPGRADES) == list(range(1, SCHEMA))
    for version, upgrade in UPGRADES.items():
        assert upgrade({"schema_version": version})["schema_version"] == version + 1


# Signatures -----------------------------------------------------------------------------------------------------------


def forged(text: str, **changes: Any) -> str:
    """The document with other values, as somebody would write it who can change the ledger's digest too."""
    return to_json({**json.loads(text), **changes}, "x")


def test_a_signed_checkpoint_is_read_back() -> None:
    """With the secret it was signed with; without one, the signature is not looked at."""
    text = checkpoint().text(SIGNER)

    assert Checkpoint.read(text, digest(text), SIGNER) == checkpoint()
    assert Checkpoint.read(text, digest(text)) == checkpoint()
    assert "secret" not in text + repr(SIGNER)


def test_the_signature_is_hmac_sha_256() -> None:
    """Over the document without it, so that it can be checked with any tool."""
    signed = json.loads(checkpoint().text(SIGNER))
    signature = signed.pop("signature")

    assert to_json(signed, "x") == checkpoint().text()
    assert signature == hmac.digest(b"a secret", checkpoint().text().encode(), "sha256").hex()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (checkpoint().text(), "got none"),
        (forged(checkpoint().text(), signature=None), "got none"),
        (forged(checkpoint().text(), signature=5), "got none"),
        (forged(checkpoint().text(), signature=""), "got another"),
        (forged(checkpoint().text(), signature="ü"), "got another"),
        (forged(checkpoint().text(Signer(b"a secret")), units=6), "got another"),
        (forged(checkpoint().text(Signer(b"a secret")), schema_version=1), "got another"),
        (checkpoint().text(Signer(b"another secret")), "got another"),
        ('{"units":NaN,"signature":"x"}', "finite"),
        ('{"signature":"\\ud800"}', "got another"),
    ],
)
def test_a_missing_or_wrong_signature_is_damage(text: str, said: str) -> None:
    """A checkpoint whose digest is right, and that was not written with the secret, is not used."""
    with pytest.raises(DamagedDocument) as found:
        Checkpoint.read(text, digest(text), SIGNER)

    one_line(found.value, "checkpoint", said)


def test_every_flipped_bit_of_a_signed_checkpoint_is_found() -> None:
    """Whichever bit is turned over: by its signature alone, whatever the ledger's digest says."""
    good = checkpoint().text(SIGNER).encode()

    for place in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        try:
            text = damaged.decode()
        except UnicodeDecodeError:
            continue  # the storage's to find
        with pytest.raises(DamagedDocument) as found:
            Checkpoint.read(text, digest(text), SIGNER)
        one_line(found.value)


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
