"""Pause, resume, cancel and stop-all: from the shell and through Prefect's API, as its UI does."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from workbench import HERE, Site, hurry, wait_until

STEADY = HERE / "steady.py"


def ran(notes: Path) -> Counter[str]:
    """How often each unit ran."""
    return Counter(line.split()[0] for line in notes.read_text().splitlines())


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """A site where squares without a budget are served."""
    shared_site.serve(STEADY)
    return shared_site


def started(site: Site, chain: str, n: int = 6, nap: float = 60.0) -> tuple[str, Path]:
    """A served run of a chain that has finished its first unit."""
    notes = site.folder / f"notes-{chain}"
    run = site.trigger("steady/served", {"notes": str(notes), "n": n, "nap": nap, "chain": chain})
    wait_until(notes.exists, "the first unit")
    return run, notes


def finished(site: Site, chain: str) -> dict[str, Any]:
    """The chain's status, once it is finished."""
    wait_until(lambda: site.status(chain)["status"] == "finished", f"{chain} finished")
    return site.status(chain)


def test_paused_in_the_ui_and_resumed_there(site: Site) -> None:
    """The session wraps, its run is Suspended without a time-out, and Resume goes on in the same run: nothing twice."""
    run, notes = started(site, "paused")
    state = {"type": "PAUSED", "name": "Paused", "state_details": {"pause_timeout": "2100-01-01T00:00:00Z"}}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    wait_until(lambda: site.status("paused")["status"] == "paused", "paused", 30)
    wait_until(lambda: site.run(run)["state_name"] == "Suspended", "suspended", 30)
    status = site.status("paused")
    assert (status["sessions"][0]["state"], status["sessions"][0]["graceful"]) == ("Paused", True)
    assert 0 < len(ran(notes)) < 6
    assert len(site.runs_of("paused")) == 1

    hurry(notes)
    site.call("POST", f"/flow_runs/{run}/resume", {})

    status = finished(site, "paused")
    assert status["items"]["completed"] == 6
    assert status["sessions"][1]["flow_run_id"] == run
    assert ran(notes) == {f"n/{number}": 1 for number in range(6)}


def test_suspended_from_outside(site: Site) -> None:
    """A suspension that Prefect itself notices between two units wraps the session all the same; Resume goes on."""
    run, notes = started(site, "suspended", n=16, nap=0.7)  # no time for us to look before the next unit
    details = {"pause_timeout": "2100-01-01T00:00:00Z", "pause_reschedule": True}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    wait_until(lambda: site.status("suspended")["status"] == "paused", "paused", 30)
    assert site.status("suspended")["sessions"][0]["graceful"]
    wait_until(lambda: site.status("suspended")["sessions"][0]["state"] == "Paused", "wrapped", 30)

    hurry(notes)
    site.call("POST", f"/flow_runs/{run}/resume", {})

    assert finished(site, "suspended")["sessions"][1]["flow_run_id"] == run
    assert ran(notes) == {f"n/{number}": 1 for number in range(16)}


def test_paused_and_resumed_from_the_shell(site: Site) -> None:
    """`perpetual pause` wraps the session within seconds; nothing follows until `perpetual resume`, which creates one
    follow-on; a run that is started meanwhile is refused."""
    run, notes = started(site, "held")
    assert site.perpetual("pause", "held", "--why", "the provider is down").returncode == 0
    wait_until(lambda: site.status("held")["status"] == "paused", "paused", 30)
    assert site.final_run(run)["state_name"] == "Paused"
    other = site.trigger("steady/served", {"notes": str(notes), "chain": "held"})
    assert site.final_run(other)["state_name"] == "Superseded"
    assert "the provider is down" in site.final_run(other)["state"]["message"]

    hurry(notes)
    assert "held goes on" in site.perpetual("resume", "held").stdout

    status = finished(site, "held")
    assert status["items"]["completed"] == 6
    assert ran(notes) == {f"n/{number}": 1 for number in range(6)}
    refused = site.perpetual("resume", "held")
    assert refused.returncode == 2
    assert "finished" in refused.stderr


def test_cancelled_from_the_shell(site: Site) -> None:
    """The run ends Cancelled, the chain never goes on by itself, a paused one can be cancelled too."""
    run, _ = started(site, "ended")
    assert site.perpetual("cancel", "ended").returncode == 0
    assert site.final_run(run)["state_name"] == "Cancelled"
    assert site.status("ended")["status"] == "cancelled"
    assert site.status("ended")["sessions"][0]["graceful"]
    assert site.perpetual("supervise", "--once").returncode == 0
    assert len(site.runs_of("ended")) == 1


def test_one_switch_stops_every_chain(site: Site) -> None:
    """With stop-all every session wraps and none starts; `resume --all` lets those go on, and no chain that was held
    before."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda chain: started(site, chain), ("one", "two")))
    assert site.perpetual("pause", "two").returncode == 0
    wait_until(lambda: site.status("two")["status"] == "paused", "paused", 30)
    stopped = json.loads(site.perpetual("stop-all", "--why", "the bill", "--json").stdout)
    assert stopped == {"stopped": ["one"], "why": "the bill"}
    wait_until(lambda: site.status("one")["status"] == "paused", "held", 30)
    new = site.trigger("steady/served", {"notes": str(site.folder / "notes-new"), "chain": "new"})
    assert site.final_run(new)["state_name"] == "Superseded"
    assert "the bill" in site.final_run(new)["state"]["message"]

    hurry(site.folder / "notes-one")
    assert json.loads(site.perpetual("resume", "--all", "--json").stdout)["resumed"] == ["one"]

    finished(site, "one")
    assert site.status("two")["status"] == "paused"
