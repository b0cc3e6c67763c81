"""The demo's agent with its units on a Dask cluster, and with its results in a bucket."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parts import is_missing
from prefect.settings import PREFECT_API_URL, temporary_settings
from s3_server import running_bucket
from workbench import REPOSITORY, Site

from perpetual_blocks.blocks import LimitSettings, ResourceBudget, StatePersistence
from perpetual_blocks.checkpoint import digest

sys.path.insert(0, str(REPOSITORY / "flows"))

from doc_mining import modules, standard_library

HERE = Path(__file__).parent
CORPUS = standard_library() / "multiprocessing"
SESSIONS = 2


def need(module: str, extra: str) -> None:
    """Whoever calls it needs this module."""
    if find_spec(module) is None:
        is_missing(f"no {module}: pip install perpetual-blocks[{extra}]")


def mine(site: Site, deployment: str, chain: str, **parameters: Any) -> dict[str, Any]:
    """Mines a part of the standard library to the end; the chain's status."""
    given = {"corpus": str(CORPUS), "knowledge": str(site.folder / "knowledge"), "chain": chain, **parameters}
    site.trigger(deployment, given)
    status = site.chain_over(chain, seconds=400)
    assert status["status"] == "finished", status["reason"]
    expected = {module.name for module in modules(CORPUS)}
    assert status["items"]["completed"] == status["items"]["total"] == len(expected)
    assert {path.stem for path in (site.folder / "knowledge" / "modules").glob("*.json")} == expected
    assert len(status["sessions"]) >= SESSIONS
    assert sum(session["units"] for session in status["sessions"]) == len(expected)
    return status


def test_the_demo_on_a_dask_cluster(site: Site) -> None:
    """Its units run in the cluster's processes, several at once; each session ends before its limit all the same."""
    need("prefect_dask", "test")
    site.serve(HERE / "spread_miner.py")

    status = mine(site, "mine-on-dask/served", "spread")

    for session in status["sessions"]:
        (limit,) = session["limits"]
        assert limit["used"] <= limit["amount"]
    listed = site.here("items", "list", "spread", "--json")
    pids = {site_result(site, item["result_key"])["pid"] for item in listed.json()}
    assert len(pids) >= 2
    assert not pids & {session["pid"] for session in status["sessions"]}
    verified = site.here("verify", "spread")
    assert verified.code == 0, verified


def test_the_demo_with_its_results_in_a_bucket(site: Site) -> None:
    """Its checkpoints, handoffs and results are objects there; verifying finds each of them whole."""
    need("prefect_aws", "s3")
    need("moto", "test")
    with running_bucket() as bucket:
        with temporary_settings({PREFECT_API_URL: site.api}):
            bucket.block("team").save("demo-bucket", overwrite=True)
            persistence = StatePersistence(
                ledger=site.environment["PERPETUAL_LEDGER"], result_storage="s3-bucket/demo-bucket"
            )
            store = str(persistence.save("demo-in-s3", overwrite=True))
            budget = str(
                ResourceBudget(limits=[LimitSettings(resource="tokens", amount=50_000)]).save(
                    "demo-budget", overwrite=True
                )
            )
        site.serve(REPOSITORY / "flows" / "doc_miner.py")

        blocks = {
            name: {"$ref": {"block_document_id": block}} for name, block in (("store", store), ("budget", budget))
        }
        status = mine(site, "mine-docs/doc-miner", "in-a-bucket", **blocks)

        verified = site.here("verify", "in-a-bucket", "--store", "demo-in-s3")
        assert verified.code == 0, verified
        handoffs = [key for key in bucket.keys("team/perpetual/") if "/handoffs/" in key]
        assert len(handoffs) == len(status["sessions"])
        assert all(len(digest(bucket.read(key))) == 64 for key in handoffs)


def site_result(site: Site, key: str) -> dict[str, Any]:
    """The result of a unit, from the site's storage."""
    from perpetual_blocks.adapters.outcome_records import read_record

    document, _, place = key.partition("#")
    found = read_record((site.folder / "results" / document).read_text())
    outcome = found["units"][int(place)]["outcome"] if place else found
    return dict(outcome["result"])
