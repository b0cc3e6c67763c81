"""A terminal of its own for a command: a tmux server that ends with the test."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from parts import is_missing


@dataclass(frozen=True)
class Terminal:
    """One window of a tmux server on a socket of its own."""

    socket: str
    environment: Mapping[str, str]

    def tmux(self, *arguments: str) -> str:
        """What tmux answers."""
        command = ["tmux", "-u", "-L", self.socket, *arguments]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True)
        return done.stdout

    def screen(self) -> str:
        """What stands on the screen now."""
        return "\n".join(line.rstrip() for line in self.tmux("capture-pane", "-p").splitlines()).strip()

    def press(self, *keys: str) -> None:
        """Presses keys, as `C-c`."""
        self.tmux("send-keys", *keys)


@contextmanager
def terminal(
    environment: Mapping[str, str], command: str, *, columns: int = 100, lines: int = 40
) -> Iterator[Terminal]:
    """A terminal in which a shell runs the command, says what its exit code was, and stays."""
    if shutil.which("tmux") is None:
        is_missing("no tmux: apt-get install tmux")
    known = {**environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    made = Terminal(f"perpetual-{os.getpid()}", known)
    shell = f"{command}; echo exit code $?; exec cat"
    made.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), shell)
    try:
        yield made
    finally:
        made.tmux("kill-server")
