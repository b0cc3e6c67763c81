"""Keys of the results storage: what a row of the ledger says leads nowhere else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.filesystems import LocalFileSystem
from support import one_line, some_item

from perpetual_blocks.adapters.result_storage import StoredDocuments, check_key
from perpetual_blocks.errors import StorageError
from perpetual_blocks.session.documents import chain_folder, unit_key

HOSTILE = [
    "../victim",
    "perpetual/../victim",
    "perpetual/../../victim",
    "perpetual/a/../../../victim",
    "/victim",
    "~/victim",
    "//victim",
    "perpetual//victim",
    "perpetual/./victim",
    "perpetual/..\\..\\victim",
    "perpetual/C:victim",
    "perpetual/a\0b",
    "perpetual/a\nb",
    "perpetual/",
    "perpetual",
    "victim",
    ".",
    "",
]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file beside the storage, and one within it that is not ours."""
    (tmp_path / "storage").mkdir()
    for folder in (tmp_path, tmp_path / "storage"):
        (folder / "victim").write_text("still there")
    return tmp_path / "victim"


@pytest.fixture
def documents(victim: Path) -> StoredDocuments:
    return StoredDocuments(LocalFileSystem(basepath=str(victim.parent / "storage")))


@pytest.mark.parametrize("key", [*HOSTILE, "absolute"])
def test_a_key_that_leads_elsewhere_is_neither_read_nor_written_nor_deleted(
    key: str, documents: StoredDocuments, victim: Path
) -> None:
    """As a row that somebody has changed may name it; the error names the key."""
    key = str(victim) if key == "absolute" else key
    touches = (documents.read, documents.delete, lambda key: documents.write(key, "gone"))
    for touch in (*touches, documents.measure, documents.delete_folder):
        with pytest.raises(StorageError) as refused:
            touch(key)
        one_line(refused.value, "results storage: got the key", "expected names below perpetual/")

    assert victim.read_text() == (victim.parent / "storage/victim").read_text() == "still there"


@given(st.text(min_size=1, max_size=512))
def test_the_keys_of_all_items_are_taken(item: str) -> None:
    """Whatever the id, its outcome's key is one of ours, below the chain's folder."""
    key = unit_key("mine", "0123456789abcdef", some_item(item))

    assert check_key(key).startswith(chain_folder("mine", "0123456789abcdef") + "/units/")


def test_a_hostile_id_is_written_below_the_storage(documents: StoredDocuments, victim: Path) -> None:
    """A real file for each; nothing else of the folder is changed."""
    ids = ["../../etc/passwd", "..", "nul\0", "%" * 512, "\U0001f642" * 512, "CON", "com1.txt", "a" * 512, "a", "A"]
    keys = [unit_key("mine", "0123456789abcdef", some_item(item)) for item in ids]
    for key, item in zip(keys, ids, strict=True):
        documents.write(key, item)

    assert [documents.read(key) for key in keys] == ids
    folder = victim.parent / "storage" / chain_folder("mine", "0123456789abcdef")
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(ids)
    assert sorted(path.name for path in victim.parent.iterdir()) == ["storage", "victim"]


def test_a_folder_is_measured_and_deleted_with_all_that_it_holds(documents: StoredDocuments, victim: Path) -> None:
    """And nothing beside it; the folder around it goes with the last of its folders. Again, it is no error."""
    for key in ("perpetual/mine-01/units/a/1", "perpetual/mine-01/units/b/1", "perpetual/mine-01/batches/c"):
        documents.write(key, "12345")
    documents.write("perpetual/mine-012/units/a/1", "another chain's")
    around = victim.parent / "storage" / "perpetual" / "mine-01"
    (around / "units" / "outside").symlink_to(victim)

    assert documents.measure("perpetual/mine-01/batches") == (1, 5)
    documents.delete_folder("perpetual/mine-01/units")
    assert [path.name for path in around.iterdir()] == ["batches"]
    for _ in range(2):
        documents.delete_folder("perpetual/mine-01/batches")

    assert not around.exists()
    assert documents.measure("perpetual/mine-01/batches") == (0, 0)
    assert documents.read("perpetual/mine-012/units/a/1") == "another chain's"
    assert victim.read_text() == "still there"


def test_a_storage_that_is_not_there_has_no_empty_folders(tmp_path: Path) -> None:
    """A disk that is not mounted must not look as if all had been deleted."""
    away = StoredDocuments(LocalFileSystem(basepath=str(tmp_path / "unmounted")))

    for touch in (away.measure, away.delete_folder):
        with pytest.raises(StorageError) as refused:
            touch("perpetual/mine-01/units")
        one_line(refused.value, "results storage", "unmounted", "is not there")
