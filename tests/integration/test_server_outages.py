"""Prefect's server killed and started again, and the results storage gone for a while, as chains of real runs work."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prefect_server import PrefectServer
from workbench import HERE, Site, ran, site_on, wait_until

from perpetual_blocks.adapters.local_server import stop

STORMY = HERE / "stormy.py"


class MortalServer:
    """A Prefect server that a test may kill.

    Attributes:
        api: The API's address; the same after each start.
    """

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self._port}/api"
        self.home = home
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)]
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PREFECT_HOME": str(self.home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            )
        wait_until(self._answers, "server answers")

    def kill(self) -> None:
        """Ends it at once, whatever it is doing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        assert self._process is not None
        stop(self._process)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=2).is_success
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def mortal(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalServer]:
    """A server of these tests' own, on a copy of the other one's database: to make one takes most of a minute."""
    home = tmp_path_factory.mktemp("mortal")
    with (
        closing(sqlite3.connect(prefect_server.home / "prefect.db")) as made,
        closing(sqlite3.connect(home / "prefect.db")) as to,
    ):
        made.backup(to)
    mortal = MortalServer(home)
    mortal.start()
    yield mortal
    mortal.close()


@pytest.fixture(scope="module")
def place(mortal: MortalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """That server with a served agent, whose chains have different names."""
    with site_on(mortal.api, mortal.home, tmp_path_factory.mktemp("place")) as made:
        made.serve(STORMY)
        yield made


@pytest.mark.parametrize("breaks", ["n/1", "save"])
def test_the_storage_is_away_for_a_moment(place: Site, breaks: str) -> None:
    """A unit's outcome waits in memory, and so does a checkpoint: sessions end in order, and no unit runs twice."""
    chain = f"stormy-{breaks.replace('/', '')}"
    notes = place.folder / f"notes-{chain}"
    place.trigger("stormy/served", {"notes": str(notes), "n": 3, "breaks": breaks, "chain": chain})

    status = place.chain_over(chain)

    assert [session["state"] for session in status["sessions"]] == ["Finished"]
    assert ran(notes) == {f"n/{number}": 1 for number in range(3)}
    verified = place.here("verify", chain)
    assert verified.code == 0, verified


def test_prefects_server_is_killed_and_started_again(place: Site, mortal: MortalServer) -> None:
    """The session works on, its follow-on is created when the server is back, and every run ends as it should."""
    notes = place.folder / "notes-orphan"
    parameters = {"notes": str(notes), "n": 5, "nap": 0.5, "chain": "orphan"}
    first = place.trigger("stormy/served", parameters)
    wait_until(lambda: len(ran(notes)) >= 2, "second unit")

    mortal.kill()
    killed = time.monotonic()
    # The third unit is done without the server, and the session comes to its end.
    wait_until(lambda: len(ran(notes)) == 3, "third unit")
    mortal.start()
    away = time.monotonic() - killed

    status = place.chain_over("orphan")
    assert status["status"] == "finished", away
    assert [session["state"] for session in status["sessions"]] == ["Wrapped", "Finished"]
    assert ran(notes) == {f"n/{number}": 1 for number in range(5)}
    assert place.final_run(first)["state_name"] == "Wrapped"
    assert place.final_run(status["sessions"][1]["flow_run_id"])["state_name"] == "Finished"
