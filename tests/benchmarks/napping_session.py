"""One session of an agent whose units wait, as for a model's answer, in a process with Prefect's settings around it.

python napping_session.py CHAIN NOTES GO   # until it is asked to end; NOTES gets a line for each unit

Its first unit makes NOTES, and waits until there is a file GO: of several, none takes the processor while others start.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem

ITEMS = 40_000
"""More than eight sessions come to."""

NAP_SECONDS = 0.02


class Waiter(PerpetualAgent):
    """Wait."""

    notes: Path
    go: Path

    def plan(self) -> Iterable[WorkItem]:
        for number in range(ITEMS):
            yield WorkItem(id=f"item-{number:05}")

    def work_unit(self, unit: Unit) -> None:
        self.notes.touch()
        while not self.go.exists():
            time.sleep(NAP_SECONDS)
        time.sleep(NAP_SECONDS)
        with self.notes.open("a") as lines:
            lines.write(f"{time.time()}\n")


if __name__ == "__main__":
    chain, notes, go = sys.argv[1:]
    Waiter.as_flow(name="waiter", budget=Budget(seconds=3600))(chain=chain, notes=notes, go=go)
