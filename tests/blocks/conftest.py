"""A Prefect server for the tests of the blocks."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from perpetual_blocks.adapters.local_server import local_server

SLUGS = {"resource-budget", "state-persistence"}


@dataclass(frozen=True)
class BlockServer:
    """A server on which our blocks are registered.

    Attributes:
        environment: What a child process needs to find the server.
        registered_by_itself: The slugs of ours that the server knew soon after its start.
        registration: What `prefect block register` said, after those had been deleted.
    """

    api: str
    environment: dict[str, str]
    registered_by_itself: set[str]
    registration: "subprocess.CompletedProcess[str]"

    def get(self, path: str) -> Any:
        """What the API answers."""
        return httpx.get(f"{self.api}{path}", timeout=30).raise_for_status().json()


@pytest.fixture(scope="session")
def block_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockServer]:
    """A server with a home of its own, on which our blocks are registered by Prefect's own command."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with local_server() as api:
            found = _forget_our_blocks(api)
            child = {**os.environ, "PREFECT_API_URL": api}
            command = [sys.executable, "-m", "prefect", "block", "register", "-m", "perpetual_blocks"]
            said = subprocess.run(command, env=child, capture_output=True, text=True, timeout=120, check=False)
            yield BlockServer(api, child, found, said)


def _forget_our_blocks(api: str, seconds: float = 30) -> set[str]:
    """Deletes our block types, which the server registers in the background; returns those that it had."""
    deadline = time.monotonic() + seconds
    while True:
        known = httpx.post(f"{api}/block_types/filter", json={"limit": 200}, timeout=30).raise_for_status().json()
        ours = {block_type["slug"]: block_type["id"] for block_type in known if block_type["slug"] in SLUGS}
        if len(ours) == len(SLUGS) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for identifier in ours.values():
        httpx.delete(f"{api}/block_types/{identifier}", timeout=30).raise_for_status()
    return set(ours)


@pytest.fixture
def on_server(block_server: BlockServer) -> Iterator[BlockServer]:
    """The server, which this process talks to as well."""
    with temporary_settings({PREFECT_API_URL: block_server.api}):
        yield block_server


@pytest.fixture
def address(tmp_path: Path) -> str:
    """The address of a ledger, which must not be seen."""
    return str(tmp_path / "not-for-your-eyes.db")
