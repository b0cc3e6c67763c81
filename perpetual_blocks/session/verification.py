"""Verifying a chain: whether its rows agree with each other, and every document is what its row says.

`find_wrong_rows` of `consistency` judges the rows. `Verification` reads the documents and results too, and repairs what
can be repaired: the rest is reported with what a person may do.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.session.backup import BackupIndex
from perpetual_blocks.session.consistency import ChainFacts, ItemFacts, Problem, Repair, ResultFacts, find_wrong_rows
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.session.ports import Documents
from perpetual_blocks.work import Outcome

RESULTS_PAGE = 500


class VerifiableLedger(Protocol):
    """What a verification needs of the ledger."""

    def facts(self, chain: str) -> AbstractContextManager[ChainFacts]:
        """A snapshot of the chain's rows. Raises `UnknownChain`."""

    def documents(self, chain: str, kind: Literal["checkpoint", "handoff", "backup"]) -> list[Document]:
        """A chain's documents of one kind, the latest first."""

    def results(self, chain: str, after: str, limit: int) -> list[ResultFacts]:
        """Where the outcomes of a chain's items lie, in the order of their ids, after that one."""

    def finished_in(self, chain: str, item: str, unit: int) -> tuple[str, int, str | None] | None:
        """The session that finished a unit of an item of the chain's queue: its chain, its ordinal and its flow run;
        None if the account does not say."""

    def repair_items(self, chain: str, ids: Sequence[str]) -> None:
        """Counts blockers again, and gives back what no running session has claimed. Raises `Superseded`."""

    def forget_document(self, chain: str, document: Document) -> None:
        """Points at a document no more. Raises `Superseded`: a session works on the chain."""


class Outcomes(Protocol):
    """The results storage, for outcomes."""

    def read(self, key: str) -> Outcome:
        """Reads an outcome. Raises `StorageError`, or `DamagedDocument`."""


Progress = Callable[[int, int], None]
"""Told how many results have been read so far, and of how many."""


@dataclass(slots=True)
class Checked:
    """How much was looked at, and what was not."""

    rows: int = 0
    documents: int = 0
    results: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Verification:
    """Checks a chain, and repairs it.

    Attributes:
        backup: The second storage; None where there is none.
        working: Whether a session was at work when the rows were read: then nothing is repaired.
    """

    ledger: VerifiableLedger
    documents: Documents
    outcomes: Outcomes
    backup: Documents | None
    chain: str
    checked: Checked = field(default_factory=Checked)
    working: bool = False
    _results: int = 0

    def problems(self, progress: Progress = lambda done, total: None) -> Iterator[Problem]:
        """Everything that is wrong, as it is found. A session may be at work meanwhile: it is not disturbed."""
        with self.ledger.facts(self.chain) as facts:
            self.working = facts.working
            counted = ChainFacts(
                **{name: getattr(facts, name) for name in ChainFacts.__slots__ if name != "items"},
                items=self._count(facts.items),
            )
            wrong = list(find_wrong_rows(counted))
            self.checked.rows += len(facts.sessions) + len(facts.outbox) + 1
        yield from wrong
        yield from self._wrong_documents()
        yield from self._wrong_results(progress)

    def repair(self, problems: Iterable[Problem]) -> list[Problem]:
        """Repairs what can be repaired; returns those that were.

        Raises:
            Superseded: a session works on the chain.
        """
        possible = [problem for problem in problems if problem.repair is not None]
        items = [problem.target for problem in possible if isinstance(problem.target, str)]
        if items or any(problem.repair == "tally" for problem in possible):
            self.ledger.repair_items(self.chain, items)
        for problem in possible:
            if isinstance(problem.target, Document) and not (problem.repair == "copy" and self._copy(problem.target)):
                self.ledger.forget_document(self.chain, problem.target)
        return possible

    def _count(self, items: Iterable[ItemFacts]) -> Iterator[ItemFacts]:
        for item in items:
            self.checked.rows += 1
            self._results += bool(item.result_key)
            yield item

    def _wrong_documents(self) -> Iterator[Problem]:
        for kind in ("checkpoint", "handoff"):
            for document in self.ledger.documents(self.chain, kind):
                self.checked.documents += 1
                why = _why_unusable(self.documents, document)
                # A session that is at work lets go of old checkpoints: first of the row, then of the document.
                if why is not None and document in self.ledger.documents(self.chain, kind):
                    copy = self.backup is not None and _why_unusable(self.backup, document) is None
                    repair: Repair = "copy" if copy else "forget"
                    where = f"{kind} of session {document.ordinal}"
                    yield Problem(what=kind, where=where, found=why, repair=repair, target=document)
        for document in self.ledger.documents(self.chain, "backup"):
            yield from self._wrong_backup(document)

    def _wrong_backup(self, document: Document) -> Iterator[Problem]:
        if self.backup is None:
            note = f"the backup of session {document.ordinal} was not looked at: this store has no backup storage"
            self.checked.notes.append(note)
            return
        self.checked.documents += 1
        why = _why_unusable(self.backup, document)
        if why is None:
            for part in BackupIndex.read(self.backup.read(document.key)).parts():
                self.checked.documents += 1
                why = why or _why_unusable(self.backup, Document("backup", 0, part.key, part.digest, part.size))
        # A backup that was made meanwhile may have taken its place.
        if why is not None and document in self.ledger.documents(self.chain, "backup"):
            yield Problem(
                what="backup",
                where=f"backup of session {document.ordinal}",
                found=why,
                repair="forget",
                target=document,
            )

    def _wrong_results(self, progress: Progress) -> Iterator[Problem]:
        after = ""
        while page := self.ledger.results(self.chain, after, RESULTS_PAGE):
            for result in page:
                why = self._why_lost(result)
                self.checked.results += 1
                progress(self.checked.results, max(self._results, self.checked.results))
                if why is not None:
                    yield self._lost(result, why)
            after = page[-1].item

    def _why_lost(self, result: ResultFacts) -> str | None:
        try:
            outcome = self.outcomes.read(result.key)
        except StorageError as error:
            return str(error)
        if outcome.done != result.completed:
            said, status = ("is done", "open") if outcome.done else ("goes on", "completed")
            return f"{result.key} is of another unit: it says that the item {said}, and the item is {status}"
        return None

    def _lost(self, result: ResultFacts, why: str) -> Problem:
        made = self.ledger.finished_in(self.chain, result.item, result.unit)
        by = f"; session {made[1]} of {made[0]} made it" if made is not None else ""
        by += f" in flow run {made[2]}" if made is not None and made[2] else ""
        advice = "the result is lost: bring it back from a copy of the results storage, or add the work as a new item"
        where = f"item {result.item}, unit {result.unit}"
        return Problem(what="result", where=where, found=f"{why}{by}", advice=advice)

    def _copy(self, document: Document) -> bool:
        """Copies a document from the backup storage; whether it is whole then."""
        if self.backup is None or _why_unusable(self.backup, document) is not None:
            return False
        self.documents.write(document.key, self.backup.read(document.key))
        return _why_unusable(self.documents, document) is None


def _why_unusable(storage: Documents, document: Document) -> str | None:
    try:
        text = storage.read(document.key)
        if document.kind == "checkpoint":
            Checkpoint.read(text, document.digest)
        elif digest(text) != document.digest:
            raise DamagedDocument(f"got SHA-256 {digest(text)[:12]}…; expected {document.digest[:12]}…")
        elif document.kind == "backup" and document.ordinal:
            BackupIndex.read(text)
    except StorageError as error:
        return f"{document.key}: {error}"
    return None
