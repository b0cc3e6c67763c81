"""A serving process that is asked to end: its sessions wrap first.

Prefect's runner kills the engines that it has started with SIGKILL, within a moment, when it gets SIGTERM or SIGINT.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from prefect.runner import Runner

from perpetual_blocks.adapters.deadlines import grace_seconds

LOOK_SECONDS = 0.1


@contextmanager
def wrapping_first() -> Iterator[None]:
    """As long as the `with` block serves, SIGTERM and SIGINT first let the sessions of this process wrap.

    A second signal does not wait for them any longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread
        return
    stopping = False

    def wrap() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            _end_children(grace_seconds(os.environ))

    def terminated(runner: Runner, *args: Any) -> None:
        wrap()
        end(runner, *args)

    def interrupted(*_: Any) -> None:
        wrap()
        raise KeyboardInterrupt

    end: Callable[..., None] = Runner.handle_sigterm
    # The runner installs this method as the handler of SIGTERM when it starts; asyncio leaves a handler of SIGINT alone
    # that is not Python's own.
    Runner.handle_sigterm = terminated  # type: ignore[method-assign, assignment]
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        Runner.handle_sigterm = end  # type: ignore[method-assign]
        signal.signal(signal.SIGINT, before)


def _end_children(grace: float) -> None:
    """Asks the children to end, and waits until they have: in the handler, so that meanwhile no new run is started."""
    children = [child for child in psutil.Process().children() if not _is_tracker(child)]
    for child in children:
        with suppress(psutil.Error):
            child.terminate()
    until = time.monotonic() + grace
    while any(_is_at_work(child) for child in children) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)


def _is_tracker(child: psutil.Process) -> bool:
    """Whether it is multiprocessing's own helper, which takes no notice of signals and ends with this process."""
    try:
        return any("resource_tracker" in argument for argument in child.cmdline())
    except psutil.Error:
        return False


def _is_at_work(child: psutil.Process) -> bool:
    # Who has ended is not waited for here: that is its parent's event loop's to do.
    try:
        return bool(child.is_running() and child.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
