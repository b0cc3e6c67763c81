"""The agent of the many items: a unit notes that it ran, and does nothing else."""

import os
from pathlib import Path
from typing import Any, TextIO

from pydantic import PrivateAttr

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Counter(PerpetualAgent):
    """Note every number below n."""

    notes: Path
    n: int
    _lines: TextIO | None = PrivateAttr(None)

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    def work_unit(self, unit) -> Any:
        if self._lines is None:
            self.notes.mkdir(exist_ok=True)
            self._lines = (self.notes / str(os.getpid())).open("a", buffering=1)
        self._lines.write(f"{unit.id}\n")


counter = Counter.as_flow(name="counter", budget=Budget(seconds=int(os.environ.get("COUNTER_SECONDS", "60"))))
