"""The agent of the integration tests: squares numbers, and notes each run of a unit in a file."""

import asyncio
import os
from pathlib import Path

from perpetual_blocks import Budget, PerpetualAgent, WorkItem


class Squares(PerpetualAgent):
    """Square the numbers below n."""

    notes: Path
    n: int = 12
    nap: float = 0.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"tokens": 10})

    async def work_unit(self, unit):
        await asyncio.sleep(self.nap)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        unit.spend(tokens=10)
        unit.context["sum"] = unit.context.get("sum", 0) + unit.payload["number"]
        return {"square": unit.payload["number"] ** 2}


# Four units a session: the fifth would not fit.
squares = Squares.as_flow(name="squares", budget=Budget(tokens=45))

if __name__ == "__main__":
    squares.serve(name="served")
