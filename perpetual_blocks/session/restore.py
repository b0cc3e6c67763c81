"""Restoring: what a new session checks before its first unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from perpetual_blocks.checkpoint import Checkpoint, Signer, compare, digest
from perpetual_blocks.errors import DamagedDocument, PerpetualError, StorageError
from perpetual_blocks.session.chain import SessionRecord
from perpetual_blocks.session.ledger import Document, Ledger
from perpetual_blocks.session.ports import Documents


@dataclass(frozen=True, slots=True)
class Restored:
    """What was found.

    Attributes:
        verified: How many fields of the checkpoint were checked, and how many agreed; None where there is none.
        notes: One line for everything that the next handoff should tell.
    """

    verified: tuple[int, int] | None
    notes: tuple[str, ...]


def restore(
    index: Sequence[Document],
    documents: Documents,
    now: Checkpoint,
    *,
    graceful: bool,
    shared: bool = False,
    signer: Signer | None = None,
) -> Restored:
    """Finds the latest checkpoint that is whole, and compares it with the ledger.

    Args:
        index: The chain's checkpoints, the latest first.
        now: What a checkpoint would say now.
        graceful: Whether the session before ended by itself, so that nothing can have changed since.
        shared: Whether other chains work on its queue: what is done of it may have become more since.
        signer: Checks that the checkpoint is signed, where checkpoints are.
    """
    notes: list[str] = []
    for position, entry in enumerate(index):
        try:
            checkpoint = Checkpoint.read(documents.read(entry.key), entry.digest, signer)
        except (DamagedDocument, StorageError) as error:
            then = "; the one before is used" if position + 1 < len(index) else "; there is no other"
            notes.append(f"the checkpoint of session {entry.ordinal} is not usable ({error}){then}")
            continue
        exact = graceful and position == 0 and entry.ordinal >= now.ordinal - 1
        agreed = compare(checkpoint, now, exact=exact, shared=shared)
        wrong = [name for name, same in agreed.items() if not same]
        if wrong:
            notes.append(
                f"the checkpoint of session {entry.ordinal} and the ledger disagree in {', '.join(wrong)}; "
                "the ledger is used"
            )
        else:
            notes.append(f"the checkpoint of session {entry.ordinal} agrees with the ledger in {len(agreed)} fields")
        return Restored((len(agreed), len(agreed) - len(wrong)), tuple(notes))
    return Restored(None, tuple(notes))


def handoff_reader(
    ledger: Ledger, documents: Documents, previous: SessionRecord | None, chain: str
) -> Callable[[], str | None]:
    """What reads the handoff of the session before, once, when it is first asked for.

    It is for reading only, so where it is missing, damaged or out of reach it is None, and the work goes on without.
    """

    @cache
    def read() -> str | None:
        if previous is None:
            return None
        try:
            entry = next(one for one in ledger.documents(chain, "handoff") if one.ordinal == previous.ordinal)
            text = documents.read(entry.key)
        except (PerpetualError, StopIteration):
            return None
        return text if digest(text) == entry.digest else None

    return read
