"""The agent of the tests with several agents on one queue: each unit is a call of what they share, behind a gate."""

import os
import time
from pathlib import Path

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem


class Sharing(PerpetualAgent):
    """Note the numbers below n, one call each."""

    cancellable = ("calls",)

    notes: Path
    gate: Path
    n: int = 12

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"calls": 1, "tokens": 10})

    def work_unit(self, unit):
        while not self.gate.exists():
            time.sleep(0.02)
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {os.getpid()}\n")
        unit.spend(calls=1, tokens=10)
        return {"number": unit.payload["number"]}


# Eight units a session; what all of them share is forty-four calls.
sharing = Sharing.as_flow(
    name="sharing", budget=Budget(Limit("tokens", 85), Limit("calls", 44, scope="total", pool="team"))
)

if __name__ == "__main__":
    sharing.serve(name="served")
