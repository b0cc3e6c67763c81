"""Forgetting: which chains are over for good, and how they go, so that a ledger that serves for years stays small.

A queue's chains go together, because each holds a part of its items' story. Their documents go first, and then their
rows: documents that are gone while the rows are left are repaired by doing it again, and the other way round nobody
would know of the documents any more.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import StorageError
from perpetual_blocks.session.chain import Chain, ChainStatus
from perpetual_blocks.session.documents import document_folders
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.work import ItemStatus

# Which may go ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What may be forgotten.

    Attributes:
        queues: The chains of each queue that may go, its owner first; the queue that rests longest comes first.
        kept: Why chains are kept that are over and old themselves, by name.
    """

    queues: list[list[Chain]]
    kept: dict[str, str]


def is_old(chain: Chain, before: float) -> bool:
    """Whether a chain is over for good, and nobody has touched it since that moment."""
    return chain.status in (ChainStatus.FINISHED, ChainStatus.CANCELLED) and chain.updated_at < before


def judge(chains: Iterable[Chain], pinned: Collection[str], before: float) -> Judgement:
    """Which of a ledger's chains may be forgotten.

    Args:
        chains: All chains of the queues that are judged.
        pinned: Those with a checkpoint that is kept for good.
        before: Whoever was touched at this moment or later is kept, in seconds since the Unix epoch.
    """
    queues: dict[str, list[Chain]] = {}
    for chain in sorted(chains, key=lambda chain: (not chain.owns_queue, chain.name)):
        queues.setdefault(chain.queue, []).append(chain)
    going: list[list[Chain]] = []
    kept: dict[str, str] = {}
    for of_queue in queues.values():
        why = next((reason for chain in of_queue if (reason := _why_kept(chain, pinned, before))), None)
        if why is None:
            going.append(of_queue)
        else:
            kept |= {chain.name: why for chain in of_queue if is_old(chain, before)}
    return Judgement(sorted(going, key=lambda of_queue: max(chain.updated_at for chain in of_queue)), kept)


def _why_kept(chain: Chain, pinned: Collection[str], before: float) -> str | None:
    if not is_old(chain, before):
        return f"{chain.name}, which works on its queue, is {chain.status} since {isoformat(chain.updated_at)}"
    return f"a checkpoint of {chain.name} is pinned" if chain.name in pinned else None


# Forgetting them ------------------------------------------------------------------------------------------------------


class ForgetfulLedger(Protocol):
    """What forgetting needs of the ledger."""

    def chains(self, queue: str | None = None) -> list[Chain]:
        """All chains, or those that work on a queue."""

    def counts(self, chain: str) -> dict[ItemStatus, int]:
        """How many items of the chain's queue have each status."""

    def documents(self, chain: str, kind: Literal["checkpoint", "handoff", "backup"]) -> list[Document]:
        """A chain's documents of one kind, the latest first."""

    def retire(self, queue: str, before: float) -> bool:
        """Lets no run open the chains of a queue any more; whether they may still be forgotten.

        They stay as old as they are, so that they are found again should nothing more come of it.
        """

    def forget(self, queue: str, before: float) -> bool:
        """Deletes all rows of the chains of a queue, if they may still be forgotten; whether they are gone.

        What they have spent of a pool stays, as far as the pool counts it.
        """

    def tidy_pools(self, before: float, *, dry_run: bool = False) -> int:
        """Deletes what pools do not count any more: spends that are older than that, and reservations that ran out.

        Returns:
            How many these are, of the spends and reservations; they are only counted with `dry_run`.
        """


class Storage(Protocol):
    """What forgetting needs of the results storage."""

    def measure(self, folder: str) -> tuple[int, int] | None:
        """How many documents a folder holds, and how many bytes; None where the storage cannot delete them."""

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder with all that it holds, where the storage can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """A chain that went, or would go.

    Attributes:
        items: Those of its own queue.
        documents: How many it had in the results storage, outcomes too; None where the storage cannot delete them.
        size: Their bytes.
        backup: Where the index of its backup lies, which stays.
    """

    chain: Chain
    items: int
    documents: int | None
    size: int
    backup: str | None


@dataclass(slots=True)
class Pruned:
    """What came of it.

    Attributes:
        kept: Why chains were kept that are over and old, by name.
        failed: What the storage said where it could not delete a chain's documents, by name.
        pool_rows: How many rows went that pools do not count any more.
    """

    forgotten: list[Forgotten] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    pool_rows: int = 0


def prune(ledger: ForgetfulLedger, storage: Storage, before: float, *, dry_run: bool = False) -> Pruned:
    """Forgets the chains that are over for good and that nobody has touched since a moment.

    Args:
        dry_run: Says what would go, and changes nothing.
    """
    chains = ledger.chains()
    pinned = {chain.name for chain in chains if is_old(chain, before) and _is_pinned(ledger, chain)}
    judged = judge(chains, pinned, before)
    pruned = Pruned(kept=judged.kept)
    for of_queue in judged.queues:
        try:
            # Looked at first: where the storage is away, nothing is begun.
            forgotten = [_measured(ledger, storage, chain, of_queue) for chain in of_queue]
            goes = dry_run or _forget(ledger, storage, of_queue, before)
        except StorageError as error:
            pruned.failed |= {chain.name: str(error) for chain in of_queue}
            continue
        if goes:
            pruned.forgotten += forgotten
        else:
            pruned.kept |= {chain.name: "somebody has just touched it, or its queue" for chain in of_queue}
    pruned.pool_rows = ledger.tidy_pools(before, dry_run=dry_run)
    return pruned


def _forget(ledger: ForgetfulLedger, storage: Storage, of_queue: list[Chain], before: float) -> bool:
    queue = of_queue[0].queue
    if not ledger.retire(queue, before):
        return False
    for chain in of_queue:
        for folder in _folders(chain, of_queue):
            storage.delete_folder(folder)
    return ledger.forget(queue, before)


def _is_pinned(ledger: ForgetfulLedger, chain: Chain) -> bool:
    return any(document.pinned for document in ledger.documents(chain.name, "checkpoint"))


def _measured(ledger: ForgetfulLedger, storage: Storage, chain: Chain, of_queue: list[Chain]) -> Forgotten:
    found = [storage.measure(folder) for folder in _folders(chain, of_queue)]
    measured = [one for one in found if one is not None]
    backups = ledger.documents(chain.name, "backup")
    return Forgotten(
        chain=chain,
        items=sum(ledger.counts(chain.name).values()) if chain.owns_queue else 0,
        documents=sum(documents for documents, _ in measured) if len(measured) == len(found) else None,
        size=sum(size for _, size in measured),
        backup=backups[0].key if backups else None,
    )


def _folders(chain: Chain, of_queue: list[Chain]) -> list[str]:
    """Where its documents may lie: nowhere, of a queue that no session has ever worked on."""
    return document_folders(chain.name, chain.uid) if any(one.ordinal for one in of_queue) else []
