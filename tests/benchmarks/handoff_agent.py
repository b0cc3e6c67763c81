"""What the handoff benchmark serves: an agent with sessions of some twenty seconds, and a plain flow that goes on by
itself, as one would write it without a library."""

import asyncio
import time
from pathlib import Path

from prefect import flow, serve
from prefect.deployments import run_deployment

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem

UNITS = 80


def note(notes: Path, began: float) -> None:
    """Adds a line for a unit: when it began, and when it ended."""
    with notes.open("a") as lines:
        lines.write(f"{began} {time.time()}\n")


class Sleeper(PerpetualAgent):
    """Sleep a while, again and again."""

    notes: Path
    n: int = UNITS
    nap: float = 0.25

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        began = time.time()
        await asyncio.sleep(self.nap)
        unit.spend(tokens=1)
        note(self.notes, began)


sleeper = Sleeper.as_flow(name="sleeper", budget=Budget(Limit("tokens", UNITS, threshold=1.0)))


@flow
def plain(notes: Path, left: int) -> None:
    """Do one unit, and start the next run."""
    note(notes, time.time())
    if left:
        run_deployment("plain/bench", parameters={"notes": str(notes), "left": left - 1}, timeout=0, as_subflow=False)


if __name__ == "__main__":
    serve(sleeper.to_deployment("bench"), plain.to_deployment("bench"))
