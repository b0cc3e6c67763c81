"""`perpetual run`: chains of real processes, some of which are really killed."""

import json
import signal
import time
from pathlib import Path

import pytest
from support import session_request
from workbench import PERPETUAL, SQUARES, Site, hurry, ran, wait_until

from perpetual_blocks.session.manners import MOST_CRASHED, after_crash


def run(site: Site, chain: str, notes: Path, n: int = 12, **environment: str) -> dict:
    parameters = [f"--param={name}={value}" for name, value in (("notes", notes), ("chain", chain), ("n", n))]
    done = site.perpetual("run", f"{SQUARES}:squares", *parameters, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_chain_goes_through_fresh_processes_until_the_queue_is_empty(site: Site) -> None:
    """Each session is a flow run and a process of its own, stops before its budget, and nothing is done twice."""
    notes = site.folder / "notes"
    status = run(site, "whole", notes)
    assert status["status"] == "finished"
    assert [s["state"] for s in status["sessions"]] == ["Wrapped", "Wrapped", "Finished"]
    assert [s["stop_reason"] for s in status["sessions"]] == ["budget:tokens", "budget:tokens", "queue-empty"]
    assert len({s["pid"] for s in status["sessions"]}) == len({s["flow_run_id"] for s in status["sessions"]}) == 3
    assert all(session["usage"]["tokens"] <= 50 for session in status["sessions"])
    assert ran(notes) == {f"n/{number}": 1 for number in range(12)}
    assert status["items"] == {
        "total": 12, "completed": 12, "available": 0, "blocked": 0, "claimed": 0, "discarded": 0, "cancelled": 0
    }  # fmt: skip
    assert status["usage"]["tokens"] == 120
    assert status["metrics"]["graceful_shutdowns"] == status["metrics"]["context_preservation"] == 1
    assert status["metrics"]["work_completion_rate"] == 1


@pytest.mark.parametrize("point", ["unit.persisted", "unit.committed"])
def test_a_unit_whose_outcome_is_persisted_never_runs_again(site: Site, point: str) -> None:
    """SIGKILL of every session at its third unit, before or after the ledger's commit: each unit has run once."""
    notes = site.folder / "notes"
    status = run(site, "killed", notes, n=5, PERPETUAL_FAULT=f"{point}:3")
    assert status["status"] == "finished"
    assert "crashed" in [session["stop_reason"] for session in status["sessions"]]
    assert ran(notes) == {f"n/{number}": 1 for number in range(5)}
    assert status["usage"]["tokens"] == 50
    assert site.here("items", "list", "killed", "--json").json()[0]["status"] == "completed"


def test_a_unit_that_was_running_when_its_process_was_killed_is_tried_again(site: Site) -> None:
    """SIGKILL right after claiming: the item is free again, and no attempt is counted."""
    notes = site.folder / "notes"
    status = run(site, "claimed", notes, n=4, PERPETUAL_FAULT="unit.claimed:3")
    assert status["status"] == "finished"
    items = site.here("items", "list", "claimed", "--json").json()
    assert {item["failures"] for item in items} == {0}
    assert sum(item["interruptions"] for item in items) >= 1


def test_a_chain_that_only_crashes_is_given_up(site: Site) -> None:
    """The eighth session in a row that dies without finishing a unit ends the run with exit code 1, not an endless
    loop. The seven before it are of other processes, so that nobody waits for the pauses between them."""
    for number in range(MOST_CRASHED - 1):
        request = session_request("loop", f"holder-{number}", agent="Squares", settings={"kinds": ["default"]})
        fence = site.ledger.open_session(request).fence
        site.ledger.declare_dead("loop", fence.ordinal)
        site.ledger.rescue(
            "loop", fence.ordinal, "it died", lambda chain, sessions: after_crash(chain, sessions, time.time())
        )

    done = site.perpetual(
        "run", f"{SQUARES}:squares", "--param", f"notes={site.folder / 'notes'}", "--param", "chain=loop",
        PERPETUAL_FAULT="unit.claimed:1",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    status = site.status("loop")
    assert (status["status"], len(status["sessions"])) == ("stalled", MOST_CRASHED)
    assert "died before they had finished a unit" in status["reason"]


def test_sigterm_wraps_the_session_and_the_same_command_goes_on(site: Site) -> None:
    """A stop from outside happens between units: the running unit is finished, a handoff written, nothing lost."""
    notes = site.folder / "notes"
    parameters = {"notes": notes, "chain": "stopped", "n": 6, "nap": 60}
    arguments = ["run", f"{SQUARES}:squares", *(f"--param={name}={value}" for name, value in parameters.items())]
    child = site.start(*PERPETUAL, *arguments)
    wait_until(notes.exists, "the first unit")
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130
    status = site.status("stopped")
    assert (status["status"], status["sessions"][0]["stop_reason"]) == ("waiting", "signal")
    assert status["sessions"][0]["graceful"]
    assert "the process was asked to end" in site.here("handoff", "stopped").out
    hurry(notes)
    assert site.perpetual(*arguments).returncode == 0
    assert ran(notes) == {f"n/{number}": 1 for number in range(6)}
