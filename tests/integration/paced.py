"""An agent whose sessions have ten units: some quick ones, so that their end seems near, and then slow ones, so that
there is time for a successor to come to the fence, however busy the machine is."""

import asyncio
import time
from pathlib import Path

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem


class Paced(PerpetualAgent):
    """Sleep, and note when."""

    notes: Path
    n: int = 30
    nap: float = 6.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        began = time.time()
        await asyncio.sleep(1.0 if int(unit.id[2:]) % 10 < 4 else self.nap)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {began} {time.time()}\n")
        unit.spend(tokens=10)


paced = Paced.as_flow(name="paced", budget=Budget(Limit("tokens", 100, threshold=1.0)))

if __name__ == "__main__":
    paced.serve(name="served")
