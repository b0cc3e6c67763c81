"""The time: a computation of most of a minute, on machines that end after 20 seconds."""

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from perpetual_blocks.cli.demos.application import Application, flow_module

MACHINE_SECONDS, KILL_WAIT_SECONDS = 20.0, 15.0
"""Like Slurm: at its time limit a job gets SIGTERM, and after `KillWait` SIGKILL."""

UPTO, WIDTH = 240_000_000, 24_000_000


class Time(Application):
    """Counts primes on machines of 20 seconds, which are ended with all that runs on them."""

    name = "time"
    flow = "time_boxed.py:count_primes"
    one_session = True
    limit = f"{MACHINE_SECONDS:g} s a machine"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._killed, self._ends_at = 0, 0.0

    @contextmanager
    def parts(self) -> Iterator[None]:
        """Nothing besides the machines."""
        yield

    def parameters(self) -> dict[str, Any]:
        return {"upto": UPTO, "width": WIDTH, "out": str(self.folder / "primes")}

    def expected(self) -> int:
        return -(-UPTO // WIDTH)

    def results(self) -> dict[str, str]:
        return {file.stem: file.read_text() for file in (self.folder / "primes").glob("*.json")}

    def overruns(self) -> int:
        return self._killed

    def on_machine(self, command: list[str], environment: Mapping[str, str], log: Path) -> int:
        """A machine that says when it ends, and does."""
        self._ends_at = time.time() + MACHINE_SECONDS
        return super().on_machine(command, {**environment, "PERPETUAL_DEADLINE": f"{self._ends_at:.3f}"}, log)

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """SIGTERM at the machine's end, and SIGKILL for whoever has not ended soon after."""
        try:
            return wait_or_end(process, self._ends_at)
        except subprocess.TimeoutExpired:
            self._killed += 1
            return -signal.SIGKILL
        finally:
            signal_all(process.pid, signal.SIGKILL)

    @staticmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        flow = flow_module("time_boxed.py")
        counts = []
        for start in range(0, parameters["upto"], parameters["width"]):
            parts = (
                flow.counted(at, at + flow.SEGMENT) for at in range(start, start + parameters["width"], flow.SEGMENT)
            )
            counts.append([sum(some) for some in zip(*parts, strict=True)])
            yield


def wait_or_end(process: "subprocess.Popen[bytes]", ends_at: float) -> int:
    """Its exit code, if it ends by then, or soon after it was told to.

    Raises:
        TimeoutExpired: it does not.
    """
    try:
        return process.wait(ends_at - time.time())
    except subprocess.TimeoutExpired:
        signal_all(process.pid, signal.SIGTERM)
        return process.wait(KILL_WAIT_SECONDS)


def signal_all(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in (*top.children(recursive=True), top):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
