"""An S3 server: moto's, as a process of its own on the loopback address."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from perpetual_blocks.adapters.local_server import free_port, stop
from perpetual_blocks.cli.demos.application import DemoFailed

START_SECONDS = 120.0


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """moto's S3 server, as a process of its own on the loopback address; yields its address.

    Args:
        log: The file that its output goes to.

    Raises:
        DemoFailed: it did not answer in time.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(address, timeout=2)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise DemoFailed(f"the S3 server did not start (see {log})")
        yield address
    finally:
        stop(server)
