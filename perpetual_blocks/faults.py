"""Named points where a test makes things go wrong.

The code says `reached("unit.persisted")` at each write, commit and schedule. In production that is one comparison with
None. A test installs a handler in its own process, or sets `PERPETUAL_FAULT=point:count` in the environment of a child:
the child is killed by SIGKILL when it reaches that point for the count-th time.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable

Handler = Callable[[str], None]


def _from_environment() -> Handler | None:
    setting = os.environ.get("PERPETUAL_FAULT")
    if not setting:
        return None
    target, _, count = setting.partition(":")
    seen: Counter[str] = Counter()

    def kill(point: str) -> None:
        seen[point] += 1
        if point == target and seen[point] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


_handler: Handler | None = _from_environment()


def install(handler: Handler | None) -> None:
    """Calls `handler(point)` at every point from now on; None switches it off."""
    global _handler  # noqa: PLW0603 - one process, one fault plan
    _handler = handler


def reached(point: str) -> None:
    """Marks a point; does nothing unless a test has asked for it."""
    if _handler is not None:
        _handler(point)
