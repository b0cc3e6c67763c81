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
    for touch in (documents.read, documents.delete, lambda key: documents.write(key, "gone")):
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
