"""Steps: what runs in order, may take so long and no longer, and leaves a record."""

import contextvars
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


class StepTimedOut(PerpetualError):
    """A step of the shutdown took longer than it may."""


@dataclass(slots=True)
class Steps:
    """Runs steps and keeps what came of them in `record`: name, ok, seconds, and the error where there was one."""

    clock: Clock
    on_failure: Callable[[str, str], None]
    redact: Callable[[str], str] = str
    record: list[dict[str, Any]] = field(default_factory=list)

    def essential(self, name: str, step: Callable[[], T]) -> T:
        """Runs a step that must succeed; what it raises is recorded and raised again."""
        return self._run(name, step)

    def best_effort(self, name: str, step: Callable[[], T]) -> T | None:
        """Runs a step that may fail, for at most `STEP_SECONDS`; None when it did."""
        try:
            return self._run(name, lambda: within(STEP_SECONDS, step))
        except Exception as error:  # noqa: BLE001 - user code may raise anything; the shutdown goes on
            self.on_failure(name, self.redact(f"{type(error).__name__}: {error}"))
            return None

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
        except Exception as error:
            entry["error"] = self.redact(f"{type(error).__name__}: {error}")
            raise
        finally:
            entry["seconds"] = round(self.clock.monotonic() - started, 4)
        entry["ok"] = True
        return result


def within(seconds: float, step: Callable[[], T]) -> T:
    """Runs a step in a thread of its own and waits for at most that long.

    A step that hangs is left behind in its daemon thread: Python has no way to end it, and a session that waits for it
    would never end either.

    Raises:
        StepTimedOut: it is still running. Whatever else the step raises is raised as it is.
    """
    box: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def work() -> None:
        try:
            box.put((True, step()))
        except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
            box.put((False, error))

    # Prefect finds the flow run through context variables; a bare thread would not have them.
    Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    try:
        succeeded, value = box.get(timeout=seconds)
    except Empty:
        raise StepTimedOut(f"still running after {seconds:g} s; it was left behind") from None
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]
