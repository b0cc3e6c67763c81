"""A real Prefect server for the whole run of these tests, and children that are started and ended by id."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from perpetual_blocks.adapters.local_server import local_server, stop

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SQUARES = HERE / "squares.py"


def wait_until(look: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """Looks until there is something to see, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclass
class Site:
    """A server, a ledger and a folder; the commands run as they would in a shell."""

    api: str
    folder: Path
    environment: dict[str, str]
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def perpetual(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Runs the command to its end."""
        command = [sys.executable, "-c", "from perpetual_blocks.cli import main; main()", *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self, chain: str) -> dict[str, Any]:
        """What `perpetual status --json` says; empty while there is no such chain."""
        done = self.perpetual("status", chain, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def start(self, *command: str, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[bytes]":
        """Starts a child that ends with the test; its output goes to a file in the folder."""
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

    def serve(self, script: Path) -> "subprocess.Popen[bytes]":
        """Serves a flow file, and waits until it does."""
        child = self.start(sys.executable, str(script), cwd=script.parent)
        log = self.folder / f"child-{len(self.children) - 1}.log"
        wait_until(lambda: "being served" in log.read_text() or child.poll() is not None, "served")
        assert child.poll() is None, log.read_text()
        return child

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """A request to Prefect's API."""
        answer = httpx.request(method, f"{self.api}{path}", json=body, timeout=30)
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

    def chain_over(self, chain: str) -> dict[str, Any]:
        """The chain's status, once it neither runs nor waits."""

        def look() -> dict[str, Any] | None:
            status = self.status(chain)
            return status if status and status["status"] not in ("running", "waiting") else None

        return wait_until(look, f"chain {chain} over")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The API's address of a server of our own, and the Prefect home that goes with it."""
    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    try:
        with local_server() as api:
            yield api, home
    finally:
        if before is None:
            del os.environ["PREFECT_HOME"]
        else:
            os.environ["PREFECT_HOME"] = before


@pytest.fixture
def site(server: tuple[str, Path], tmp_path: Path) -> Iterator[Site]:
    """The server with a ledger and results storage of the test's own."""
    api, home = server
    environment = {
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(tmp_path / "results"),
        "PERPETUAL_LEDGER": str(tmp_path / "ledger.db"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    environment.pop("PERPETUAL_FAULT", None)
    made = Site(api, tmp_path, environment)
    yield made
    for child in reversed(made.children):
        stop(child, seconds=40)
