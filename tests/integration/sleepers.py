"""An agent whose units run in processes of their own, and one of which sleeps longer than any session lasts."""

import os
import time
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Sleepers(PerpetualAgent):
    """Sleep, and say where."""

    isolated = True

    notes: Path

    def plan(self):
        for number, seconds in enumerate((0, 60, 0)):
            yield WorkItem(id=f"n/{number}", payload={"seconds": seconds})

    def work_unit(self, unit):
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        time.sleep(unit.payload["seconds"])
        unit.context["slept"] = [*unit.context.get("slept", []), unit.id]
        return unit.context["slept"]


sleepers = Sleepers.as_flow(name="sleepers", budget=Budget(seconds=8))
