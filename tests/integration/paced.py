"""An agent whose sessions have ten units: some quick ones, so that their end seems near, and then slow ones, which wait
until the test has seen what it wants to see, however busy the machine is."""

import asyncio
import time
from pathlib import Path

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem


class Paced(PerpetualAgent):
    """Sleep, and note when."""

    notes: Path
    n: int = 30
    nap: float = 600.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        began = time.time()
        session, place = divmod(unit.context.get("done", 0), 10)
        await (asyncio.sleep(1.0) if place < 4 else self.sleep(unit, session + 1))
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {began} {time.time()}\n")
        unit.spend(tokens=10)
        unit.context["done"] = 10 * session + place + 1

    async def sleep(self, unit, session):
        """Until the test says `hurry`, to this session or to all."""
        until, suffixes = time.monotonic() + self.nap, (".hurry", f".hurry-{session}")
        hurries = [self.notes.with_suffix(suffix) for suffix in suffixes]
        while time.monotonic() < until and not unit.should_wrap() and not any(hurry.exists() for hurry in hurries):
            await asyncio.sleep(0.05)


paced = Paced.as_flow(name="paced", budget=Budget(Limit("tokens", 100, threshold=1.0)))

if __name__ == "__main__":
    paced.serve(name="served", limit=40)
