"""A Prefect server for tests, and what they ask of it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from perpetual_blocks.adapters.local_server import local_server

OURS = frozenset({"resource-budget", "state-persistence"})
"""The slugs of our blocks."""


@dataclass(frozen=True)
class PrefectServer:
    """A running server.

    Attributes:
        api: The API's address.
        home: The Prefect home that goes with it.
        knew: The slugs of ours that it knew soon after its start, before anybody told it.
    """

    api: str
    home: Path
    knew: frozenset[str]

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to find the server."""
        return {**os.environ, "PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.home)}

    def get(self, path: str) -> Any:
        """What the API answers."""
        return httpx.get(f"{self.api}{path}", timeout=30).raise_for_status().json()

    def forget_block_types(self) -> None:
        """Deletes our block types, and with them the blocks of these types."""
        for identifier in _our_block_types(self.api).values():
            httpx.delete(f"{self.api}/block_types/{identifier}", timeout=30).raise_for_status()

    def forget_blocks(self) -> None:
        """Deletes the blocks of our types that other tests have saved."""
        types = {"any_": list(_our_block_types(self.api).values())}
        asked = {"block_documents": {"block_type_id": types}}
        saved = httpx.post(f"{self.api}/block_documents/filter", json=asked, timeout=30).raise_for_status().json()
        for block in saved:
            httpx.delete(f"{self.api}/block_documents/{block['id']}", timeout=30).raise_for_status()

    @contextmanager
    def here(self) -> Iterator[None]:
        """This process talks to it, too."""
        with temporary_settings({PREFECT_API_URL: self.api}):
            yield


@contextmanager
def running_prefect(home: Path) -> Iterator[PrefectServer]:
    """Starts a server and stops it at the end."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(home))
        with local_server() as api:
            yield PrefectServer(api, home, _registered(api))


def _registered(api: str, seconds: float = 60) -> frozenset[str]:
    """Which of our blocks the server knows, which registers what it finds in the background."""
    deadline = time.monotonic() + seconds
    while (known := frozenset(_our_block_types(api))) != OURS and time.monotonic() < deadline:
        time.sleep(0.1)
    return known


def _our_block_types(api: str) -> dict[str, str]:
    known = httpx.post(f"{api}/block_types/filter", json={"limit": 200}, timeout=30).raise_for_status().json()
    return {block_type["slug"]: block_type["id"] for block_type in known if block_type["slug"] in OURS}
