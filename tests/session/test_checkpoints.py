"""A chain's checkpoints: their keys, numbers, signatures, size, and which of them are kept."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support import LEASE, LedgerFactory, open_session
from test_loop import MakeRig, Reader, Rig, make_rig, tokens

from perpetual_blocks.checkpoint import Checkpoint, Signer
from perpetual_blocks.errors import DamagedDocument
from perpetual_blocks.session.advice import CHECKPOINT_BUDGET
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.session.documents import checkpoints_so_far
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.telemetry import CheckpointLarge
from perpetual_blocks.usage import show_bytes
from perpetual_blocks.work import Unit, WorkItem

__all__ = ["make_rig"]

SIGNER = Signer(b"a secret")


def kept(rig: Rig) -> list[int]:
    """The sessions whose checkpoints the ledger points at."""
    return [document.ordinal for document in rig.ledger.documents("mine", "checkpoint")]


def saved(rig: Rig, ordinal: int, signer: Signer | None = None) -> Checkpoint:
    """A session's checkpoint, checked."""
    entry = next(one for one in rig.ledger.documents("mine", "checkpoint") if one.ordinal == ordinal)
    return Checkpoint.read(rig.documents.read(entry.key), entry.digest, signer)


# Keys and numbers -----------------------------------------------------------------------------------------------------


def test_no_key_is_used_twice(make_rig: MakeRig, make_ledger: LedgerFactory, tmp_path: Path) -> None:
    """A chain whose ledger is brought back from a copy comes to a session a second time: it writes new documents, and
    overwrites none."""
    rig = make_rig(Reader(documents=4))
    rig.run(tokens(100))
    rig.ledger.close()
    copy = shutil.copyfile(tmp_path / "ledger.db", tmp_path / "copy.db")

    for address in (tmp_path / "ledger.db", copy):
        rig.ledger, rig.started = make_ledger(str(address)), 1
        assert rig.run(tokens(100)).ordinal == 2

    names = Counter(key.rpartition("/")[2].partition("-")[0] for key in rig.documents.content)
    assert names == {"000001": 2, "000002": 4}
    assert all(re.fullmatch(r".*/\d{6}-[0-9a-f]{6}\.(json|md)", key) for key in rig.documents.content)
    assert saved(rig, 2).ordinal == 2


def test_checkpoints_are_numbered(make_rig: MakeRig) -> None:
    """The sequence number counts those that were written, also the ones that are gone; what a dead session could not
    write, the next one did."""
    rig = make_rig(Reader(documents=9))
    rig.run(tokens(100), keep_checkpoints=2)
    open_session(rig.ledger, "mine", "dead", agent="Reader")
    rig.clock.advance(LEASE + 1)
    rig.started += 1
    for _ in range(3):
        rig.run(tokens(100), keep_checkpoints=2)

    assert kept(rig) == [5, 4]
    assert [saved(rig, ordinal).checkpoints for ordinal in (4, 5)] == [4, 5]
    assert checkpoints_so_far([], [], 1) == 1


# Signatures -----------------------------------------------------------------------------------------------------------


def test_signed_checkpoints_are_verified(make_rig: MakeRig) -> None:
    """A session signs what it saves, and the next one checks it; the backup is signed too."""
    rig = make_rig(Reader())
    for _ in range(2):
        rig.run(tokens(100), signer=SIGNER)

    assert saved(rig, 2, SIGNER).ordinal == 2
    with pytest.raises(DamagedDocument):
        saved(rig, 2, Signer(b"another secret"))
    copies = [text for key, text in rig.saved_work.backups.items() if "/checkpoints/" in key]
    assert len(copies) == 2
    assert all("signature" in json.loads(text) for text in copies)
    assert [session.verified for session in rig.ledger.sessions("mine")] == [None, (6, 6)]


def test_a_checkpoint_that_was_not_signed_is_passed_over(make_rig: MakeRig) -> None:
    """A missing and a wrong signature are damage, whatever the digest says: the one before is used, and the handoff
    says so."""
    rig = make_rig(Reader())
    rig.run(tokens(100), signer=SIGNER)
    rig.run(tokens(100), signer=Signer(b"another secret"))
    rig.run(tokens(100))

    rig.run(tokens(100), signer=SIGNER)

    handoff = rig.document("handoff", 4)
    assert "- the checkpoint of session 3 is not usable (checkpoint.signature: got none; expected one by" in handoff
    assert "- the checkpoint of session 2 is not usable (checkpoint.signature: got another; expected one by" in handoff
    assert "- the checkpoint of session 1 agrees with the ledger in 5 fields" in handoff


# Size -----------------------------------------------------------------------------------------------------------------


class Hoarder(Reader):
    """Keeps everything in its context."""

    size: int

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="a"), WorkItem(id="b")]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100)
        unit.context["all"] = "x" * self.size


def test_a_large_checkpoint_is_told(make_rig: MakeRig) -> None:
    """More than 256 KiB: whoever observes is told, the handoff and the status advise, and the chain goes on."""
    rig = make_rig(Hoarder(size=CHECKPOINT_BUDGET))

    end = rig.run(tokens(100))

    assert end.state is SessionState.WRAPPED
    [moment] = rig.told(CheckpointLarge)
    (document,) = rig.ledger.documents("mine", "checkpoint")
    assert moment == CheckpointLarge("mine", 1, document.size, 256 * 1024)
    has = f"The checkpoint has {show_bytes(document.size)}, more than 256.0 KiB"
    said = f"{has}: keep large data in files, and their names in the context."
    assert f"- {said}" in rig.document("handoff", 1)
    assert chain_status(rig.ledger, "mine")["advice"] == [said]


def test_a_checkpoint_within_its_size_is_not_told(make_rig: MakeRig) -> None:
    """One of 255 KiB is as it should be."""
    rig = make_rig(Hoarder(size=CHECKPOINT_BUDGET - 1024))

    rig.run(tokens(100))

    assert rig.told(CheckpointLarge) == []
    assert chain_status(rig.ledger, "mine")["advice"] == []


# Retention ------------------------------------------------------------------------------------------------------------


def test_pinned_checkpoints_are_kept(make_rig: MakeRig) -> None:
    """However many newer ones there are, with their documents; unpinned, they go like any other."""
    rig = make_rig(Reader(documents=9))
    rig.run(tokens(100), keep_checkpoints=2)
    assert rig.ledger.pin_checkpoint("mine", 1, pinned=True)
    for _ in range(4):
        rig.run(tokens(100), keep_checkpoints=2)

    assert kept(rig) == [5, 4, 1]
    assert saved(rig, 1).ordinal == 1

    rig.ledger.pin_checkpoint("mine", 1, pinned=False)
    rig.run(tokens(100), keep_checkpoints=2)
    assert kept(rig) == [6, 5]
    assert len([key for key in rig.documents.content if "/checkpoints/" in key]) == 2
