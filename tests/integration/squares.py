"""The agent of the integration tests: squares numbers, and notes each run of a unit in a file."""

import asyncio
import os
import time
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Squares(PerpetualAgent):
    """Square the numbers below n, with a nap before all but the first: until the session is asked to stop, or the test
    says `hurry`."""

    notes: Path
    n: int = 12
    nap: float = 0.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"tokens": 10})

    async def work_unit(self, unit):
        await self.sleep(unit)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        unit.spend(tokens=10)
        unit.context["sum"] = unit.context.get("sum", 0) + unit.payload["number"]
        return {"square": unit.payload["number"] ** 2}

    async def sleep(self, unit):
        until = time.monotonic() + (self.nap if unit.payload["number"] else 0.0)
        hurry = self.notes.with_suffix(".hurry")
        while time.monotonic() < until and not unit.should_wrap() and not hurry.exists():
            await asyncio.sleep(0.05)


# Four units a session: the fifth would not fit.
squares = Squares.as_flow(name="squares", budget=Budget(tokens=45))

if __name__ == "__main__":
    squares.serve(name="served", limit=40)
