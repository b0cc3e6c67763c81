"""Two flows that nap, and go on from run to run: a perpetual one, and one that starts its own deployment again.

python napping_flows.py napper|plain   # serves it, as `napper/served` or `plain/served`
"""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from prefect import flow
from prefect.deployments import run_deployment

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem

NAPS = 110
"""A run has so many: long enough that its end can be foreseen."""

NAP_SECONDS = 0.2
TOKENS = 10


def nap(notes: Path) -> None:
    """Naps, and adds a line with this process, the nap's begin and its end."""
    began = time.time()
    time.sleep(NAP_SECONDS)
    with notes.open("a") as lines:
        lines.write(f"{os.getpid()} {began} {time.time()}\n")


class Napper(PerpetualAgent):
    """Nap as often as a run's budget allows, and go on in the next."""

    notes: Path
    runs: int

    def plan(self) -> Iterable[WorkItem]:
        for number in range(self.runs * NAPS):
            yield WorkItem(id=f"nap-{number:05}", bound={"tokens": TOKENS})

    def work_unit(self, unit: Unit) -> None:
        nap(self.notes)
        unit.spend(tokens=TOKENS)


napper = Napper.as_flow(name="napper", budget=Budget(tokens=TOKENS * NAPS))


@flow
def plain(notes: Path, runs: int) -> None:
    """Naps, and creates the next run."""
    for _ in range(NAPS):
        nap(notes)
    if runs > 1:
        following = {"notes": str(notes), "runs": runs - 1}
        run_deployment("plain/served", parameters=following, timeout=0, as_subflow=False)  # type: ignore[unused-coroutine]


if __name__ == "__main__":
    {"napper": napper, "plain": plain}[sys.argv[1]].serve(name="served")
