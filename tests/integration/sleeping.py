"""Agents of which one unit sleeps longer than any session lasts: in processes of their own, and async.

Their flows are in `sleepers.py`: a unit's own process imports this module, and no Prefect, within a moment.
"""

import asyncio
import os
import time
from pathlib import Path

from perpetual_blocks import PerpetualAgent, WorkItem


class Sleepers(PerpetualAgent):
    """Sleep, and say where."""

    isolated = True

    notes: Path

    def plan(self):
        for number, seconds in enumerate((0, 600, 0)):
            yield WorkItem(id=f"n/{number}", payload={"seconds": seconds})

    def work_unit(self, unit):
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        time.sleep(unit.payload["seconds"])
        unit.context["slept"] = [*unit.context.get("slept", []), unit.id]
        return unit.context["slept"]


class Dreamers(Sleepers):
    """Sleep without keeping others from working."""

    isolated = False

    async def work_unit(self, unit):
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        await asyncio.sleep(unit.payload["seconds"])
