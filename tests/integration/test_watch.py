"""`perpetual watch` of a chain of real processes, in a terminal and as plain lines; and what Prefect's UI has of it."""

import shlex
import sys
from typing import Any

from support import open_session
from terminal import terminal
from workbench import HERE, Site, wait_until

from perpetual_blocks.adapters.database import SqlLedger

SHARING = HERE / "sharing.py"
WATCH = [sys.executable, "-c", "from perpetual_blocks.cli import main; main()", "watch"]


def artifacts(site: Site, key: str) -> list[dict[str, Any]]:
    """All that were made under a key, the earliest first."""
    asked = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    return list(reversed(site.call("POST", "/artifacts/filter", asked)))


def test_a_chain_is_watched_to_its_end(site: Site) -> None:
    """The screen shows the session at work with its limits and items, and the end; a file gets a line for each thing
    that happens; Ctrl-C ends the watching quietly. In the UI: one progress artifact for each run, the queue's page, and
    the pool's mirror."""
    gate, log = site.folder / "gate", site.folder / "child-1.log"
    given = {"chain": "watched", "n": 20, "notes": site.folder / "notes", "gate": gate}
    command = [sys.executable, "-c", "from perpetual_blocks.cli import main; main()", "run", f"{SHARING}:sharing"]
    running = site.start(*command, *(f"--param={name}={value}" for name, value in given.items()))
    wait_until(lambda: site.status("watched").get("items", {}).get("claimed"), "a unit that runs")

    plain = site.start(*WATCH, "watched")
    with terminal(site.environment, shlex.join([*WATCH, "watched"])) as shown:
        screen = wait_until(lambda: "running" in (seen := shown.screen()) and "n/0" in seen and seen, "the view")
        wait_until(lambda: "0 of 20 items done" in log.read_text(), "the first lines")
        gate.touch()
        wait_until(lambda: "exit code" in shown.screen(), "the end")
        end = shown.screen()
    assert (plain.wait(60), running.wait(60)) == (0, 0)

    lines = [" ".join(line.split()) for line in screen.splitlines()]
    assert "watched running session 1 is at work" in lines
    assert any(line.endswith(" 0 of 20 items 19 available, 1 claimed") for line in lines)
    assert "running n/0 unit 1" in lines
    assert any(line.startswith("calls/total ") and line.endswith(" 0 calls 44 calls in all") for line in lines)
    assert any(line.startswith("tokens ") and line.endswith(" 0 tokens 85 tokens a session") for line in lines)
    assert "watched  finished  every item is done" in end
    assert "20 of 20 items" in end
    assert "exit code 0" in end

    said = log.read_text().splitlines()
    assert said[0].startswith("session 1 started (process ")
    assert any(line.startswith("session 1 Wrapped: 8 units, ") for line in said)
    assert any(line.startswith("session 3 Finished: 4 units, ") for line in said)
    assert "20 of 20 items done" in said
    assert "watched  finished  every item is done" in said
    assert not any("\x1b" in line for line in said)

    runs = {run["name"]: run for run in site.runs_of("watched")}
    assert sorted(runs) == ["watched · 1", "watched · 2", "watched · 3"]
    begun = (site.folder / "child-0.log").read_text()
    assert all(f"Beginning flow run '{name}'" in begun for name in runs), "it has its name from the beginning"

    progress = artifacts(site, "progress-watched")
    assert [one["flow_run_id"] for one in progress] == [runs[name]["id"] for name in sorted(runs)]
    assert (progress[-1]["type"], float(progress[-1]["data"])) == ("progress", 100.0)
    assert progress[-1]["description"].startswith("20 of 20 items, finished. Every item is done. ")
    assert "20 calls of 44 calls in all (45%)" in progress[-1]["description"]

    page = artifacts(site, "queue-watched")[-1]
    assert page["description"] == "20 of 20 items done"
    assert "| all | 20 | 20 |" in page["data"]
    assert "| [watched](../../runs?tags=chain:watched&tag=chain:watched) | finished | 3 | 20 |" in page["data"]

    mirror = site.call("GET", "/v2/concurrency_limits/pool team: calls in all")
    assert (mirror["limit"], mirror["active_slots"]) == (44, 20)


def test_ctrl_c_ends_the_watching_quietly(site: Site) -> None:
    """Nothing of it is left on the screen."""
    ledger = SqlLedger(site.environment["PERPETUAL_LEDGER"])
    open_session(ledger, "left")
    ledger.close()

    with terminal(site.environment, shlex.join([*WATCH, "left"])) as shown:
        wait_until(lambda: "session 1 is at work" in shown.screen(), "the view")
        shown.press("C-c")
        wait_until(lambda: "exit code" in shown.screen(), "the end")
        assert shown.screen() == "exit code 130"
