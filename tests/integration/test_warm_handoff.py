"""Warm successors: the processes of served runs wait at the fence, and go on within a moment, or are not needed."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench import HERE, Site, wait_until

PACED = HERE / "paced.py"
MOST_SECONDS = 5.0
"""Of a handoff on a busy machine; benchmarks measure what it takes on a calm one."""


def gaps(status: dict[str, Any], notes: Path) -> list[float]:
    """The seconds from the end of the last unit of each session to the beginning of the first of the next."""
    units = sorted((float(end), float(began)) for _, began, end in map(str.split, notes.read_text().splitlines()))
    firsts, done = [], 0
    for session in status["sessions"][:-1]:
        done += session["units"]
        firsts.append(units[done][1] - units[done - 1][0])
    return firsts


def successor(site: Site, chain: str, ordinal: int = 2) -> str:
    """The flow run that waits at the fence, once it does."""

    def look() -> str | None:
        waits = f"{chain} · {ordinal} waits for session {ordinal - 1} to end"
        return next((run["id"] for run in site.runs_of(chain) if run["name"] == waits), None)

    return str(wait_until(look, f"a run that waits to be session {ordinal}"))


def start(site: Site, chain: str, **parameters: Any) -> Path:
    """Serves the agent, and starts a chain of it; where it notes its units."""
    notes = site.folder / "notes"
    site.serve(PACED)
    site.trigger("paced/served", {"notes": str(notes), "chain": chain, **parameters})
    return notes


def test_a_served_chain_goes_on_within_a_moment(site: Site) -> None:
    """With Prefect's own settings: each follow-on was created ahead, waited, and began when the session before ended.
    Nothing ran twice, two sessions never at once, and each session had one run."""
    environment = {name: value for name, value in site.environment.items() if name != "PREFECT_RUNNER_POLL_FREQUENCY"}
    site = replace(site, environment=environment)
    notes = start(site, "warm", n=24, nap=4.5)

    status = site.chain_over("warm", seconds=400)

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


def test_it_goes_on_where_the_session_before_is_killed(site: Site) -> None:
    """SIGKILL of the session while its successor waits: that one goes on, without another run in between."""
    notes = start(site, "killed-ahead", n=12, nap=6.0)
    waiting = successor(site, "killed-ahead")
    os.kill(site.status("killed-ahead")["sessions"][0]["pid"], signal.SIGKILL)

    status = site.chain_over("killed-ahead")

    assert (status["status"], status["items"]["completed"]) == ("finished", 12)
    assert [session["state"] for session in status["sessions"]] == ["Crashed", "Finished"]
    assert status["sessions"][1]["flow_run_id"] == waiting
    assert len(site.runs_of("killed-ahead")) == 2
    assert status["usage"]["tokens"] == 120
    assert len({line.split()[0] for line in notes.read_text().splitlines()}) == 12


def test_it_is_not_needed_where_the_queue_is_done_first(site: Site) -> None:
    """A person gives up what is left while the successor waits: the session finishes, and the successor ends, without
    having been a session."""
    start(site, "done", nap=6.0)
    waiting = successor(site, "done")
    left = json.loads(site.perpetual("items", "list", "done", "--json", "--status", "available").stdout)
    assert site.perpetual("items", "discard", "done", *(item["id"] for item in left)).returncode == 0

    status = site.chain_over("done")

    assert (status["status"], len(status["sessions"])) == ("finished", 1)
    run = site.final_run(waiting)
    assert (run["name"], run["state_name"]) == ("done · 2", "Superseded")
    assert "session 2 of done is not needed: the chain is finished" in run["state"]["message"]


def test_a_pause_is_heard_at_the_fence(site: Site) -> None:
    """`perpetual pause` sends the successor away at once; the session wraps after its unit."""
    start(site, "paused-ahead", nap=6.0)
    waiting = successor(site, "paused-ahead")
    assert site.perpetual("pause", "paused-ahead").returncode == 0
    assert site.final_run(waiting)["state_name"] == "Superseded"
    assert site.chain_over("paused-ahead")["status"] == "paused"


def test_a_successor_is_cancelled_by_itself(site: Site) -> None:
    """Cancelling the run that waits ends it within seconds, and the chain with the session that it waited for."""
    start(site, "cancelled-ahead", nap=6.0)
    waiting = successor(site, "cancelled-ahead")
    state = {"type": "CANCELLING", "name": "Cancelling"}
    site.call("POST", f"/flow_runs/{waiting}/set_state", {"state": state, "force": False})
    assert site.final_run(waiting)["state_name"] == "Cancelled"
    status = site.chain_over("cancelled-ahead")
    assert (status["status"], status["reason"]) == ("cancelled", "the flow run that was to go on was cancelled")
    assert [session["state"] for session in status["sessions"]] == ["Wrapped"]


def test_a_successor_that_was_paused_goes_on_when_it_is_resumed(site: Site) -> None:
    """Pausing the run that waits suspends it for as long as a person wants; the chain waits for it meanwhile."""
    start(site, "suspended-ahead", n=12, nap=6.0)
    waiting = successor(site, "suspended-ahead")
    state = {"type": "PAUSED", "name": "Paused", "state_details": {"pause_timeout": "2100-01-01T00:00:00Z"}}
    site.call("POST", f"/flow_runs/{waiting}/set_state", {"state": state, "force": False})
    wait_until(lambda: site.run(waiting)["state_name"] == "Suspended", "suspended", 30)
    wait_until(lambda: site.status("suspended-ahead")["status"] == "waiting", "the session has ended")

    site.call("POST", f"/flow_runs/{waiting}/resume", {})

    status = site.chain_over("suspended-ahead")
    assert (status["status"], status["items"]["completed"]) == ("finished", 12)
    assert [session["flow_run_id"] for session in status["sessions"]][1:] == [waiting]


def test_local_chains_have_successors_too(site: Site) -> None:
    """`perpetual run` starts the next process ahead of the end of the one before."""
    notes = site.folder / "notes"
    parameters = {"notes": notes, "chain": "local", "n": 14, "nap": 4.0}
    arguments = [f"--param={name}={value}" for name, value in parameters.items()]
    done = site.perpetual("run", f"{PACED}:paced", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert [session["state"] for session in status["sessions"]] == ["Wrapped", "Finished"]
    assert status["sessions"][1]["waited_seconds"]
    print(f"gap: {gaps(status, notes)}")
    assert 0 < gaps(status, notes)[0] < MOST_SECONDS
