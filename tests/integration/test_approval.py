"""A total that is gone: the run is suspended with a form, and goes on with what is approved there, or by a command."""

import json
from pathlib import Path
from typing import Any

import pytest
from workbench import HERE, Site, wait_until

FORM = "suspended-session-1"


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """A site where ten tokens a unit are spent of forty-five in all."""
    shared_site.serve(HERE / "spender.py")
    return shared_site


def suspended(site: Site, chain: str) -> tuple[str, Path]:
    """A run that has used up its total, and asks."""
    notes = site.folder / f"notes-{chain}"
    run = site.trigger("spender/served", {"notes": str(notes), "chain": chain})
    wait_until(lambda: site.run(run)["state_name"] == "Suspended", f"{chain} suspended")
    return run, notes


def form(site: Site, run: str, part: str) -> Any:
    """What the UI shows of it."""
    return site.call("GET", f"/flow_runs/{run}/input/{FORM}-{part}")


def resume(site: Site, run: str, answer: dict[str, Any]) -> str:
    """Fills in the form as the UI does; what the server says."""
    return str(site.call("POST", f"/flow_runs/{run}/resume", {"run_input": answer})["status"])


def test_more_is_approved_in_the_form_and_by_the_command(site: Site) -> None:
    """The state comes first: the chain is exhausted and free while its run asks. What does not fit the form is refused;
    an answer lets the chain go on in a new run, and the next question is answered by `perpetual approve`."""
    run, notes = suspended(site, "asks")
    other, _ = suspended(site, "stops")
    status = site.status("asks")
    assert (status["status"], status["sessions"][0]["graceful"]) == ("exhausted", True)
    assert status["asks_until"] is not None
    assert "4 of 8 items are done" in form(site, run, "description")
    fields = form(site, run, "schema")["properties"]
    assert fields["decision"]["enum"] == ["more", "finish this unit", "stop"]
    assert [fields["more_tokens"][name] for name in ("default", "minimum", "maximum")] == [35, 1, 45]
    assert resume(site, run, {"decision": "more", "more_tokens": 46}) == "REJECT"
    assert resume(site, run, {"decision": "maybe"}) == "REJECT"
    assert resume(site, run, {}) == "REJECT"

    assert resume(site, run, {"decision": "finish this unit"}) == "ACCEPT"
    assert resume(site, other, {"decision": "stop"}) == "ACCEPT"

    ended = site.final_run(run)
    assert (ended["state_name"], ended["state"]["message"]) == (
        "Wrapped",
        "a person has approved 5 tokens more for one unit; session 2 goes on",
    )
    second = wait_until(lambda: site.status("asks")["sessions"][1:] and site.chain_over("asks"), "session 2 over")
    assert (second["status"], second["sessions"][1]["units"]) == ("exhausted", 1)
    again = second["sessions"][1]["flow_run_id"]
    wait_until(lambda: site.run(again)["state_name"] == "Suspended", "asked again")
    stopped = site.final_run(other)
    assert stopped["state_name"] == "Exhausted"
    assert "a person says stop; `perpetual approve stops` lets it go on" in stopped["state"]["message"]

    approved = json.loads(site.perpetual("approve", "asks", "--more", "tokens=35", "--json").stdout)

    assert (approved["status"], approved["approved"]) == ("waiting", {"tokens": 35.0})
    assert site.final_run(again)["state_name"] == "Wrapped"
    wait_until(lambda: site.status("asks")["status"] == "finished", "finished")
    assert notes.read_text().split() == [f"n/{number}" for number in range(8)]
    assert len(site.runs_of("asks")) == 3
    assert site.status("stops")["status"] == "exhausted"


def test_who_goes_on_by_hand_comes_first(site: Site) -> None:
    """Another run of the chain ends the question of the one that is suspended; an answer that is on its way then finds
    the chain gone on."""
    run, notes = suspended(site, "raced")
    # As if the answer had been given a moment before: its run starts while the other one is at work.
    second = site.trigger("spender/served", {"notes": str(notes), "chain": "raced"})
    wait_until(lambda: len(site.status("raced")["sessions"]) == 2, "session 2")
    ended = site.final_run(run)
    assert (ended["state_name"], ended["state"]["message"]) == (
        "Superseded",
        "session 2 of raced goes on in another run",
    )
    wait_until(lambda: site.run(second)["state_name"] == "Suspended", "it asks in its turn")
    state = {
        "type": "PAUSED",
        "name": "Suspended",
        "state_details": {"pause_reschedule": True, "pause_key": "session-1"},
    }
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
    answer = json.dumps({"decision": "more", "more_tokens": 35})
    body = {"key": f"{FORM}-response", "value": answer}
    site.call("POST", f"/flow_runs/{run}/input", body)
    site.call("POST", f"/flow_runs/{run}/resume", {})
    late = site.final_run(run)
    assert late["state_name"] == "Superseded"
    assert "others have gone on with raced" in late["state"]["message"]
    assert site.status("raced")["approvals"] == []
