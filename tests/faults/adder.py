"""The agent of the kill campaign: each unit notes that it ran, and adds its number to the context."""

import os
import sys
import time
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Adder(PerpetualAgent):
    """Add the numbers below n, two units for each."""

    notes: Path
    n: int = 40
    nap: float = 0.02

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"tokens": 10})

    def work_unit(self, unit):
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {unit.number} {os.getpid()}\n")
        time.sleep(self.nap)
        unit.spend(tokens=10)
        if unit.number == 1:
            return unit.advance(cursor=unit.payload["number"], progress=(1, 2), next_action="add it")
        unit.context["sum"] = unit.context.get("sum", 0) + unit.cursor
        return {"added": unit.cursor}

    def merge_context(self, key, current, before, after):
        return (current or 0) + after - (before or 0)


# Sixteen units a session.
adder = Adder.as_flow(
    name="adder", budget=Budget(tokens=165), concurrency=int(os.environ.get("ADDER_CONCURRENCY", "1"))
)

if __name__ == "__main__":
    adder.serve(name=sys.argv[1])
