"""Agents whose units are at work when a signal comes: async, in a thread, and in processes of their own."""

import asyncio
import os
import time
from pathlib import Path

from perpetual_blocks import PerpetualAgent, WorkItem


class Napping(PerpetualAgent):
    """Take naps, and note when one begins and when it is over."""

    notes: Path
    n: int = 3
    nap: float = 2.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        self.note("began", unit)
        await asyncio.sleep(self.nap)
        self.note("ended", unit)
        return unit.id

    def note(self, what, unit):
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{what} {unit.id} {os.getpid()}\n")


class Blocking(Napping):
    """Take naps that nothing interrupts."""

    def work_unit(self, unit):
        self.note("began", unit)
        time.sleep(self.nap)
        self.note("ended", unit)
        return unit.id


class Apart(Blocking):
    """Take naps in processes of their own."""

    isolated = True


napping = Napping.as_flow(name="napping")
blocking = Blocking.as_flow(name="blocking")
apart = Apart.as_flow(name="apart")

if __name__ == "__main__":
    from prefect import serve

    serve(*(flow.to_deployment("served") for flow in (napping, blocking, apart)))
