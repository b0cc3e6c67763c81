"""The agent of the quota test: reads pages of an HTTP API that allows so many calls in 15 seconds."""

import os
from pathlib import Path

import httpx

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem


class Pages(PerpetualAgent):
    """Read pages of an API that answers 429 to one call too many."""

    cancellable = ("calls",)  # for it reserves each call first

    api: str
    notes: Path
    n: int = 10

    def plan(self):
        for page in range(self.n):
            yield WorkItem(id=f"page-{page}", payload={"page": page})

    def work_unit(self, unit):
        unit.reserve(calls=1)
        unit.spend(calls=1)
        answer = httpx.get(f"{self.api}/{unit.payload['page']}")
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id} {answer.status_code} {os.getpid()}\n")
        answer.raise_for_status()
        return answer.json()


read_pages = Pages.as_flow(name="read-pages", budget=Budget(Limit("calls", 8, scope="window", window="15s")))

if __name__ == "__main__":
    read_pages.serve(name="served")
