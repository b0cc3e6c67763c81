"""The rounds of the unit benchmark, in a process with Prefect's settings in its environment.

python unit_rounds.py ROUNDS UNITS   # prints the comparison as JSON
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from harness import side_by_side
from prefect import flow, task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.settings import get_current_settings

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem
from perpetual_blocks.session import choosing

# Each unit is a task by itself, as units of a second are: without this, so small ones would share one.
choosing.BATCH_SECONDS = 0.0

SETTLE_SECONDS = 1.0
"""The server goes on recording for a while; it should not do so during the next round."""

stamps: list[float] = []


def small_work(number: int) -> dict[str, Any]:
    """What both do: note the time, and return a small JSON object."""
    stamps.append(time.perf_counter())
    return {"number": number, "text": "done"}


class BenchAgent(PerpetualAgent):
    """Units that do nothing."""

    units: int

    def plan(self) -> Iterable[WorkItem]:
        for number in range(self.units):
            yield WorkItem(id=f"item-{number:04}", payload={"number": number})

    def work_unit(self, unit: Unit) -> dict[str, Any]:
        return small_work(unit.payload["number"])


perpetual = BenchAgent.as_flow(name="perpetual", budget=Budget(tokens=1e9, seconds=3600))


@task(
    persist_result=True,
    result_serializer="json",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: str(parameters["key"])),
)
def bare_task(key: str, number: int) -> dict[str, Any]:
    return small_work(number)


@flow
def bare(units: int, name: str) -> None:
    for number in range(units):
        bare_task(key=f"bare-{name}-{number}", number=number)


def main(rounds: int, units: int) -> None:
    """Prints the comparison."""
    compared = side_by_side(
        lambda: between_units(lambda: perpetual(units=units), units),
        lambda: between_units(lambda: bare(units, str(time.time_ns())), units),
        rounds,
    )
    print(json.dumps(asdict(compared)))


def between_units(run: Any, units: int) -> list[float]:
    """The seconds from each unit to the next, within one flow run."""
    stamps.clear()
    run()
    assert len(stamps) == units, f"{len(stamps)} of {units} units ran"
    time.sleep(SETTLE_SECONDS)
    return [later - earlier for earlier, later in pairwise(stamps)]


if __name__ == "__main__":
    assert get_current_settings().api.url, "the benchmark needs a server"
    main(int(sys.argv[1]), int(sys.argv[2]))
