"""A real Prefect server, and a place for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_server import PrefectServer
from workbench import Site

from perpetual_blocks.adapters.local_server import stop


@pytest.fixture
def site(prefect_server: PrefectServer, tmp_path: Path) -> Iterator[Site]:
    """The server with a ledger and results storage of the test's own."""
    environment = {
        **prefect_server.environment,
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results"),
        "PERPETUAL_LEDGER": str(tmp_path / "ledger.db"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    environment.pop("PERPETUAL_FAULT", None)
    made = Site(prefect_server.api, tmp_path, environment)
    yield made
    for child in reversed(made.children):
        stop(child, seconds=40)
