"""The agent of the handoff benchmark: units that sleep, and note when they began and ended."""

import asyncio
import sys
import time
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Sleeper(PerpetualAgent):
    """Sleep a while, again and again."""

    notes: Path
    n: int = 100
    nap: float = 0.25

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        began = time.time()
        await asyncio.sleep(self.nap)
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {began} {time.time()}\n")


# Some 20 seconds a session.
sleeper = Sleeper.as_flow(name="sleeper", budget=Budget(tokens=800))

if __name__ == "__main__":
    sleeper.serve(name=sys.argv[1])
