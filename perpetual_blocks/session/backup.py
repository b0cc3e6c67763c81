"""Backups: a chain's rows in a second storage, from which a lost ledger is rebuilt.

Each session adds a *segment* at its end: the rows that changed since the segment before. The first one, the base, has
all rows. So a backup costs what the session has changed, whatever the size of the queue; after `MOST_SEGMENTS` a new
base is written.

A segment is one or several *parts*, documents of JSON lines (gzip, in base64), each under a key of its own that is
never used again. What there is stands in the *index*. It lies under the chain's name alone, because the ledger that
knows the rest is what is lost when it is needed; and it has two places that are written in turn, so that one which was
torn while it was written leaves the other. The ledger points at the latest index: where the two do not agree, whatever
the reason, the next segment is a base.
"""

import base64
import gzip
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perpetual_blocks.checkpoint import digest, to_json
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import DamagedDocument, InvalidInput, StorageError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.documents import chain_folder
from perpetual_blocks.session.ledger import Document, Fence, Ledger, Mark, Row
from perpetual_blocks.session.ports import Documents
from perpetual_blocks.work import ItemStatus

MOST_SEGMENTS = 64
PART_ROWS = 50_000
PART_CHARACTERS = 16 * 2**20
COMPRESSION = 3  # of 9: half of the time for a tenth more bytes

_LINE = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

# What is written ------------------------------------------------------------------------------------------------------


class Part(BaseModel):
    """A document with rows; the digest and the size are those of its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    digest: str
    size: int
    rows: int


class Segment(BaseModel):
    """The rows that changed up to a mark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mark: Mark
    parts: tuple[Part, ...]


class BackupIndex(BaseModel):
    """All segments of a chain, the base first.

    Attributes:
        sequence: Goes up with each index; of two places, the higher one is the newer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    chain: str
    uid: str
    sequence: int
    segments: tuple[Segment, ...] = Field(min_length=1)

    @property
    def last(self) -> Mark:
        """Up to where the backup has the chain."""
        return self.segments[-1].mark

    def parts(self) -> Iterator[Part]:
        """All documents that it names."""
        return (part for segment in self.segments for part in segment.parts)

    def text(self) -> str:
        """The document, which holds its own digest."""
        index = to_json(self.model_dump(mode="json"), "backup")
        return to_json({"digest": digest(index), "index": index}, "backup")

    @classmethod
    def read(cls, text: str) -> "BackupIndex":
        """Reads a document after checking its digest.

        Raises:
            DamagedDocument: its digest is another, or it is no index of a schema that this version knows.
        """
        try:
            found = json.loads(text)
            index, expected = str(found["index"]), str(found["digest"])
        except (ValueError, KeyError, TypeError):
            raise DamagedDocument(
                f"backup index: got {len(text)} characters; expected an index and its digest"
            ) from None
        if digest(index) != expected:
            raise DamagedDocument(f"backup index: got SHA-256 {digest(index)[:12]}…; expected {expected[:12]}…")
        try:
            return cls.model_validate_json(index)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(("backup index", *map(str, first["loc"])))
            raise DamagedDocument(f"{where}: {first['msg']}; expected schema 1") from error


def index_keys(chain: str) -> tuple[str, str]:
    """The two places of a chain's index."""
    return f"perpetual/backups/{chain}.a.json", f"perpetual/backups/{chain}.b.json"


@dataclass(frozen=True, slots=True)
class Indexes:
    """What lies in the two places of an index.

    Attributes:
        found: Those that can be read, by key, the newest first.
        unusable: Why others cannot, by key; one that is not there is among them.
    """

    found: dict[str, BackupIndex]
    unusable: dict[str, StorageError]

    @classmethod
    def of(cls, storage: Documents, chain: str) -> "Indexes":
        """Reads both."""
        found: dict[str, BackupIndex] = {}
        unusable: dict[str, StorageError] = {}
        for key in index_keys(chain):
            try:
                found[key] = BackupIndex.read(storage.read(key))
            except StorageError as error:
                unusable[key] = error
        newest_first = sorted(found.items(), key=lambda one: -one[1].sequence)
        return cls(dict(newest_first), unusable)

    @property
    def newest(self) -> BackupIndex | None:
        """The one that counts."""
        return next(iter(self.found.values()), None)

    def next_key(self, chain: str) -> str:
        """The place that may be overwritten: one that holds nothing, or else the older index."""
        free = [key for key in index_keys(chain) if key not in self.found]
        return [*free, *reversed(self.found)][0]


# Backing up -----------------------------------------------------------------------------------------------------------


def back_up(ledger: Ledger, storage: Documents, fence: Fence) -> BackupIndex:
    """Writes a segment with what changed since the one before, and then the index that names it.

    Raises:
        StorageError: the storage cannot be used, or has the backup of another chain under this name.
        Fenced: another session has taken over.
    """
    chain = fence.chain
    indexes = Indexes.of(storage, chain)
    newest = indexes.newest
    recorded = ledger.documents(chain, "backup")
    earlier: tuple[Segment, ...] = ()
    agree = newest is not None and bool(recorded) and digest(newest.text()) == recorded[0].digest
    if newest is not None and agree and len(newest.segments) < MOST_SEGMENTS:
        earlier = newest.segments
    with ledger.export(chain, earlier[-1].mark if earlier else None) as export:
        if newest is not None and newest.uid != export.uid:
            # Perhaps the ledger was lost and this is a new one: the old backup is then the only copy there is.
            raise StorageError(
                f"backup: the storage has that of another chain {chain}, made at {isoformat(newest.last.at)}; "
                f"expected none: restore it, or move {' and '.join(indexes.found)} away"
            )
        folder = f"{chain_folder(chain, export.uid)}/backups/{fence.ordinal:06d}-{secrets.token_hex(4)}"
        parts = tuple(_write_parts(storage, folder, export.rows))
    index = BackupIndex(
        chain=chain,
        uid=export.uid,
        sequence=newest.sequence + 1 if newest else 1,
        segments=(*earlier, Segment(mark=export.mark, parts=parts)),
    )
    key, text = indexes.next_key(chain), index.text()
    # A backup that took too long is left behind, and may come to this point when the next session has written its own.
    ledger.heartbeat(fence)
    _write(storage, key, text)
    reached("backup.written")
    ledger.record_document(fence, Document("backup", fence.ordinal, key, digest(text), len(text.encode())))
    _delete_unused(storage, indexes.found.get(key), index, newest)
    return index


def _delete_unused(storage: Documents, replaced: BackupIndex | None, *kept: BackupIndex | None) -> None:
    """Deletes what only the replaced index named: the segments before a base, once both indexes begin there."""
    if replaced is None:
        return
    used = {part.key for index in kept if index is not None for part in index.parts()}
    for part in replaced.parts():
        if part.key not in used:
            storage.delete(part.key)


def _write(storage: Documents, key: str, text: str) -> None:
    storage.write(key, text)
    if digest(storage.read(key)) != digest(text):
        raise DamagedDocument(f"backup storage: {key} was read back with other bytes than were written")


def _write_parts(storage: Documents, folder: str, rows: Iterable[Row]) -> Iterator[Part]:
    """Writes rows as they come: no more than one part is in memory, and that compressed."""
    part = _PartWriter()
    number = 0
    for row in rows:
        part.add(row)
        if part.rows == PART_ROWS or part.characters >= PART_CHARACTERS:
            yield part.finish(storage, f"{folder}-{number:04d}.txt")
            part, number = _PartWriter(), number + 1
    if part.rows:
        yield part.finish(storage, f"{folder}-{number:04d}.txt")


@dataclass(slots=True)
class _PartWriter:
    """One part: a line with a table's name and columns, then a line of values for each row of it."""

    rows: int = 0
    characters: int = 0
    _heading: tuple[str, tuple[str, ...]] | None = None
    _buffer: BytesIO = field(default_factory=BytesIO)
    _file: gzip.GzipFile = field(init=False)

    def __post_init__(self) -> None:
        self._file = gzip.GzipFile(fileobj=self._buffer, mode="wb", compresslevel=COMPRESSION, mtime=0)

    def add(self, row: Row) -> None:
        table, values = row
        heading = (table, tuple(values))
        if heading != self._heading:
            self._heading = heading
            self._line({"table": table, "columns": heading[1]})
        self._line(list(values.values()))
        self.rows += 1

    def finish(self, storage: Documents, key: str) -> Part:
        self._file.close()
        text = base64.b64encode(self._buffer.getvalue()).decode()
        _write(storage, key, text)
        return Part(key=key, digest=digest(text), size=len(text), rows=self.rows)

    def _line(self, value: Any) -> None:
        line = _LINE.encode(value).encode() + b"\n"
        self.characters += len(line)
        self._file.write(line)


# Restoring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a restore has brought back.

    Attributes:
        notes: What was not as it should be, one line each.
    """

    index: BackupIndex
    items: dict[ItemStatus, int]
    notes: tuple[str, ...]


def rebuild(ledger: Ledger, storage: Documents, chain: str, until: int | None = None) -> Rebuilt:
    """Brings a chain back into a ledger that does not have it: all of it, or nothing.

    Units that were finished later are not lost: their outcomes lie in the results storage, and are applied when the
    chain comes to them.

    Args:
        until: The last session whose segment is used; None for all.

    Raises:
        InvalidInput: the ledger has the chain, or the backup does not go back that far.
        StorageError: there is no backup of the chain.
        DamagedDocument: a part is missing or damaged; the text names the session to go back to.
    """
    if ledger.has_chain(chain):
        raise InvalidInput.of(
            "chain",
            chain,
            f"a chain that this ledger does not have: restore into another ledger with --ledger, or repair this one "
            f"with `perpetual verify {chain} --repair`",
        )
    indexes = Indexes.of(storage, chain)
    index = _choose(indexes, chain, until)
    # The very first backup writes one index only; from then on there are two, and the other may have been the newer.
    notes = tuple(
        f"{key} is not usable ({error}); the index of session {index.last.ordinal} is used"
        for key, error in indexes.unusable.items()
        if isinstance(error, DamagedDocument) or index.sequence > 1
    )
    reason = (
        f"restored from the backup of session {index.last.ordinal}, made at {isoformat(index.last.at)}: "
        f"`perpetual resume {chain}` goes on"
    )
    # All of it is here and whole before the ledger is locked for the first row.
    with TemporaryDirectory(prefix="perpetual-restore-") as folder:
        segments = [_fetch(storage, index, number, Path(folder)) for number in range(len(index.segments))]
        ledger.rebuild(chain, (_rows(parts) for parts in reversed(segments)), reason)
    return Rebuilt(index, ledger.counts(chain), notes)


def _choose(indexes: Indexes, chain: str, until: int | None) -> BackupIndex:
    """The newest index that has the session, with what came later taken out."""
    if not indexes.found:
        reasons = "; ".join(str(error) for error in indexes.unusable.values())
        raise StorageError(f"backup: got no index of chain {chain} in this storage ({reasons}); expected one")
    for index in indexes.found.values():
        if until is None:
            return index
        if segments := tuple(segment for segment in index.segments if segment.mark.ordinal <= until):
            return index.model_copy(update={"segments": segments})
    first = min(index.segments[0].mark.ordinal for index in indexes.found.values())
    raise InvalidInput.of("--until", until, f"at least {first}: the backup of {chain} begins with that session")


def _fetch(storage: Documents, index: BackupIndex, number: int, folder: Path) -> list[Path]:
    """A segment's parts as files, each of them checked."""
    segment = index.segments[number]
    paths: list[Path] = []
    for part in segment.parts:
        try:
            text = storage.read(part.key)
            if digest(text) != part.digest:
                raise DamagedDocument(f"got SHA-256 {digest(text)[:12]}…; expected {part.digest[:12]}…")
        except StorageError as error:
            before = f"--until {index.segments[number - 1].mark.ordinal} restores what was saved before it"
            raise DamagedDocument(
                f"backup: the segment of session {segment.mark.ordinal} is not usable: {part.key}: {error}; "
                + (before if number else "it is the base, without which the others say nothing; nothing was restored")
            ) from error
        paths.append(folder / f"{number}-{len(paths)}.gz")
        paths[-1].write_bytes(base64.b64decode(text))
    return paths


def _rows(parts: Sequence[Path]) -> Iterator[Row]:
    for path in parts:
        table, columns = "", ()
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)
                if isinstance(value, dict):
                    table, columns = value["table"], value["columns"]
                else:
                    yield table, dict(zip(columns, value, strict=True))
