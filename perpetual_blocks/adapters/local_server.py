"""A Prefect server on this machine, for whoever has none."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.settings import get_current_settings

from perpetual_blocks.errors import PerpetualError

START_SECONDS = 120.0
"""A first start makes the server's database, which takes most of a minute on a slow disk."""


class ServerDidNotStart(PerpetualError):
    """The local server ended, or did not answer in time; the text holds the end of its log."""


def configured_server() -> str | None:
    """The API's address that Prefect is set to, or None."""
    return get_current_settings().api.url


@contextmanager
def local_server() -> Iterator[str]:
    """Starts a server on the loopback address and stops it at the end; yields its API's address.

    Its data is in Prefect's home, so a later `prefect server start` shows the same runs.

    Raises:
        ServerDidNotStart: as it says.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="perpetual-server-") as folder:
        log = Path(folder) / "server.log"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        # Its own session: Ctrl-C in the terminal is for us, and the server must outlive the runs that it tells of.
        with log.open("wb") as output:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "PREFECT_SERVER_UI_API_URL": f"{address}/api",
                },
            )
        try:
            _wait_until_healthy(server, address, log)
            yield f"{address}/api"
        finally:
            stop(server)


def stop(process: "subprocess.Popen[bytes]", seconds: float = 15) -> None:
    """Ends a child of ours: politely, then not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(server: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/api/health", timeout=2).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    raise ServerDidNotStart(f"prefect server: did not answer at {address} ({last[0].strip()})")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    # Not Prefect's usual port: of two commands that start a server at once, one would talk to the other's.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
