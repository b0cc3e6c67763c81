"""A bucket as results storage: a chain in it, what is damaged there, and what is not there."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from parts import is_missing
from prefect.settings import PREFECT_API_URL, temporary_settings
from s3_server import PASSWORD, Bucket, running_bucket
from support import FakeClock, one_line
from workbench import SQUARES, Site

from perpetual_blocks.adapters.local_server import free_port
from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.errors import StorageError
from perpetual_blocks.patience import Patience

FOLDER = "team/agents"
FOREVER = 600.0


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    try:
        with running_bucket() as bucket:
            yield bucket
    except ImportError:
        is_missing("no S3: pip install perpetual-blocks[s3] moto[server]")


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """A site where squares are served."""
    shared_site.serve(SQUARES)
    return shared_site


@pytest.fixture(scope="module")
def store(site: Site, bucket: Bucket) -> dict[str, Any]:
    """A State Persistence block `in-s3` whose results storage is the bucket, as a run's parameter refers to it."""
    with temporary_settings({PREFECT_API_URL: site.api}):
        bucket.block(FOLDER).save("bucket", overwrite=True)
        block = StatePersistence(ledger=site.environment["PERPETUAL_LEDGER"], result_storage="s3-bucket/bucket")
        saved = block.save("in-s3", overwrite=True)
    return {"$ref": {"block_document_id": str(saved)}}


CHAIN = "in-bucket"


@pytest.fixture(scope="module")
def ran(site: Site, store: dict[str, Any]) -> Counter[str]:
    """How often each unit of the chain ran until its end, of nine items, four a session."""
    return run_chain(site, store)


def run_chain(site: Site, store: dict[str, Any]) -> Counter[str]:
    """Runs the chain to its end; how often each unit ran."""
    notes = site.folder / "notes"
    site.trigger("squares/served", {"notes": str(notes), "n": 9, "chain": CHAIN, "store": store})
    status = site.chain_over(CHAIN)
    assert status["status"] == "finished", status["reason"]
    return Counter(line.split()[0] for line in notes.read_text().splitlines())


def rows(site: Site, chain: str, kind: str) -> list[tuple[int, str, str]]:
    """Ordinal, key and digest of a chain's documents, the first session's first."""
    wanted = "SELECT ordinal, key, digest FROM documents WHERE chain = ? AND kind = ? ORDER BY ordinal"
    with closing(sqlite3.connect(site.environment["PERPETUAL_LEDGER"])) as ledger:
        return ledger.execute(wanted, (chain, kind)).fetchall()


def test_a_chain_whose_results_are_in_a_bucket(site: Site, bucket: Bucket, ran: Counter[str]) -> None:
    """It chains to the end, and its checkpoints, handoffs and outcomes are in the bucket's folder and nowhere else."""
    assert ran == {f"n/{number}": 1 for number in range(9)}
    for kind in ("checkpoint", "handoff"):
        documents = rows(site, CHAIN, kind)
        assert [ordinal for ordinal, _, _ in documents] == [1, 2, 3]
        assert [digest(bucket.read(f"{FOLDER}/{key}")) for _, key, _ in documents] == [row[2] for row in documents]
    checked = site.here("verify", CHAIN, "--store", "in-s3", "--json")
    assert checked.code == 0, checked
    chain = [key for key in bucket.keys(f"{FOLDER}/perpetual/") if f"/{CHAIN}-" in key]
    outcomes = [key for key in chain if "/checkpoints/" not in key and "/handoffs/" not in key]
    assert outcomes
    assert not any(PASSWORD.encode() in bucket.read(key) for key in chain)
    results = Path(site.environment["PREFECT_LOCAL_STORAGE_PATH"])
    assert not [path for path in results.rglob("*") if path.is_file()]


def test_a_damaged_checkpoint_in_a_bucket(site: Site, bucket: Bucket, store: dict[str, Any], ran: Counter[str]) -> None:
    """It is found out; the next session uses the one before, says so in its handoff, and does what is left."""
    *_, (last, key, _) = rows(site, CHAIN, "checkpoint")
    bucket.write(f"{FOLDER}/{key}", bucket.read(f"{FOLDER}/{key}").replace(b'"n', b'"m', 1)[:-20])

    checked = site.here("verify", CHAIN, "--store", "in-s3", "--json")
    added = site.here("items", "add", CHAIN, "n/9", "--payload", '{"number": 9}', "--store", "in-s3")
    again = run_chain(site, store)

    assert checked.code == 1
    assert key in json.dumps(checked.json())
    assert added.code == 0, added
    assert again == {f"n/{number}": 1 for number in range(10)}
    *_, (ordinal, handoff, _) = rows(site, CHAIN, "handoff")
    assert ordinal == last + 1
    assert f"the checkpoint of session {last} is not usable" in bucket.read(f"{FOLDER}/{handoff}").decode()


def test_what_is_not_in_the_bucket_is_not_waited_for(bucket: Bucket) -> None:
    """Bytes come back as they were written; what is missing is an error at once, and known to be missing."""
    clock = FakeClock()
    documents = StoredDocuments(bucket.block("here"), Patience(FOREVER, clock))

    documents.probe()
    documents.write("perpetual/a/ü b.json", "tëxt\n")

    assert documents.read("perpetual/a/ü b.json") == "tëxt\n"
    assert bucket.read("here/perpetual/a/ü b.json").decode() == "tëxt\n"
    assert (documents.has("perpetual/a/ü b.json"), documents.has("perpetual/a/b.json")) == (True, False)
    with pytest.raises(StorageError) as missing:
        documents.read("perpetual/a/b.json")
    one_line(missing.value, "results storage", "perpetual/a/b.json")
    assert clock.monotonic() == 0


def test_a_bucket_that_is_away_is_not_one_without_the_document(bucket: Bucket) -> None:
    """Its documents are waited for and not taken for missing, whatever the error's text reminds of."""
    clock, key = FakeClock(), "perpetual/chain/units/error-404-NotFound/1"
    nobody = bucket.block(endpoint=f"http://127.0.0.1:{free_port()}", retries={"max_attempts": 0}, connect_timeout=2)

    with pytest.raises(StorageError):
        StoredDocuments(nobody).has(key)
    with pytest.raises(StorageError):
        StoredDocuments(nobody, Patience(FOREVER, clock)).read(key)

    assert clock.monotonic() == pytest.approx(FOREVER)
