"""Verifying a chain: what its rows must be among themselves, and whether every document is what its row says.

`find_wrong_rows` decides from facts alone. `Verification` reads the documents and results too, and repairs what can be
repaired: the rest is reported with what a person may do.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.session.backup import BackupIndex
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.ledger import Document
from perpetual_blocks.session.ports import Documents
from perpetual_blocks.usage import RESOURCES
from perpetual_blocks.work import ItemStatus, Outcome

TOLERANCE = 1e-6  # of an amount: sums of floating-point numbers depend on their order
RESULTS_PAGE = 500


# What is known --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """A session's row, and what the account says of it.

    Attributes:
        usage: As JSON text.
        spent: The sum of its usage rows, by resource.
        finished: How many units its usage rows say that it finished.
    """

    ordinal: int
    state: str
    holder: str
    usage: str
    units: int = 0
    spent: Mapping[str, float] = field(default_factory=dict)
    finished: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFacts:
    """An item's row, as far as others must agree with it.

    Attributes:
        waits_for: How many of its dependencies are not completed.
    """

    id: str
    status: str
    blockers: int
    waits_for: int
    claimed_by: int | None
    units: int
    result_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFacts:
    """A chain's rows, as they were at one moment.

    Attributes:
        working: Whether a session is at work, its lease running.
        context: As JSON text.
        items: They are read while they are asked for.
        outbox: The ordinals of the follow-ons, each as often as it is there.
        lost_dependencies: Items that depend on one that is not there, with its id.
        not_json: Where a column of JSON holds something else: table, row, column.
    """

    name: str
    uid: str
    status: str
    ordinal: int
    holder: str | None
    context: str
    working: bool
    sessions: Sequence[SessionFacts]
    items: Iterable[ItemFacts]
    outbox: Sequence[int] = ()
    lost_dependencies: Sequence[tuple[str, str]] = ()
    not_json: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFacts:
    """Where an item's latest outcome lies."""

    item: str
    unit: int
    key: str
    completed: bool


# What is wrong --------------------------------------------------------------------------------------------------------

Repair = Literal["recount", "give back", "copy", "forget"]

REPAIRS: dict[Repair, str] = {
    "recount": "its blockers are counted again",
    "give back": "it is available again",
    "copy": "it is copied from the backup storage, if that has it",
    "forget": "its row is forgotten: the checkpoint before it serves, or a new backup is begun",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        what: For programs: the rule that is broken.
        where: The row or the document.
        found: One sentence: what is there, and what was expected.
        repair: What `--repair` does; None where nothing can be done by a program.
        advice: What a person may do, where a program cannot.
        target: What the repair is of: an item's id, or a document.
    """

    what: str
    where: str
    found: str
    repair: Repair | None = None
    advice: str = ""
    target: str | Document | None = None


def find_wrong_rows(facts: ChainFacts) -> Iterator[Problem]:
    """Everything in which a chain's rows contradict each other."""
    yield from _wrong_json(facts)
    yield from _wrong_chain(facts)
    for session in facts.sessions:
        yield from _wrong_session(session)
    running = {session.ordinal for session in facts.sessions if session.state == SessionState.RUNNING}
    for item in facts.items:
        yield from _wrong_item(item, running)
    for item_id, other in facts.lost_dependencies:
        yield Problem(
            what="dependency", where=f"item {item_id}", found=f"depends on {other!r}; expected an item of the chain"
        )
    for ordinal in sorted({ordinal for ordinal in facts.outbox if facts.outbox.count(ordinal) > 1}):
        yield Problem(
            what="outbox",
            where=f"follow-on {ordinal}",
            found=f"is there {facts.outbox.count(ordinal)} times; expected once",
        )


def _wrong_json(facts: ChainFacts) -> Iterator[Problem]:
    for table, row, column in facts.not_json:
        yield Problem(what="json", where=f"{table} {row}", found=f"{column} is no JSON")
    if ("chains", facts.name, "context") not in facts.not_json and _object(facts.context) is None:
        found = f"got {facts.context[:60]}; expected a JSON object"
        yield Problem(what="context", where=f"chain {facts.name}", found=found)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _wrong_chain(facts: ChainFacts) -> Iterator[Problem]:
    where = f"chain {facts.name}"
    if facts.status not in set(ChainStatus):
        expected = ", ".join(ChainStatus)
        yield Problem(what="chain status", where=where, found=f"got {facts.status!r}; expected one of {expected}")
    ordinals = [session.ordinal for session in facts.sessions]
    missing = sorted(set(range(1, facts.ordinal + 1)) - set(ordinals))
    beyond = [ordinal for ordinal in ordinals if not 1 <= ordinal <= facts.ordinal]
    if missing or beyond:
        wrong = [*(f"{n} is missing" for n in missing), *(f"{n} is beyond" for n in beyond)]
        found = f"session {', session '.join(wrong)}; expected 1 to {facts.ordinal}"
        yield Problem(what="ordinals", where=where, found=found)
    running = [session for session in facts.sessions if session.state == SessionState.RUNNING]
    if len(running) > 1:
        found = f"sessions {', '.join(str(session.ordinal) for session in running)} are running; expected one at most"
        yield Problem(what="running sessions", where=where, found=found)
    elif running and (running[0].ordinal, running[0].holder, ChainStatus.RUNNING) != (
        facts.ordinal,
        facts.holder,
        facts.status,
    ):
        found = f"session {running[0].ordinal} is running; the chain is {facts.status} at session {facts.ordinal}"
        found += "" if running[0].holder == facts.holder else ", with another owner"
        yield Problem(what="owner", where=where, found=found)
    elif not running and (facts.status == ChainStatus.RUNNING or facts.holder is not None):
        found = f"the chain is {facts.status}{', and has an owner' if facts.holder else ''}; no session is running"
        yield Problem(what="owner", where=where, found=found)


def _wrong_session(session: SessionFacts) -> Iterator[Problem]:
    where = f"session {session.ordinal}"
    if session.state not in set(SessionState):
        found = f"got {session.state!r}; expected one of {', '.join(SessionState)}"
        yield Problem(what="session state", where=where, found=found)
    if session.units < session.finished:
        found = f"counts {session.units} units; its usage is of {session.finished}"
        yield Problem(what="session units", where=where, found=found)
    usage = _object(session.usage)
    if usage is None:
        return  # it is reported as no JSON
    # A gauge has a level, and levels do not add up.
    for name in sorted({*usage, *session.spent}):
        said, counted = usage.get(name, 0.0), session.spent.get(name, 0.0)
        gauge = name in RESOURCES and RESOURCES[name].kind == "gauge"
        if not gauge and abs(said - counted) > TOLERANCE * max(1.0, abs(said), abs(counted)):
            found = f"says {said:g} {name}; its usage rows add up to {counted:g}"
            yield Problem(what="session usage", where=where, found=found)


def _wrong_item(item: ItemFacts, running: set[int]) -> Iterator[Problem]:
    where = f"item {item.id}"
    if item.status not in set(ItemStatus):
        expected = ", ".join(ItemStatus)
        yield Problem(what="item status", where=where, found=f"got {item.status!r}; expected one of {expected}")
        return
    waits = item.status == ItemStatus.BLOCKED
    if item.blockers != item.waits_for:
        found = f"counts {item.blockers} blockers; {item.waits_for} of its dependencies are not completed"
        yield Problem(what="blockers", where=where, found=found, repair="recount", target=item.id)
    elif item.status in (ItemStatus.BLOCKED, ItemStatus.AVAILABLE) and waits != (item.waits_for > 0):
        found = f"is {item.status}; {item.waits_for} of its dependencies are not completed"
        yield Problem(what="blockers", where=where, found=found, repair="recount", target=item.id)
    if item.status == ItemStatus.CLAIMED and item.claimed_by not in running:
        by = "nobody" if item.claimed_by is None else f"session {item.claimed_by}, which is over"
        found = f"is claimed by {by}"
        yield Problem(what="claim", where=where, found=found, repair="give back", target=item.id)
    elif item.status != ItemStatus.CLAIMED and item.claimed_by is not None:
        found = f"is {item.status}; session {item.claimed_by} has claimed it"
        yield Problem(what="claim", where=where, found=found, repair="give back", target=item.id)
    if item.units > 0 and item.result_key is None:
        yield Problem(what="result", where=where, found=f"has finished {item.units} units; it names no result")


# Documents and results ------------------------------------------------------------------------------------------------


class VerifiableLedger(Protocol):
    """What a verification needs of the ledger."""

    def facts(self, chain: str) -> AbstractContextManager[ChainFacts]:
        """A snapshot of the chain's rows. Raises `UnknownChain`."""

    def documents(self, chain: str, kind: Literal["checkpoint", "handoff", "backup"]) -> list[Document]:
        """A chain's documents of one kind, the latest first."""

    def results(self, chain: str, after: str, limit: int) -> list[ResultFacts]:
        """Where the outcomes of a chain's items lie, in the order of their ids, after that one."""

    def finished_in(self, chain: str, item: str, unit: int) -> tuple[int, str | None] | None:
        """The session that finished a unit of an item, and its flow run; None if the account does not say."""

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
        if items:
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
        by = "" if made is None else f"; session {made[0]} made it" + (f" in flow run {made[1]}" if made[1] else "")
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
