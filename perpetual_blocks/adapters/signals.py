"""Signals: what Prefect and Python make of SIGTERM and SIGINT in the main thread, and how a session survives it.

Prefect's own handler stays installed: `prefect flow-run execute` asks for it before it sends SIGTERM, and kills at once
where it finds another. It raises `TerminationSignal` at whatever instruction the main thread is at. So the main thread
does nothing but wait for a thread in which everything happens.
"""

import signal
import sys
import time
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from prefect.exceptions import TerminationSignal

T = TypeVar("T")

INTERRUPTIONS = (TerminationSignal, KeyboardInterrupt)
NETS = 3
LOOK_SECONDS = 1.0


def in_background(work: Callable[[], T], on_signal: Callable[[float], None]) -> tuple[T, BaseException | None]:
    """Runs `work` in a thread and waits in this one; signals that arrive here are waited out, however many they are.

    Args:
        on_signal: Called once, in a thread of its own, when the first signal has come; with the time of it, as
            `time.monotonic` tells it. It may take its time: a second signal does not interrupt it.

    Returns:
        What `work` returned, and the first signal that came, as the exception that Prefect or Python made of it.

    Raises:
        Exception: whatever `work` raised.
    """
    outcome: list[Any] = []
    error: list[BaseException] = []
    signals: SimpleQueue[tuple[BaseException, float] | None] = SimpleQueue()
    seen: list[BaseException] = []
    # A bare lock, because taking it is one instruction: Thread.join() and Event.wait() have Python code of their own
    # in which an exception from a signal handler would do harm.
    over = Lock()
    over.acquire()

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as raised:  # noqa: BLE001 - handed over to the waiting thread
            error.append(raised)
        finally:
            signals.put(None)
            over.release()

    def listen() -> None:
        while (signalled := signals.get()) is not None:
            seen.append(signalled[0])
            if len(seen) == 1:
                with suppress(Exception):
                    on_signal(signalled[1])

    begun, context = Lock(), copy_context()

    def begin() -> None:
        if begun.acquire(blocking=False):
            Thread(target=listen, name="perpetual signals", daemon=True).start()
            Thread(target=context.run, args=(target,), name="perpetual session").start()

    def wait(nets: int) -> None:
        # The next signal may come while the last one is being caught, so there are nets below the net.
        while not (outcome or error):
            try:
                if nets:
                    wait(nets - 1)
                elif not begun.locked():
                    start_new_thread(begin, ())  # from there, as Thread.start() has code of its own, too
                else:
                    over.acquire(timeout=LOOK_SECONDS)  # where another thread gets the signal, this one is not woken
            except INTERRUPTIONS as signalled:
                signals.put((signalled, time.monotonic()))

    wait(NETS)
    if error:
        raise error[0]
    return outcome[0], next(iter(seen), None)


def pass_on(signalled: BaseException) -> None:
    """Does to the process what the signal would have done, now that the run is over."""
    number = signal.SIGTERM if isinstance(signalled, TerminationSignal) else signal.SIGINT
    if signal.getsignal(number) is signal.SIG_DFL:
        sys.exit(128 + number)  # as the shell says it; what is to be done at exit, Prefect's last logs, is done
    signal.raise_signal(number)
