"""Named points where a test makes things go wrong.

The code says `reached("unit.persisted")` at each write, commit and schedule. In production that is one comparison with
None. A test installs a handler in its own process, or sets `PERPETUAL_FAULT` in the environment of a child:

* `point:count`: the child is killed by SIGKILL when it reaches that point for the count-th time.
* `*:probability:seed:log`: at every point it is killed with that probability, and a line with the process and the point
  is added to the log before; nobody is killed any more once there is a file named `log.over`.
"""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

Handler = Callable[[str], None]


def _from_environment() -> Handler | None:
    setting = os.environ.get("PERPETUAL_FAULT")
    if not setting:
        return None
    target, _, count = setting.partition(":")
    if target == "*":
        probability, seed, log = count.split(":", 2)
        return _at_random(float(probability), seed, Path(log))
    seen: Counter[str] = Counter()

    def kill(point: str) -> None:
        seen[point] += 1
        if point == target and seen[point] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def _at_random(probability: float, seed: str, log: Path) -> Handler:
    # Each process has a sequence of its own, and the same one whenever it is the same process of the same campaign.
    chance = random.Random(f"{seed}/{os.getpid()}")
    over = log.with_name(f"{log.name}.over")

    def kill(point: str) -> None:
        if chance.random() >= probability or over.exists():
            return
        with log.open("ab", buffering=0) as lines:  # one write, so that lines of several processes do not mix
            lines.write(f"{os.getpid()} {point}\n".encode())
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
