"""What the integration tests work with: a server, a ledger, a folder, and children that are ended by their id."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import httpx
from shell import Said, Shell

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.local_server import stop
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.status import chain_status

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SQUARES = HERE / "squares.py"
PERPETUAL = (sys.executable, "-c", "from perpetual_blocks.cli import main; main()")

LOOK_SECONDS = 0.2
"""How often is looked for what is waited for: each look takes time of the processors from what is looked at."""


def wait_until(look: Callable[[], Any], what: str, seconds: float = 240) -> Any:
    """Looks until there is something to see, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(LOOK_SECONDS)
    raise AssertionError(f"not within {seconds} s: {what}")


def ran(notes: Path) -> Counter[str]:
    """How often each unit ran, whoever ran it; the agents note each in a line of its own."""
    return Counter(line.split()[0] for line in notes.read_text().splitlines()) if notes.exists() else Counter()


def hurry(notes: Path, session: int | None = None) -> None:
    """Ends the naps that are noted there: all of them, or those of a session."""
    notes.with_suffix(".hurry" if session is None else f".hurry-{session}").touch()


@dataclass
class Site:
    """A server, a ledger and a folder; the commands run as they would in a shell."""

    api: str
    folder: Path
    environment: dict[str, str]
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    ledgers: dict[str, SqlLedger] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def perpetual(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs the command to its end."""
        return subprocess.run(
            [*PERPETUAL, *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def here(self, *arguments: str) -> Said:
        """The same in this process: a hundredth of the time, for what starts no process itself."""
        return Shell(self.folder, self.environment).here(*arguments)

    def status(self, chain: str) -> dict[str, Any]:
        """What `perpetual status --json` prints, read without a new process; empty while there is no such chain."""
        try:
            return chain_status(self.ledger, chain)
        except UnknownChain:
            return {}

    @property
    def ledger(self) -> SqlLedger:
        """The ledger, which is opened once: whoever waits for a chain looks at it again and again."""
        address = self.environment["PERPETUAL_LEDGER"]
        with self.lock:
            if address not in self.ledgers:
                self.ledgers[address] = SqlLedger(address)
            return self.ledgers[address]

    def start(self, *command: str, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[bytes]":
        """Starts a child that ends with the test; its output goes to a file in the folder."""
        with self.lock:
            log = (self.folder / f"child-{len(self.children)}.log").open("wb")
            child = subprocess.Popen(
                command,
                cwd=cwd or self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.children.append(child)
        return child

    def serve(self, script: Path, *arguments: str) -> "subprocess.Popen[bytes]":
        """Serves a flow file, and waits until it does."""
        child = self.start(sys.executable, str(script), *arguments, cwd=script.parent)
        log = self.folder / f"child-{self.children.index(child)}.log"
        wait_until(lambda: "being served" in log.read_text() or child.poll() is not None, "served")
        assert child.poll() is None, log.read_text()
        return child

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """A request to Prefect's API."""
        # On SQLite the server says 503 while another write goes on; its own client waits and asks again too.
        while (answer := httpx.request(method, f"{self.api}{path}", json=body, timeout=30)).status_code == 503:
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def trigger(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Creates a run of a deployment, as the UI's Run button does; returns its id."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        run = self.call("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, flow_run_id: str) -> dict[str, Any]:
        """Prefect's record of a run."""
        return self.call("GET", f"/flow_runs/{flow_run_id}")

    def final_run(self, flow_run_id: str) -> dict[str, Any]:
        """The same, once the run is over."""

        def look() -> dict[str, Any] | None:
            run = self.run(flow_run_id)
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return wait_until(look, f"run {flow_run_id} over")

    def chain_over(self, chain: str, seconds: float = 240) -> dict[str, Any]:
        """The chain's status, once it neither runs nor waits."""

        def look() -> dict[str, Any] | None:
            status = self.status(chain)
            return status if status and status["status"] not in ("running", "waiting") else None

        return wait_until(look, f"chain {chain} over", seconds)

    def runs_of(self, chain: str) -> list[dict[str, Any]]:
        """All runs of a chain, by its tag."""
        return list(self.call("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"chain:{chain}"]}}}))

    def runs_of_flow(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow."""
        return list(self.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}}))

    def events(self, chain: str) -> list[dict[str, Any]]:
        """The events of a chain that the server has, in order."""
        wanted = {"filter": {"resource": {"id": [f"perpetual.chain.{chain}"]}, "order": "ASC"}, "limit": 50}
        return list(self.call("POST", "/events/filter", wanted)["events"])

    def open_runs(self, chain: str) -> list[dict[str, Any]]:
        """The runs of the chain, also of one that has not begun, that are not over."""
        states = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
        runs = self.call("POST", "/flow_runs/filter", {"flow_runs": states})
        return [run for run in runs if run["parameters"].get("chain") == chain]


def successor(site: Site, chain: str, ordinal: int = 2) -> str:
    """The flow run that waits at the fence, once it does."""

    def look() -> str | None:
        waits = f"{chain} · {ordinal} waits for session {ordinal - 1} to end"
        return next((run["id"] for run in site.runs_of(chain) if run["name"] == waits), None)

    return str(wait_until(look, f"a run that waits to be session {ordinal} of {chain}", seconds=400))


@contextmanager
def site_on(api: str, home: Path, folder: Path) -> Iterator[Site]:
    """A site on this server, with a ledger and results storage in the folder; ends what was started there."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PERPETUAL_LEDGER": str(folder / "ledger.db"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    environment.pop("PERPETUAL_FAULT", None)
    site = Site(api, folder, environment)
    try:
        yield site
    finally:
        for child in reversed(site.children):
            stop(child, seconds=40)
        for ledger in site.ledgers.values():
            ledger.close()
