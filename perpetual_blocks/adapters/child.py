"""Units in processes of their own: each can be ended when its time is up, and what it leaks or breaks ends with it.

The child imports the agent anew and is handed its fields, the item, the context and the room. It answers with JSON:
each spend as it happens, so that what a child spent before it was killed counts too, and at the end the outcome or the
error.
"""

import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Event, Lock, Thread
from typing import Any

import psutil

from perpetual_blocks.adapters.remote_unit import RemoteUnit
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.errors import InvalidInput, PerpetualError, text_of
from perpetual_blocks.service_errors import is_of_service, stand_in
from perpetual_blocks.work import CutOff, Unit

LOOK_SECONDS = 0.1
GRACE_SECONDS = 2.0
"""How long a child may take to end after it was asked to."""

GUARDED = 'a script that runs its flow under `if __name__ == "__main__":`, as each unit\'s process imports it anew'


class UnitDied(PerpetualError):
    """The process of a unit ended before its unit did."""


class RaisedInChild(Exception):
    """What a unit raised in its process, under the original's name; a note holds the traceback."""


def check_guarded(agent: type[PerpetualAgent]) -> None:
    """Refuses to start a flow from a script that is only imported, by the process of a unit.

    Raises:
        InvalidInput: that is what happens.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        raise InvalidInput(f"{agent.__name__}: got a start while its script is imported; expected {GUARDED}")


# The session's side -------------------------------------------------------------------------------------------------


def run_in_child(agent: PerpetualAgent, unit: Unit, interrupt: Event | None = None) -> dict[str, Any]:
    """Runs a unit in a fresh process; the document of its outcome.

    Args:
        interrupt: Ends the unit when it is set.

    Raises:
        CutOff: the unit's time was up, it was interrupted, or it says itself that it has no room.
        RaisedInChild: the unit raised.
        UnitDied: its process ended by itself.
        InvalidInput: a new process cannot import the agent, or be handed its fields.
    """
    remote = RemoteUnit(agent, unit, f"{type(agent).__name__}.isolated")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with ours:
        with theirs:
            child = context.Process(target=_work, args=(remote, time.time(), theirs), name=f"{unit.id} · {unit.number}")
            child.start()
        try:
            outcome = _follow(child, ours, unit, interrupt or Event())
            child.join(GRACE_SECONDS)
            return outcome
        finally:
            _end(child)


def _follow(child: SpawnProcess, pipe: Connection, unit: Unit, interrupt: Event) -> dict[str, Any]:
    began = asked = False
    while True:
        left = unit.remaining.get("seconds", math.inf)
        if left <= 0 or interrupt.is_set():
            _end(child)
        over = child.exitcode is not None
        message = _receive(pipe, 0.0 if over else min(left, LOOK_SECONDS))
        match message:
            case ["began"]:
                began = True
            case ["spent", amounts]:
                unit.spend(**amounts)
            case ["done", document]:
                return dict(document)
            case ["cut off", text, resource, needed]:
                raise CutOff(text, resource, needed)
            case ["raised" | "away" as how, name, text, trace]:
                error = stand_in(RaisedInChild, name, text, away=how == "away")
                error.add_note(trace)
                raise error
            case None if over:  # and all that it had said was heard
                if left <= 0:
                    raise unit.time_is_up()
                if interrupt.is_set():
                    raise unit.interrupted()
                raise _died(child, unit, began=began)
        if not asked and unit.should_wrap():
            asked = True
            with suppress(OSError):  # it is over, and will be noticed to be
                pipe.send_bytes(b"wrap")


def _receive(pipe: Connection, seconds: float) -> Any:
    """The next message; None if there is none for so long, or never will be."""
    try:
        return json.loads(pipe.recv_bytes()) if pipe.poll(seconds) else None
    except (EOFError, OSError):  # the child has closed its end, perhaps in the middle of a message
        time.sleep(min(seconds, LOOK_SECONDS))
        return None


def _died(child: SpawnProcess, unit: Unit, *, began: bool) -> PerpetualError:
    code = child.exitcode or 0
    if code >= 0 and not began:
        return InvalidInput(
            f"{unit.id}: got a process that ended with exit code {code} before it began (its own output says why); "
            f"expected {GUARDED}"
        )
    how = f"with exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"by {name}" + (", as it does when memory runs out" if name == "SIGKILL" else "")
    return UnitDied(f"the process of {unit.id}, unit {unit.number}, was ended {how}")


def _end(child: SpawnProcess) -> None:
    """Ends the child, if it has not ended by itself, and what it has started: politely, then not."""
    if child.exitcode is not None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        family = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    child.join(GRACE_SECONDS)
    child.kill()
    child.join()
    for process in family:
        with suppress(psutil.Error):
            process.kill()


# The child's side ---------------------------------------------------------------------------------------------------


def _work(remote: RemoteUnit, handed_over: float, pipe: Connection) -> None:
    # Ctrl-C reaches all processes of a terminal; what it means for a unit, the session decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wrap, sending = Event(), Lock()

    def send(*message: Any) -> None:
        with sending:
            pipe.send_bytes(json.dumps(message).encode())

    def listen() -> None:
        with suppress(EOFError, OSError):
            pipe.recv_bytes()
            wrap.set()
            pipe.recv_bytes()
        os._exit(1)  # the session is gone, and nobody waits for this unit

    send("began")
    Thread(target=listen, name="session", daemon=True).start()
    try:
        agent = remote.agent()
        done = remote.work(agent, wrap.is_set, lambda spent: send("spent", spent), time.time() - handed_over)
        answer: tuple[Any, ...] = ("done", done)
    except CutOff as error:
        answer = ("cut off", str(error), error.resource, error.needed)
    except BaseException as error:  # noqa: BLE001 - the session wants to know, whatever it is
        how = "away" if is_of_service(error) else "raised"  # what class it has, and what caused it, stays here
        answer = (how, type(error).__name__, text_of(error), traceback.format_exc())
    send(*answer)
