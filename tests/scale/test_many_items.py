"""Many items in short; `python tests/scale/many_items.py --items 1000000` is the long form."""

from pathlib import Path

import many_items
import pytest
from prefect_server import PrefectServer


@pytest.mark.parametrize(("database", "agents"), [("sqlite", 1), ("postgres", many_items.AGENTS)])
def test_each_item_is_done_once(prefect_server: PrefectServer, tmp_path: Path, database: str, agents: int) -> None:
    """By one chain in several sessions, and by four agents on one queue."""
    found = many_items.run(4_000, database, 4, tmp_path, prefect_server)

    assert {name: found[name] for name in ("exit_code", "open", "twice", "missing")} == dict.fromkeys(
        ("exit_code", "open", "twice", "missing"), 0
    ), found
    assert (found["planned"], found["agents"]) == (4_000, agents)
