"""Prefect's results storage: where outcomes and documents lie."""

import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import cast

import httpx
from prefect.blocks.core import Block
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.results import get_default_result_storage
from prefect.settings import get_current_settings

from perpetual_blocks.errors import DamagedDocument, InvalidInput, StorageError
from perpetual_blocks.patience import IMPATIENT, Patience

PROBE_FOLDER = "perpetual/probes"
PROBE_TEXT = "Written to see whether this storage can be written. It may be deleted."


def load_storage(slug: str | None, field: str = "result_storage") -> WritableFileSystem:
    """The storage block of this name, or Prefect's default results storage.

    Args:
        slug: `block-type/block-name`, as `local-file-system/results`.

    Raises:
        InvalidInput: no such block, or not one that can be written.
        StorageError: Prefect's API cannot be asked.
    """
    if not slug and FlowRunContext.get() is None and get_current_settings().api.url is None:
        # Asking Prefect for its default would start a server only to hear that there is none set.
        return LocalFileSystem(basepath=str(get_current_settings().results.local_storage_path))
    if not slug:
        try:
            return cast(WritableFileSystem, get_default_result_storage(_sync=True))  # type: ignore[call-arg]
        except (PrefectException, httpx.HTTPError) as error:
            raise StorageError(f"{field}: cannot ask the Prefect server for its default: {error}") from error
    expected = "the name of a storage block, as local-file-system/results"
    if slug.count("/") != 1:
        raise InvalidInput.of(field, slug, expected)
    try:
        block = Block.load(slug, _sync=True)  # type: ignore[call-arg]
    except ValueError as error:
        raise InvalidInput.of(field, slug, f"{expected}, that exists ({error})") from error
    except (PrefectException, httpx.HTTPError) as error:
        raise StorageError(f"{field}: cannot load {slug}: {error}") from error
    if not isinstance(block, WritableFileSystem):
        raise InvalidInput.of(field, slug, f"{expected}; this is a {type(block).__name__}")
    return block


def check_key(key: str) -> str:
    """The key, if it is one of ours: of plain names below `perpetual/`. What a row of the ledger says is not trusted.

    Raises:
        StorageError: it could lead elsewhere.
    """
    names = key.split("/")
    plain = all(name not in ("", ".", "..") and name.isprintable() and not set(name) & set("\\:") for name in names)
    if not plain or names[0] != "perpetual" or len(names) < 2:
        raise StorageError(f"results storage: got the key {key[:120]!r}; expected names below perpetual/")
    return key


class StoredDocuments:
    """Text documents in a storage block.

    Args:
        patience: For how long each read and write is tried again while the storage is away.
    """

    def __init__(self, storage: WritableFileSystem, patience: Patience = IMPATIENT) -> None:
        self._storage = storage
        self._patience = patience

    def probe(self) -> None:
        """Writes a small file and reads it back, so that a storage that cannot be used is found before any work.

        Raises:
            StorageError: it cannot be written or read, or gives back something else.
        """
        # A key of its own: another process may be probing the same storage at this moment.
        key = f"{PROBE_FOLDER}/{secrets.token_hex(8)}.txt"
        self.write(key, PROBE_TEXT)
        if self.read(key) != PROBE_TEXT:
            raise StorageError(f"results storage: {key} was read back with other bytes than were written")
        self.delete(key)

    def write(self, key: str, text: str) -> None:
        """Writes a document.

        Raises:
            StorageError: it cannot be written.
        """
        check_key(key)
        self._patience(lambda: self._write(key, text), _is_away)

    def _write(self, key: str, text: str) -> None:
        try:
            self._storage.write_path(key, text.encode(), _sync=True)  # type: ignore[call-arg, unused-coroutine]
        except Exception as error:
            raise StorageError(f"results storage: cannot write {key}: {type(error).__name__}: {error}") from error

    def delete(self, key: str) -> None:
        """Deletes a document of a local storage. Prefect's other storages cannot delete: give their bucket a lifecycle.

        Raises:
            StorageError: it cannot be deleted.
        """
        check_key(key)
        if isinstance(self._storage, LocalFileSystem):
            try:
                (Path(self._storage.basepath or ".").expanduser() / key).unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"results storage: cannot delete {key}: {error}") from error

    def measure(self, folder: str) -> tuple[int, int] | None:
        """How many documents a folder of a local storage holds, and how many bytes; None for Prefect's other storages.

        Raises:
            StorageError: the storage is not there.
        """
        path = self._local_folder(folder)
        if path is None:
            return None
        try:
            sizes = [file.lstat().st_size for file in path.rglob("*") if not file.is_dir()]
        except OSError as error:
            raise StorageError(f"results storage: cannot look into {folder}: {error}") from error
        return len(sizes), sum(sizes)

    def delete_folder(self, folder: str) -> None:
        """Deletes a folder of a local storage with all that it holds, and the one around it if nothing else is there.

        Prefect's other storages cannot delete: give their bucket a lifecycle.

        Raises:
            StorageError: the storage is not there, or something in it cannot be deleted.
        """
        path = self._local_folder(folder)
        if path is None:
            return
        try:
            if path.exists():
                shutil.rmtree(path)
        except OSError as error:
            raise StorageError(f"results storage: cannot delete {folder}: {error}") from error
        with suppress(OSError):
            path.parent.rmdir()

    def _local_folder(self, folder: str) -> Path | None:
        check_key(folder)
        if not isinstance(self._storage, LocalFileSystem):
            return None
        base = Path(self._storage.basepath or ".").expanduser()
        if not base.is_dir():
            # A disk that is not mounted, and no folder that is empty.
            raise StorageError(f"results storage: {base} is not there")
        return base / folder

    def read(self, key: str) -> str:
        """Reads a document.

        Raises:
            StorageError: it is not there, or cannot be read.
            DamagedDocument: it is not text.
        """
        check_key(key)
        return self._patience(lambda: self._read(key), lambda error: _is_away(error) and not self._lacks(error))

    def _read(self, key: str) -> str:
        try:
            content: bytes = self._storage.read_path(key, _sync=True)  # type: ignore[call-arg, assignment]
        except Exception as error:
            raise StorageError(f"results storage: cannot read {key}: {type(error).__name__}: {error}") from error
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise DamagedDocument(f"results storage: {key} is not text: {error}") from error

    def has(self, key: str) -> bool:
        """Whether there is a document.

        Raises:
            StorageError: the storage does not say.
        """
        try:
            self.read(key)
        except StorageError as error:
            if not self._lacks(error):
                self.probe()  # an error that we do not know, of a storage that can be used, is about this document
            return False
        return True

    def _lacks(self, error: Exception) -> bool:
        """Whether the storage is there, and the document is not, or is no text: waiting will not bring it."""
        cause = error.__cause__
        if isinstance(self._storage, LocalFileSystem):
            return isinstance(cause, ValueError) and Path(self._storage.basepath or ".").expanduser().is_dir()
        # Each storage's library has an error of its own for it. Its text may hold the key, and says nothing.
        named = "NotFound" in type(cause).__name__ or _code(cause) in ("NoSuchKey", "NotFound", "404")
        return named or isinstance(cause, ValueError | LookupError | FileNotFoundError)


def _code(error: BaseException | None) -> str:
    """What S3 has answered, of an error of its client."""
    answer = getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code")) if isinstance(answer, dict) else ""


def _is_away(error: Exception) -> bool:
    return isinstance(error, StorageError)
