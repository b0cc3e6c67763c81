"""Steps: what runs in order, may take so long and no longer, and leaves a record."""

import contextvars
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import PerpetualError
from perpetual_blocks.faults import reached

T = TypeVar("T")

STEP_SECONDS = 60.0
"""How long a best-effort step may take. With three of them a shutdown stays within a few minutes whatever they do."""


MINIMAL_SECONDS = 3.0
"""What is kept for the minimal save, when the process is about to be killed: the closing transaction, and creating the
follow-on."""

LOOK_SECONDS = 0.2


class StepTimedOut(PerpetualError):
    """A step of the shutdown took longer than it may."""


def _never() -> float | None:
    return None


def _unheard(_step: str, _seconds: float, _error: str | None) -> None:
    return None


@dataclass(slots=True)
class Steps:
    """Runs steps and keeps what came of them in `record`: name, ok, seconds, and the error where there was one.

    When the process is about to be killed, a step is not begun, or not waited for, in the time that is kept for the
    minimal save: it is `skipped` then, and whoever comes by next may make up for it.

    Attributes:
        killed_at: When the process will be killed, by the clock's `monotonic`; None where it is not. It is asked again
            and again, as a signal may come in the middle of a shutdown.
        on_end: Told of each step that is over: its name, how many seconds it took, and what failed it.
    """

    clock: Clock
    on_failure: Callable[[str, str], None]
    redact: Callable[[str], str] = str
    record: list[dict[str, Any]] = field(default_factory=list)
    killed_at: Callable[[], float | None] = _never
    on_end: Callable[[str, float, str | None], None] = _unheard

    def essential(self, name: str, step: Callable[[], T]) -> T | None:
        """Runs a step that must succeed; what it raises is recorded and raised again.

        When the process is about to be killed, there may be no time for it; None then.
        """
        if self.killed_at() is None:
            return self._run(name, step)
        try:
            return self._run(name, lambda: within(math.inf, step, self._left))
        except StepTimedOut as error:
            self.on_failure(name, f"{type(error).__name__}: {error}")
            return None

    def best_effort(self, name: str, step: Callable[[], T]) -> T | None:
        """Runs a step that may fail, for at most `STEP_SECONDS`; None when it did."""
        return self._try(name, step, self._left)

    def last(self, name: str, step: Callable[[], T]) -> T | None:
        """Runs a step that may fail, in the time that was kept for it when the process is about to be killed."""
        return self._try(name, step, lambda: self._left() + MINIMAL_SECONDS)

    @property
    def complete(self) -> bool:
        """Whether there was time for all steps."""
        return not any("skipped" in step for step in self.record)

    def _try(self, name: str, step: Callable[[], T], left: Callable[[], float]) -> T | None:
        try:
            return self._run(name, lambda: within(STEP_SECONDS, step, left))
        except Exception as error:  # noqa: BLE001 - user code may raise anything; the shutdown goes on
            self.on_failure(name, self.redact(f"{type(error).__name__}: {error}"))
            return None

    def _left(self) -> float:
        """Seconds until only those are left that the minimal save needs."""
        by = self.killed_at()
        return math.inf if by is None else by - MINIMAL_SECONDS - self.clock.monotonic()

    def failures(self) -> list[str]:
        """`step: error` for each step that failed."""
        return [f"{step['step']}: {step['error']}" for step in self.record if "error" in step]

    def _run(self, name: str, step: Callable[[], T]) -> T:
        reached(f"shutdown.{name}")
        started = self.clock.monotonic()
        entry: dict[str, Any] = {"step": name, "ok": False}
        self.record.append(entry)
        try:
            result = step()
            entry["ok"] = True
            return result
        except Exception as error:
            if isinstance(error, StepTimedOut) and self._left() <= 0:
                entry["skipped"] = True
            entry["error"] = self.redact(f"{type(error).__name__}: {error}")
            raise
        finally:
            entry["seconds"] = round(self.clock.monotonic() - started, 4)
            self.on_end(name, entry["seconds"], entry.get("error"))


def within(seconds: float, step: Callable[[], T], left: Callable[[], float] = lambda: math.inf) -> T:
    """Runs a step in a thread of its own and waits for at most that long.

    A step that hangs is left behind in its daemon thread: Python has no way to end it, and a session that waits for it
    would never end either.

    Args:
        left: How long to wait at most, as it is now; a step for which there is no time is not begun.

    Raises:
        StepTimedOut: it is still running. Whatever else the step raises is raised as it is.
    """
    if left() <= 0:
        raise StepTimedOut("there was no time for it before the process ends")
    box: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def work() -> None:
        try:
            box.put((True, step()))
        except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
            box.put((False, error))

    # Prefect finds the flow run through context variables; a bare thread would not have them.
    Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        try:
            succeeded, value = box.get(timeout=max(0.0, min(seconds - waited, left(), LOOK_SECONDS)))
            break
        except Empty:
            if time.monotonic() - began >= seconds:
                raise StepTimedOut(f"still running after {seconds:g} s; it was left behind") from None
            if left() <= 0:
                raise StepTimedOut("still running when the process was about to end; it was left behind") from None
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]
