"""Warm successors: the processes of served runs wait at the fence, and go on within a moment, or are not needed.

All chains are begun at once, and each waits for its test with a successor at the fence: the longest comes last.
"""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from workbench import HERE, PERPETUAL, Site, hurry, successor, wait_until

PACED = HERE / "paced.py"
MOST_SECONDS = 5.0
"""Of a handoff on a busy machine; benchmarks measure what it takes on a calm one."""

ITEMS = {
    "warm": 24,
    "killed-ahead": 12,
    "done": 30,
    "paused-ahead": 30,
    "cancelled-ahead": 30,
    "suspended-ahead": 12,
}
"""Of each chain that is served."""


def gaps(status: dict[str, Any], notes: Path) -> list[float]:
    """The seconds from the end of the last unit of each session to the beginning of the first of the next."""
    units = sorted((float(end), float(began)) for _, began, end in map(str.split, notes.read_text().splitlines()))
    firsts, done = [], 0
    for session in status["sessions"][:-1]:
        done += session["units"]
        firsts.append(units[done][1] - units[done - 1][0])
    return firsts


def notes_of(site: Site, chain: str) -> Path:
    """Where a chain notes its units."""
    return site.folder / f"notes-{chain}"


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """With Prefect's own settings."""
    named = {"PREFECT_RUNNER_POLL_FREQUENCY"}
    return replace(shared_site, environment={k: v for k, v in shared_site.environment.items() if k not in named})


@pytest.fixture(scope="module")
def local(site: Site) -> "subprocess.Popen[bytes]":
    """A chain that `perpetual run` looks after."""
    parameters = {"notes": notes_of(site, "local"), "chain": "local", "n": 14}
    arguments = [f"--param={name}={value}" for name, value in parameters.items()]
    return site.start(*PERPETUAL, "run", f"{PACED}:paced", *arguments)


@pytest.fixture(scope="module")
def waiting(site: Site, local: "subprocess.Popen[bytes]") -> dict[str, str]:
    """The runs that wait at the fence, by their chains: all of them are there, so that the machine is calm."""
    site.serve(PACED)
    for chain, n in ITEMS.items():
        site.trigger("paced/served", {"notes": str(notes_of(site, chain)), "chain": chain, "n": n})
    return {chain: successor(site, chain) for chain in (*ITEMS, "local")}


def test_a_pause_is_heard_at_the_fence(site: Site, waiting: dict[str, str]) -> None:
    """`perpetual pause` sends the successor away at once; the session wraps after its unit."""
    assert site.here("pause", "paused-ahead").code == 0
    assert site.final_run(waiting["paused-ahead"])["state_name"] == "Superseded"
    assert site.chain_over("paused-ahead")["status"] == "paused"


def test_a_successor_is_cancelled_by_itself(site: Site, waiting: dict[str, str]) -> None:
    """Cancelling the run that waits ends it within seconds, and the chain with the session that it waited for."""
    run = waiting["cancelled-ahead"]
    state = {"type": "CANCELLING", "name": "Cancelling"}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    assert site.final_run(run)["state_name"] == "Cancelled"
    hurry(notes_of(site, "cancelled-ahead"))
    status = site.chain_over("cancelled-ahead")
    assert (status["status"], status["reason"]) == ("cancelled", "the flow run that was to go on was cancelled")
    assert [session["state"] for session in status["sessions"]] == ["Wrapped"]


def test_it_is_not_needed_where_the_queue_is_done_first(site: Site, waiting: dict[str, str]) -> None:
    """A person gives up what is left while the successor waits: the session finishes, and the successor ends, without
    having been a session."""
    left = site.here("items", "list", "done", "--json", "--status", "available").json()
    assert site.here("items", "discard", "done", *(item["id"] for item in left)).code == 0
    hurry(notes_of(site, "done"))

    status = site.chain_over("done")

    assert (status["status"], len(status["sessions"])) == ("finished", 1)
    run = site.final_run(waiting["done"])
    assert (run["name"], run["state_name"]) == ("done · 2", "Superseded")
    assert "session 2 of done is not needed: the chain is finished" in run["state"]["message"]


def test_it_goes_on_where_the_session_before_is_killed(site: Site, waiting: dict[str, str]) -> None:
    """SIGKILL of the session while its successor waits: that one goes on, without another run in between."""
    notes = notes_of(site, "killed-ahead")
    os.kill(site.status("killed-ahead")["sessions"][0]["pid"], signal.SIGKILL)
    hurry(notes)

    status = site.chain_over("killed-ahead")

    assert (status["status"], status["items"]["completed"]) == ("finished", 12)
    assert [session["state"] for session in status["sessions"]] == ["Crashed", "Finished"]
    assert status["sessions"][1]["flow_run_id"] == waiting["killed-ahead"]
    assert len(site.runs_of("killed-ahead")) == 2
    assert status["usage"]["tokens"] == 120
    assert len({line.split()[0] for line in notes.read_text().splitlines()}) == 12


def test_a_successor_that_was_paused_goes_on_when_it_is_resumed(site: Site, waiting: dict[str, str]) -> None:
    """Pausing the run that waits suspends it for as long as a person wants; the chain waits for it meanwhile."""
    run = waiting["suspended-ahead"]
    state = {"type": "PAUSED", "name": "Paused", "state_details": {"pause_timeout": "2100-01-01T00:00:00Z"}}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    wait_until(lambda: site.run(run)["state_name"] == "Suspended", "suspended", 30)
    hurry(notes_of(site, "suspended-ahead"))
    wait_until(lambda: site.status("suspended-ahead")["status"] == "waiting", "the session has ended")

    site.call("POST", f"/flow_runs/{run}/resume", {})

    status = site.chain_over("suspended-ahead")
    assert (status["status"], status["items"]["completed"]) == ("finished", 12)
    assert [session["flow_run_id"] for session in status["sessions"]][1:] == [run]


def test_local_chains_have_successors_too(
    site: Site, waiting: dict[str, str], local: "subprocess.Popen[bytes]"
) -> None:
    """`perpetual run` starts the next process ahead of the end of the one before."""
    notes = notes_of(site, "local")
    hurry(notes)
    assert local.wait(120) == 0
    status = site.status("local")
    assert [session["state"] for session in status["sessions"]] == ["Wrapped", "Finished"]
    assert status["sessions"][1]["waited_seconds"]
    print(f"gap: {gaps(status, notes)}")
    assert 0 < gaps(status, notes)[0] < MOST_SECONDS


def test_a_served_chain_goes_on_within_a_moment(site: Site, waiting: dict[str, str]) -> None:
    """Each follow-on was created ahead, waited, and began when the session before ended. Nothing ran twice, two
    sessions never at once, and each session had one run."""
    notes = notes_of(site, "warm")
    hurry(notes, session=1)
    successor(site, "warm", 3)
    hurry(notes, session=2)

    status = site.chain_over("warm")

    sessions = status["sessions"]
    assert [session["state"] for session in sessions] == ["Wrapped", "Wrapped", "Finished"]
    assert [session["units"] for session in sessions] == [10, 10, 4]
    assert len(notes.read_text().splitlines()) == 24
    assert all(session["waited_seconds"] for session in sessions[1:])
    print(f"gaps: {gaps(status, notes)}")
    assert all(0 < gap < MOST_SECONDS for gap in gaps(status, notes))
    runs = site.runs_of("warm")
    assert sorted(run["name"] for run in runs) == ["warm · 1", "warm · 2", "warm · 3"]
    assert {site.final_run(run["id"])["state_name"] for run in runs} == {"Wrapped", "Finished"}
