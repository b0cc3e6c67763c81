"""Signals in all the ways of starting a run: real processes, each signalled while its first unit is at work.

Not in the table, as they give a session no time: Prefect kills the engine with SIGKILL, within a moment, when SIGTERM
or SIGINT ends a process worker, or SIGINT ends `prefect flow-run execute`. Such a session is found dead and rescued.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.workers.process import ProcessWorker
from workbench import HERE, Site, wait_until

SCRIPT = HERE / "signalled.py"
PREFECT = (sys.executable, "-m", "prefect")
TERM, INT = signal.SIGTERM, signal.SIGINT
TOO_LONG = {"nap": 90.0}
LITTLE = {"PERPETUAL_GRACE_SECONDS": "8"}
AT_ONCE = 6  # cases, on two cores


@dataclass(frozen=True)
class Started:
    """A run whose first unit is at work.

    Attributes:
        process: What a person started: it may be the run's own process, or what started that.
        engine: The id of the run's own process.
    """

    process: "subprocess.Popen[bytes]"
    engine: int
    notes: Path
    chain: str
    flow_run: str | None = None


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Attributes:
        ends: How the process that got the signal is to end; None where it goes on.
        unit: What is to become of the unit that was at work.
        goes_on: Whether somebody is there who starts the follow-on.
    """

    way: str
    signals: str
    start: Callable[["Bench", str, dict[str, Any]], Started]
    hit: Callable[[Started], None]
    unit: str = "finished"
    ends: int | None = None
    goes_on: bool = False
    follow_on: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.way}, {self.signals}"


class Bench:
    """Starts runs in every way there is, on one site."""

    served: "subprocess.Popen[bytes]"

    def __init__(self, site: Site) -> None:
        self.site = site
        mark = secrets.token_hex(3)
        # `shelf` has no worker, so that what is there is started by hand.
        self.deployments = {pool: self._deploy(f"{pool}-{mark}") for pool in ("worker", "shelf")}
        self.worker = site.start(*PREFECT, "worker", "start", "--pool", f"worker-{mark}")

    def _deploy(self, pool: str) -> str:
        template = ProcessWorker.get_default_base_job_template()
        self.site.call("POST", "/work_pools/", {"name": pool, "type": "process", "base_job_template": template})
        flow = self.site.call("POST", "/flows/", {"name": "napping"})
        here = {"prefect.deployments.steps.set_working_directory": {"directory": str(HERE)}}
        body = {
            "name": pool,
            "flow_id": flow["id"],
            "entrypoint": "signalled.py:napping",
            "work_pool_name": pool,
            "pull_steps": [here],
        }
        return str(self.site.call("POST", "/deployments/", body)["id"])

    def serve(self, name: str) -> "subprocess.Popen[bytes]":
        """Serves a deployment of this name."""
        return self.site.serve(SCRIPT, "serve", name)

    def create(self, deployment: str, parameters: dict[str, Any], **more: Any) -> str:
        """A new run of a deployment."""
        path = f"/deployments/{deployment}/create_flow_run"
        return str(self.site.call("POST", path, {"parameters": parameters, **more})["id"])

    def begun(
        self, process: "subprocess.Popen[bytes]", parameters: dict[str, Any], flow_run: str | None = None
    ) -> Started:
        """The run, as soon as its first unit is at work."""
        notes = Path(parameters["notes"])
        wait_until(lambda: notes.exists() and notes.read_text(), f"{parameters['chain']} at work")
        engine = self.site.status(parameters["chain"])["sessions"][0]["pid"]
        return Started(process, engine, notes, parameters["chain"], flow_run)


def by_serve(bench: Bench, chain: str, parameters: dict[str, Any]) -> Started:
    return bench.begun(bench.served, parameters, bench.site.trigger("napping/served", parameters))


def by_own_serve(bench: Bench, chain: str, parameters: dict[str, Any]) -> Started:
    process = bench.serve(chain)
    return bench.begun(process, parameters, bench.site.trigger(f"napping/{chain}", parameters))


def by_worker(bench: Bench, chain: str, parameters: dict[str, Any]) -> Started:
    return bench.begun(bench.worker, parameters, bench.create(bench.deployments["worker"], parameters))


def by_execute(behavior: str, **environment: str) -> Callable[[Bench, str, dict[str, Any]], Started]:
    """As a worker in Kubernetes or Docker does."""

    def start(bench: Bench, chain: str, parameters: dict[str, Any]) -> Started:
        run = bench.create(bench.deployments["shelf"], parameters, state={"type": "PENDING"})
        behaves = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": behavior, **environment}
        return bench.begun(bench.site.start(*PREFECT, "flow-run", "execute", run, **behaves), parameters, run)

    return start


def by_python(flow: str = "napping", **environment: str) -> Callable[[Bench, str, dict[str, Any]], Started]:
    """A script that calls the flow."""

    def start(bench: Bench, chain: str, parameters: dict[str, Any]) -> Started:
        command = (sys.executable, str(SCRIPT), "call", flow, json.dumps(parameters))
        return bench.begun(bench.site.start(*command, cwd=HERE, **environment), parameters)

    return start


def to_engine(number: int) -> Callable[[Started], None]:
    return lambda started: os.kill(started.engine, number)


def to_process(number: int) -> Callable[[Started], None]:
    return lambda started: started.process.send_signal(number)


def to_group(number: int) -> Callable[[Started], None]:
    """As a terminal does at Ctrl-C."""
    return lambda started: os.killpg(started.process.pid, number)


def to_orphan(started: Started) -> None:
    """The supervisor dies of it at once, and does not tell its engine; then somebody else does."""
    started.process.terminate()
    started.process.wait(20)
    os.kill(started.engine, TERM)


def again_and_again(started: Started) -> None:
    """A second signal while the unit runs, more in the middle of the shutdown."""
    started.process.send_signal(TERM)
    started.process.send_signal(INT)
    wait_until(lambda: "wraps" in started.notes.read_text(), "the shutdown has begun")
    for number in (TERM, INT, TERM):
        started.process.send_signal(number)


CASES = [
    Case("serve", "SIGTERM to the run", by_serve, to_engine(TERM), goes_on=True),
    Case("serve", "SIGINT to the run", by_serve, to_engine(INT), goes_on=True),
    Case("serve", "SIGTERM to the server", by_own_serve, to_process(TERM), ends=0),
    Case("serve", "Ctrl-C", by_own_serve, to_group(INT), ends=0),
    Case("process worker", "SIGTERM to the run", by_worker, to_engine(TERM), goes_on=True),
    Case("process worker", "SIGINT to the run", by_worker, to_engine(INT), goes_on=True),
    Case("execute, crash", "SIGTERM, then to the orphan", by_execute("crash"), to_orphan, ends=-TERM),
    Case("execute, reschedule", "SIGTERM", by_execute("reschedule"), to_process(TERM), ends=0),
    Case("execute, relinquish", "SIGTERM", by_execute("relinquish"), to_process(TERM), ends=1),
    Case(
        "execute, reschedule, long unit", "SIGTERM", by_execute("reschedule", **LITTLE), to_process(TERM),
        unit="given back", ends=0, parameters=TOO_LONG,
    ),
    Case("python", "SIGTERM", by_python(), to_process(TERM), ends=143, follow_on=False),
    Case("python", "SIGINT", by_python(), to_process(INT), ends=-INT, follow_on=False),
    Case(
        "python", "signals again and again", by_python(), again_and_again,
        ends=143, follow_on=False, parameters={"farewell": 1.0},
    ),
    Case(
        "python, long async unit", "SIGTERM", by_python(**LITTLE), to_process(TERM),
        unit="given back", ends=143, follow_on=False, parameters=TOO_LONG,
    ),
    Case(
        "python, long unit apart", "SIGTERM", by_python("apart", **LITTLE), to_process(TERM),
        unit="given back", ends=143, follow_on=False, parameters=TOO_LONG,
    ),
    Case(
        "python, long sync unit", "SIGTERM", by_python("blocking", **LITTLE), to_process(TERM),
        unit="left behind", ends=143, follow_on=False, parameters=TOO_LONG,
    ),
]  # fmt: skip


def play(bench: Bench, number: int) -> dict[str, Any]:
    """A line of the table as it came out."""
    case, site = CASES[number], bench.site
    chain = f"signalled-{number}"
    notes = site.folder / f"notes-{number}"
    started = case.start(bench, chain, {"notes": str(notes), "chain": chain, **case.parameters})
    case.hit(started)
    code = None if case.ends is None else started.process.wait(90)
    over = ("finished",) if case.goes_on else ("waiting",)
    status = wait_until(lambda: (s := site.status(chain))["status"] in over and s, f"{case} is over")
    session = status["sessions"][0]
    run = site.final_run(session["flow_run_id"])
    follow_ons = site.call("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"chain:{chain}"]}}})
    return {
        "case": str(case),
        "session": f"{session['state']}{', graceful' if session['graceful'] else ''}",
        "reason": session["stop_reason"],
        "unit": what_became_of(site, chain),
        "steps": [step["step"] for step in session["steps"] if not step["ok"]],
        "run": run["state_name"],
        "follow-ons": sum(other["id"] != run["id"] for other in follow_ons),
        "twice": [name for name, times in ended(notes).items() if times > 1],
        "ends": code,
    }


def what_became_of(site: Site, chain: str) -> str:
    """Of the first unit."""
    item = next(item for item in site.ledger.items(chain) if item.id == "n/0")
    assert item.attempts == 0
    if item.status == "completed":
        return "finished"
    assert (item.status, item.interruptions) == ("available", 1)
    return "given back" if item.failures else "left behind"  # what is left behind keeps its key


def ended(notes: Path) -> Counter[str]:
    """How often each unit came to its end."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return Counter(unit for what, unit, _ in lines if what == "ended")


def expected(case: Case) -> dict[str, Any]:
    return {
        "case": str(case),
        "session": "Wrapped, graceful",
        "reason": "signal",
        "unit": case.unit,
        "steps": [],
        "run": "Wrapped",
        "follow-ons": int(case.follow_on),
        "twice": [],
        "ends": case.ends,
    }


def test_every_session_that_gets_a_signal_ends_in_order(site: Site) -> None:
    """However the run was started and whatever it gets: its unit is finished where there is time, and given back
    without counting an attempt where there is none; the documents are written, the session is closed, the run says
    Wrapped, there is one follow-on, and no unit is done twice."""
    bench = Bench(site)
    bench.served = bench.serve("served")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        table = list(threads.map(lambda number: play(bench, number), range(len(CASES))))

    for line in table:
        print(" | ".join(f"{value}" for value in line.values()))
    assert table == [expected(case) for case in CASES]


def test_a_run_that_prefect_reschedules_is_superseded(site: Site) -> None:
    """Prefect may start the same run again while its session still wraps, or a person may later, with the UI's Retry:
    it does nothing."""
    bench = Bench(site)
    parameters = {"notes": str(site.folder / "notes"), "chain": "again", "nap": 4.0}
    run = bench.create(bench.deployments["worker"], parameters, state={"type": "PENDING"})
    behaves = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    started = bench.begun(site.start(*PREFECT, "flow-run", "execute", run, **behaves), parameters, run)

    started.process.terminate()  # and the worker finds the run that awaits its retry

    assert started.process.wait(60) == 0
    status = site.chain_over("again")
    assert [session["state"] for session in status["sessions"]] == ["Wrapped", "Finished"]
    assert len({session["flow_run_id"] for session in status["sessions"]}) == 2
    assert site.final_run(run)["state_name"] in ("Wrapped", "Superseded")  # as the worker was quick to look, or not
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": again, "force": True})
    wait_until(lambda: site.run(run)["state_name"] == "Superseded", "the next start is superseded")
    assert ended(started.notes) == {"n/0": 1, "n/1": 1}
