"""What is shown in Prefect's UI of a session, by a thread that nobody waits for."""

import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect_server import PrefectServer
from support import KINDS, claim, finish_next, open_session, wait_for

from perpetual_blocks import Budget, Limit, WorkItem
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.prefect_progress import ShownProgress
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.telemetry import SessionStarted

CANARY = "canary-d41d8cd98f"


@flow
def a_flow() -> None:
    """One whose run is shown."""


@pytest.fixture
def ledger(tmp_path: Path) -> SqlLedger:
    return SqlLedger(str(tmp_path / "ledger.db"))


def begin(ledger: SqlLedger, chain: str) -> Fence:
    """A session with a pool, and items of which one was given up for a reason that has a secret in it."""
    budget = Budget(Limit("cost", 2, scope="total", pool=f"pool of {chain}"))
    fence = open_session(ledger, chain, settings={"kinds": list(KINDS), "budget": budget.to_json()}).fence
    items = [WorkItem(id=f"n-{n}", max_attempts=1) for n in range(4)]
    ledger.add_items(chain, items, planned_by=fence)
    ledger.fail_unit(fence, claim(ledger, fence), f"RuntimeError: {CANARY} is wrong", {}, {})
    return fence


def test_a_session_is_shown_until_it_is_over(ledger: SqlLedger, prefect_server: PrefectServer) -> None:
    """One progress artifact of the run, brought up to date at the end; its queue's page; its pool; and no secret."""
    chain = "shown-here"
    fence = begin(ledger, chain)
    with prefect_server.here(), get_client(sync_client=True) as client:
        run = client.create_flow_run(a_flow, name="shown")
        shown = ShownProgress(ledger, str(run.id), Redactor(own=[CANARY]))
        shown(SessionStarted(chain, 1, False, ()))
        wait_for(lambda: artifact(prefect_server, f"progress-{chain}"))
        began = artifact(prefect_server, f"progress-{chain}")
        finish_next(ledger, fence, usage={"cost": 0.5})
        shown.close(60.0)
        assert shown._thread is not None

    progress, page = (artifact(prefect_server, f"{kind}-{chain}") for kind in ("progress", "queue"))
    mirror = prefect_server.get(f"/v2/concurrency_limits/pool pool of {chain}: cost in all in cents")
    assert progress["id"] == began["id"]
    assert progress["flow_run_id"] == page["flow_run_id"] == str(run.id)
    assert (float(began["data"]), float(progress["data"])) == (0.0, 25.0)
    assert progress["description"].startswith("1 of 4 items")
    assert "$0.5000 of $2.00 in all (25%)" in progress["description"]
    assert (mirror["limit"], mirror["active_slots"]) == (200, 50)
    assert "- `n-0`: RuntimeError: *** is wrong" in page["data"]
    assert CANARY not in str((progress, page))


def test_nobody_waits_long_for_a_server_that_is_away(ledger: SqlLedger) -> None:
    """Nothing is raised; and who has no time to wait does not."""
    begin(ledger, "unseen")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        for seconds in (2.0, 0.0):
            shown = ShownProgress(ledger, str(uuid4()), Redactor())
            shown(SessionStarted("unseen", 1, False, ()))
            began = time.monotonic()
            shown.close(seconds)
            assert time.monotonic() - began < seconds + 1.0


def test_a_run_that_comes_to_nothing_shows_nothing(ledger: SqlLedger) -> None:
    """It has no thread, and nothing to wait for."""
    shown = ShownProgress(ledger, str(uuid4()), Redactor())
    shown.close(1.0)
    assert shown._thread is None


def artifact(server: PrefectServer, key: str) -> dict:
    """The latest artifact of a key; empty as long as there is none."""
    asked = {"artifacts": {"key": {"any_": [key]}}}
    found = httpx.post(f"{server.api}/artifacts/filter", json=asked, timeout=30).raise_for_status().json()
    return found[0] if found else {}
