"""Forked processes that say JSON: each has the memory of its parent at that moment, and can be killed for good."""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from perpetual_blocks.errors import PerpetualError

Say = Callable[[dict[str, Any]], None]
"""Tells the parent process something, as a JSON object; it has arrived when this returns, whatever happens next."""


class Fork:
    """A child process that runs `work`, and ends with it.

    It must be started by a process with no other threads that hold a lock, and no database connections.

    Args:
        work: Given the means to say something.
        output: A file to which the child's output is added.
        group: Whether the child is the first of a process group, which ends with it.

    Attributes:
        pid: Its process number.
        silent: Whether it will say nothing any more.
    """

    def __init__(self, work: Callable[[Say], None], output: Path, *, group: bool = False) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()  # or what is in the buffer is written twice
        self._pipe, theirs = os.pipe()
        self._group = group
        self._heard = b""
        self.silent = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _work(work, theirs, output, group=group)
        os.close(theirs)
        if group:
            with suppress(OSError):  # whichever of the two is first; it may be over, too
                os.setpgid(self.pid, self.pid)

    def fileno(self) -> int:
        """What `select` waits for."""
        return self._pipe

    def hear(self) -> None:
        """Takes in what it says next, waiting for it."""
        said = os.read(self._pipe, 65536)
        self._heard += said
        self.silent = not said

    def hear_out(self, seconds: float | None = None) -> bool:
        """Takes in all that it says, for at most so long; whether that was all."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.silent:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self], [], [], left)[0]:
                break
            self.hear()
        return self.silent

    @property
    def heard(self) -> list[dict[str, Any]]:
        """What it has said so far."""
        # A child that is killed while it says something leaves half a line.
        return [json.loads(line) for line in self._heard.split(b"\n")[:-1]]

    def end(self) -> int:
        """Ends it, with its group, if it has not ended by itself; its exit code, or the signal's number below 0."""
        if self._group:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        elif not self.silent:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def check_fork() -> None:
    """Refuses a system that cannot fork.

    Raises:
        PerpetualError: it is such a one.
    """
    if not hasattr(os, "fork"):
        raise PerpetualError(f"assert_resumable: got {sys.platform}; expected a system with os.fork: Linux or macOS")


def _work(work: Callable[[Say], None], pipe: int, output: Path, *, group: bool) -> None:
    """The child's whole life: nothing of the parent's program goes on in it."""

    def say(message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\n"
        while left:
            left = left[os.write(pipe, left) :]

    code = 1
    try:
        if group:
            os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _write_to(output)
        work(say)
        code = 0
    except BaseException:  # noqa: BLE001 - it must not go on in the parent's program
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _write_to(output: Path) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
