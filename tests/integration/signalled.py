"""Agents whose units are at work when a signal comes: async, in a thread, and in processes of their own.

`signalled.py serve NAME` serves the first of them as a deployment of that name; `signalled.py call FLOW PARAMETERS`
calls a flow as any script does.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from perpetual_blocks import PerpetualAgent, WorkItem


class Napping(PerpetualAgent):
    """Take naps, and note when one begins and when it is over. The first does not begin before the signal has come."""

    notes: Path
    n: int = 2
    nap: float = 1.0
    farewell: float = 0.0

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}")

    async def work_unit(self, unit):
        self.note("began", unit)
        while unit.id == "n/0" and not unit.should_wrap():
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.nap)
        self.note("ended", unit)
        return unit.id

    def finish_unit(self):
        with self.notes.open("a") as notes:
            notes.write(f"wraps - {os.getpid()}\n")
        time.sleep(self.farewell)

    def note(self, what, unit):
        unit.spend(tokens=10)
        with self.notes.open("a") as notes:
            notes.write(f"{what} {unit.id} {os.getpid()}\n")


class Blocking(Napping):
    """Take naps that nothing interrupts."""

    def work_unit(self, unit):
        self.note("began", unit)
        while unit.id == "n/0" and not unit.should_wrap():
            time.sleep(0.05)
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
    what, name, *parameters = sys.argv[1:]
    if what == "serve":
        napping.serve(name=name)
    else:
        globals()[name](**json.loads(parameters[0]))
        print("came back")
