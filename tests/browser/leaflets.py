"""The agent of the browser tests: its form has a field of each kind, and its sessions have the budget of a block."""

import asyncio
import time
from typing import Literal

from pydantic import Field

from perpetual_blocks import PerpetualAgent, WorkItem


class Leaflets(PerpetualAgent):
    """Print leaflets one after the other, and let each dry."""

    copies: int = Field(default=9, ge=1, le=50, description="How many are printed.")
    paper: Literal["plain", "glossy"] = Field(default="plain", description="What they are printed on.")
    dry_seconds: float = Field(default=0, ge=0, le=600, description="How long each of them dries.")
    numbered: bool = Field(default=True, description="Whether each of them has its number.")

    def plan(self):
        for number in range(1, self.copies + 1):
            yield WorkItem(id=f"leaflet/{number}", payload={"number": number}, bound={"tokens": 10})

    async def work_unit(self, unit):
        until = time.monotonic() + self.dry_seconds
        while time.monotonic() < until and not unit.should_wrap():
            await asyncio.sleep(0.05)
        unit.spend(tokens=10)
        return {"paper": self.paper, "number": unit.payload["number"] if self.numbered else None}


leaflets = Leaflets.as_flow(name="leaflets")

if __name__ == "__main__":
    leaflets.serve(name="printed")
