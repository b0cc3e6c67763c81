"""A real Prefect server for the whole run of these tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from workbench import Site

from perpetual_blocks.adapters.local_server import local_server, stop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The API's address of a server of our own, and the Prefect home that goes with it."""
    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    try:
        with local_server() as api:
            yield api, home
    finally:
        if before is None:
            del os.environ["PREFECT_HOME"]
        else:
            os.environ["PREFECT_HOME"] = before


@pytest.fixture
def site(server: tuple[str, Path], tmp_path: Path) -> Iterator[Site]:
    """The server with a ledger and results storage of the test's own."""
    api, home = server
    environment = {
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results"),
        "PERPETUAL_LEDGER": str(tmp_path / "ledger.db"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    environment.pop("PERPETUAL_FAULT", None)
    made = Site(api, tmp_path, environment)
    yield made
    for child in reversed(made.children):
        stop(child, seconds=40)
