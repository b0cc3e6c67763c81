"""A real Prefect server, and a place for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_server import PrefectServer
from workbench import Site, site_on


@pytest.fixture
def site(prefect_server: PrefectServer, tmp_path: Path) -> Iterator[Site]:
    """The server with a ledger and results storage of the test's own."""
    with site_on(prefect_server.api, prefect_server.home, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_site(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same for all tests of a file, whose chains have different names: what is served need not be started anew."""
    with site_on(prefect_server.api, prefect_server.home, tmp_path_factory.mktemp("site")) as made:
        yield made
