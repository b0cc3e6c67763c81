"""Units that take too long, in real flow runs."""

import json
import time

import pytest
from workbench import HERE, Site


@pytest.mark.parametrize("flow", ["sleepers", "dreamers"])
def test_a_unit_that_sleeps_too_long_is_cut_off_and_the_chain_ends(site: Site, flow: str) -> None:
    """Each session ends in order at its limit, the sleeper is given up when whole sessions were too short for it, and
    what it spent counts; the others are done, each once. Isolated units are in processes that are not the session's."""
    notes, began = site.folder / "notes", time.monotonic()

    done = site.perpetual(
        "run", f"{HERE / 'sleepers.py'}:{flow}", "--param", f"notes={notes}", "--param", "chain=sleepy", "--json"
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert time.monotonic() - began < 60 + 12
    assert status["status"] == "finished"
    assert all(session["graceful"] for session in status["sessions"])
    assert {session["stop_reason"] for session in status["sessions"][:-1]} == {"budget:seconds"}
    items = {item["id"]: item for item in json.loads(site.perpetual("items", "list", "sleepy", "--json").stdout)}
    assert {name: item["status"] for name, item in items.items()} == {
        "n/0": "completed", "n/1": "discarded", "n/2": "completed"
    }  # fmt: skip
    lines = [line.split() for line in notes.read_text().splitlines()]
    if flow == "sleepers":
        assert len({pid for _, pid in lines}) == len(lines)
        assert not {int(pid) for _, pid in lines} & {session["pid"] for session in status["sessions"]}
    assert status["usage"]["tokens"] == 10 * len(lines)
