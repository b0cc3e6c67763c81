"""Standard output and error: a process goes on working when nobody reads them any more."""

import os
import select
from threading import Lock, Thread

from rich.console import Console

STANDARD = (1, 2)

_guarding = Lock()


def guard_output() -> None:
    """Sends what this process writes nowhere, as soon as whoever reads it is gone.

    `prefect flow-run execute` and a serving process read their engine's output through a pipe. Where they are killed
    the engine goes on, but not for long: rich, with which Prefect logs, ends the program at the first line that it
    cannot write, by a SystemExit from whatever logged it. This looks for the end of the pipe and is there first; where
    rich is quicker, its line is lost, and nothing else.
    """
    if hasattr(select, "poll") and _guarding.acquire(blocking=False):  # once, for as long as the process lives
        Console.on_broken_pipe = _on_broken_pipe  # type: ignore[method-assign, assignment]
        Thread(target=_guard, name="perpetual output", daemon=True).start()


def _on_broken_pipe(_console: Console) -> None:
    for number, event in _watched().poll(0):
        if not event & select.POLLNVAL:
            _send_nowhere(number)


def _guard() -> None:
    watched = _watched()
    left = set(STANDARD)
    while left:
        for number, event in watched.poll():
            watched.unregister(number)
            left.discard(number)
            if event & select.POLLNVAL:
                continue  # it was closed on purpose
            _send_nowhere(number)


def _watched() -> "select.poll":
    watched = select.poll()
    for number in STANDARD:
        watched.register(number, 0)  # an error is told without being asked for
    return watched


def _send_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
