"""Rescue: the processes of served and deployed runs are killed, and their chains go on by themselves."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from workbench import PERPETUAL, REPOSITORY, SQUARES, Site, hurry, ran, wait_until


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """A site where squares are served, until one of the tests kills what serves them."""
    shared_site.serve(SQUARES)
    return shared_site


def killed_in_its_second_unit(site: Site, chain: str, notes: Path) -> dict[str, Any]:
    """Kills the chain's session while its second unit runs; returns the session as it was."""
    wait_until(lambda: len(ran(notes)) >= 1, "the first unit")
    session = site.status(chain)["sessions"][-1]
    os.kill(session["pid"], signal.SIGKILL)
    hurry(notes)
    return session


def test_a_served_run_that_is_killed_is_followed_at_once(site: Site) -> None:
    """Prefect's hook in the serving process creates one follow-on, long before any lease ends; nothing is lost."""
    notes = site.folder / "notes-hooked"
    site.trigger("squares/served", {"notes": str(notes), "n": 6, "nap": 60.0, "chain": "hooked"})
    dead = killed_in_its_second_unit(site, "hooked", notes)

    status = site.chain_over("hooked")

    assert (status["status"], status["items"]["completed"]) == ("finished", 6)
    first, second, *_ = status["sessions"]
    assert (first["state"], first["flow_run_id"]) == ("Crashed", dead["flow_run_id"])
    assert second["started_at"] > first["ended_at"]
    assert site.final_run(dead["flow_run_id"])["state_name"] == "Crashed"
    runs = site.runs_of("hooked")
    assert len(runs) == len(status["sessions"]), [run["name"] for run in runs]
    assert status["usage"]["tokens"] == 60


def test_what_no_hook_saw_the_supervisor_rescues(site: Site) -> None:
    """Server process and run killed together: the run stays Running for ever, until the supervisor looks; several
    supervisors at once create one follow-on."""
    notes = site.folder / "notes-orphan"
    serving, *_ = site.children
    site.trigger("squares/served", {"notes": str(notes), "n": 4, "nap": 60.0, "chain": "orphan"})
    wait_until(lambda: len(ran(notes)) >= 1, "the first unit")
    os.kill(serving.pid, signal.SIGKILL)
    session = site.status("orphan")["sessions"][-1]
    os.kill(session["pid"], signal.SIGKILL)
    serving.wait()
    assert site.run(session["flow_run_id"])["state_name"] == "Running"
    hurry(notes)

    looks = [site.start(*PERPETUAL, "supervise", "--once") for _ in range(3)]
    assert [look.wait(60) for look in looks] == [0, 0, 0]

    assert site.run(session["flow_run_id"])["state_name"] == "Crashed"
    assert len(site.runs_of("orphan")) == 2
    site.serve(SQUARES)
    status = site.chain_over("orphan")
    assert (status["status"], status["items"]["completed"], len(status["sessions"])) == ("finished", 4, 2)
    assert len(site.runs_of("orphan")) == 2
    wait_until(lambda: site.events("orphan")[-1]["event"] == "perpetual.session.finished", "its last event")
    told = Counter(event["event"] for event in site.events("orphan"))
    assert (told["perpetual.chain.rescued"], told["perpetual.session.crashed"]) == (1, 1)


def test_an_automation_runs_the_supervisor(site: Site) -> None:
    """`perpetual automations install` once, or twice: a run that is said to have crashed has the supervisor look."""
    site.serve(REPOSITORY / "flows" / "supervisor.py")
    for expected in ("installed", "there already"):
        done = site.here("automations", "install")
        assert expected in done.out, done.err
    notes = site.folder / "notes-automated"
    run = site.trigger("squares/served", {"notes": str(notes), "n": 3, "chain": "automated"})
    site.chain_over("automated")
    state = {"type": "CRASHED", "name": "Crashed"}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})

    def look() -> bool:
        return any(not run["auto_scheduled"] for run in site.runs_of_flow("supervisor"))

    wait_until(look, "a run of the supervisor besides those of its schedule")
    assert "1 removed" in site.here("automations", "remove").out
