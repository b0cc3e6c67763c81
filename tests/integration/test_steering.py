"""Pause, resume, cancel and stop-all: from the shell and through Prefect's API, as its UI does.

All chains are begun at once, and each waits for its test.
"""

from pathlib import Path
from typing import Any

import pytest
from workbench import HERE, Site, hurry, ran, wait_until

STEADY = HERE / "steady.py"


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """A site where squares without a budget are served."""
    shared_site.serve(STEADY)
    return shared_site


@pytest.fixture(scope="module")
def impatient(site: Site) -> None:
    """Squares are served there whose runs are resumed at once."""
    site.serve(HERE / "resumed_at_once.py")


@pytest.fixture(scope="module")
def runs(site: Site) -> dict[str, str]:
    """The first runs of all chains."""
    return {chain: trigger(site, chain, n=6, nap=600.0) for chain in ("paused", "held", "ended", "one", "two")}


def trigger(site: Site, chain: str, **parameters: Any) -> str:
    """A served run of a chain."""
    return site.trigger("steady/served", {"notes": str(notes_of(site, chain)), "chain": chain, **parameters})


def notes_of(site: Site, chain: str) -> Path:
    """Where a chain notes its units."""
    return site.folder / f"notes-{chain}"


def begun(site: Site, chain: str) -> Path:
    """Where a chain notes its units, once it has finished its first."""
    notes = notes_of(site, chain)
    wait_until(notes.exists, "the first unit")
    return notes


def finished(site: Site, chain: str) -> dict[str, Any]:
    """The chain's status, once it is finished."""
    wait_until(lambda: site.status(chain)["status"] == "finished", f"{chain} finished")
    return site.status(chain)


def test_paused_in_the_ui_and_resumed_there(site: Site, runs: dict[str, str]) -> None:
    """The session wraps, its run is Suspended without a time-out, and Resume goes on in the same run: nothing twice."""
    run, notes = runs["paused"], begun(site, "paused")
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
    run = trigger(site, "suspended", n=16, nap=0.7)  # no time for us to look before the next unit
    notes = begun(site, "suspended")
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


@pytest.mark.parametrize("name", ["Paused", "Suspended"])
@pytest.mark.parametrize("when", ["before", "within"])
def test_resumed_before_its_process_is_gone(site: Site, impatient: None, when: str, name: str) -> None:
    """Resume is heard however soon it comes: before the paused process has looked at its run, or said that it waits."""
    chain = f"{when}-{name.lower()}"
    run = site.trigger(
        "resumed-at-once/served", {"notes": str(notes_of(site, chain)), "chain": chain, "n": 4, "nap": 600.0}
    )
    notes = begun(site, chain)
    details = {"pause_timeout": "2100-01-01T00:00:00Z", "pause_reschedule": name == "Suspended"}
    state = {"type": "PAUSED", "name": name, "state_details": details}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    wait_until(lambda: site.status(chain)["status"] != "running", "paused", 30)
    hurry(notes)

    assert [one["flow_run_id"] for one in finished(site, chain)["sessions"]] == [run, run]
    assert site.final_run(run)["state_name"] == "Finished"
    assert ran(notes) == {f"n/{number}": 1 for number in range(4)}


def test_paused_and_resumed_from_the_shell(site: Site, runs: dict[str, str]) -> None:
    """`perpetual pause` wraps the session within seconds; nothing follows until `perpetual resume`, which creates one
    follow-on; a run that is started meanwhile is refused."""
    run, notes = runs["held"], begun(site, "held")
    assert site.here("pause", "held", "--why", "the provider is down").code == 0
    wait_until(lambda: site.status("held")["status"] == "paused", "paused", 30)
    assert site.final_run(run)["state_name"] == "Paused"
    other = trigger(site, "held")
    assert site.final_run(other)["state_name"] == "Superseded"
    assert "the provider is down" in site.final_run(other)["state"]["message"]

    hurry(notes)
    assert "held goes on" in site.here("resume", "held").out

    status = finished(site, "held")
    assert status["items"]["completed"] == 6
    assert ran(notes) == {f"n/{number}": 1 for number in range(6)}
    refused = site.here("resume", "held")
    assert refused.code == 2
    assert "finished" in refused.err


def test_cancelled_from_the_shell(site: Site, runs: dict[str, str]) -> None:
    """The run ends Cancelled, the chain never goes on by itself, a paused one can be cancelled too."""
    begun(site, "ended")
    assert site.here("cancel", "ended").code == 0
    assert site.final_run(runs["ended"])["state_name"] == "Cancelled"
    assert site.status("ended")["status"] == "cancelled"
    assert site.status("ended")["sessions"][0]["graceful"]
    assert site.perpetual("supervise", "--once").returncode == 0
    assert len(site.runs_of("ended")) == 1


def test_one_switch_stops_every_chain(site: Site, runs: dict[str, str]) -> None:
    """With stop-all every session wraps and none starts; `resume --all` lets those go on, and no chain that was held
    before."""
    for chain in ("one", "two"):
        begun(site, chain)
    assert site.here("pause", "two").code == 0
    wait_until(lambda: site.status("two")["status"] == "paused", "paused", 30)
    stopped = site.here("stop-all", "--why", "the bill", "--json").json()
    assert stopped == {"stopped": ["one"], "why": "the bill"}
    wait_until(lambda: site.status("one")["status"] == "paused", "held", 30)
    new = trigger(site, "new")
    assert site.final_run(new)["state_name"] == "Superseded"
    assert "the bill" in site.final_run(new)["state"]["message"]

    hurry(notes_of(site, "one"))
    assert site.here("resume", "--all", "--json").json()["resumed"] == ["one"]

    finished(site, "one")
    assert site.status("two")["status"] == "paused"
