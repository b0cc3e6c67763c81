"""A Prefect server for the tests of the blocks."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_server import PrefectServer


@pytest.fixture(scope="module")
def registration(prefect_server: PrefectServer) -> "subprocess.CompletedProcess[str]":
    """What `prefect block register` says where our blocks are unknown."""
    prefect_server.forget_block_types()
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "perpetual_blocks"]
    return subprocess.run(
        command, env=prefect_server.environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def on_server(prefect_server: PrefectServer, registration: object) -> Iterator[PrefectServer]:
    """The server with our blocks as that command registers them, which this process talks to as well."""
    with prefect_server.here():
        yield prefect_server


@pytest.fixture
def address(tmp_path: Path) -> str:
    """The address of a ledger, which must not be seen."""
    return str(tmp_path / "not-for-your-eyes.db")
