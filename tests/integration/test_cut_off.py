"""Units that take too long, in real flow runs."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from workbench import HERE, Site

from perpetual_blocks.cli.output import NOT_FINISHED

FLOWS = ("sleepers", "dreamers")


@pytest.fixture(scope="module")
def ended(shared_site: Site) -> "dict[str, subprocess.CompletedProcess[str]]":
    """The chains, which sleep most of the time, side by side."""

    def run(flow: str) -> "subprocess.CompletedProcess[str]":
        parameters = {"notes": shared_site.folder / f"notes-{flow}", "chain": f"sleepy-{flow}"}
        given = [f"--param={name}={value}" for name, value in parameters.items()]
        return shared_site.perpetual("run", f"{HERE / 'sleepers.py'}:{flow}", *given, "--json")

    with ThreadPoolExecutor() as threads:
        return dict(zip(FLOWS, threads.map(run, FLOWS), strict=True))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_unit_that_sleeps_too_long_is_cut_off_and_the_chain_ends(
    shared_site: Site, ended: "dict[str, subprocess.CompletedProcess[str]]", flow: str
) -> None:
    """Each session ends in order at its limit, the sleeper is given up when whole sessions were too short for it, and
    what it spent counts; the others are done, each once. Isolated units are in processes that are not the session's."""
    done, notes = ended[flow], shared_site.folder / f"notes-{flow}"
    assert done.returncode == NOT_FINISHED, done.stderr  # one is discarded
    status = json.loads(done.stdout)
    assert status["status"] == "finished"
    assert all(session["graceful"] for session in status["sessions"])
    assert {session["stop_reason"] for session in status["sessions"][:-1]} == {"budget:seconds"}
    for session in status["sessions"]:
        (limit,) = session["limits"]
        assert limit["resource"] == "seconds"
        assert limit["used"] < limit["amount"] + 12
    listed = shared_site.here("items", "list", f"sleepy-{flow}", "--json").json()
    assert {item["id"]: item["status"] for item in listed} == {
        "n/0": "completed", "n/1": "discarded", "n/2": "completed"
    }  # fmt: skip
    lines = [line.split() for line in notes.read_text().splitlines()]
    if flow == "sleepers":
        assert len({pid for _, pid in lines}) == len(lines)
        assert not {int(pid) for _, pid in lines} & {session["pid"] for session in status["sessions"]}
    assert status["usage"]["tokens"] == 10 * len(lines)
