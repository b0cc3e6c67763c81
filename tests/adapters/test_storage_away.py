"""Documents in a storage that goes away and comes back; a folder that is a file, for root too, is one that is away."""

from pathlib import Path
from threading import Event

import pytest
from prefect.filesystems import LocalFileSystem
from support import FakeClock, one_line

from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.errors import StorageError
from perpetual_blocks.patience import Patience


class Storage:
    """A local storage whose folder can be taken away; on this clock it comes back by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._aside = folder / "results", folder / "aside"
        self.folder.mkdir()
        self.back_at = float("inf")
        outer = self

        class Clock(FakeClock):
            """Brings the storage back when it is time."""

            def wait(self, event: Event, seconds: float) -> bool:
                if self.monotonic() >= outer.back_at and outer.folder.is_file():
                    outer.folder.unlink()
                    outer._aside.rename(outer.folder)
                return super().wait(event, seconds)

        self.clock = Clock()
        self.documents = StoredDocuments(LocalFileSystem(basepath=str(self.folder)), Patience(60.0, self.clock))

    def lose(self, back_at: float = float("inf")) -> None:
        self.folder.rename(self._aside)
        self.folder.write_text("not a folder")
        self.back_at = back_at


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def test_documents_wait_for_their_storage(storage: Storage) -> None:
    """What is written or read while the storage is away is written or read when it is back."""
    storage.lose(back_at=40.0)
    storage.documents.write("perpetual/a/b.json", "text")
    assert 40 <= storage.clock.monotonic() < 60
    storage.lose(back_at=storage.clock.monotonic() + 40)

    assert storage.documents.read("perpetual/a/b.json") == "text"


def test_a_storage_that_stays_away(storage: Storage) -> None:
    """After the grace it is an error of the storage, in one line."""
    storage.lose()

    with pytest.raises(StorageError) as away:
        storage.documents.write("perpetual/a/b.json", "text")

    one_line(away.value, "results storage", "perpetual/a/b.json")
    assert storage.clock.monotonic() == pytest.approx(60.0)


def test_what_is_not_there_is_not_waited_for(storage: Storage) -> None:
    """A document that is missing, or is no text, is an error at once: the one before it is used."""
    (storage.folder / "perpetual").mkdir()
    (storage.folder / "perpetual" / "binary").write_bytes(b"\xff\xfe")

    for key in ("perpetual/missing", "perpetual/binary", "../outside"):
        with pytest.raises(StorageError):
            storage.documents.read(key)

    assert storage.clock.monotonic() == 0


def test_away_is_not_the_same_as_not_there(storage: Storage) -> None:
    """Whether there is a document is not guessed: a unit whose outcome cannot be looked for must not run again."""
    storage.documents.write("perpetual/there", "text")
    assert (storage.documents.has("perpetual/there"), storage.documents.has("perpetual/missing")) == (True, False)
    storage.lose()

    with pytest.raises(StorageError):
        storage.documents.has("perpetual/there")


def test_a_storage_with_an_error_of_its_own_for_what_is_missing(storage: Storage) -> None:
    """An error that is not known, of a storage that can be written and read, is about the document."""

    class Strange(LocalFileSystem):
        """Says in its own way that there is nothing."""

        _block_type_slug = "strange"

        def read_path(self, path: str, **_options: bool) -> bytes:  # type: ignore[override]
            try:
                return (storage.folder / path).read_bytes()
            except OSError:
                raise RuntimeError("nothing here") from None

    documents = StoredDocuments(Strange(basepath=str(storage.folder)))

    assert documents.has("perpetual/missing") is False
