"""One session of an agent whose units do nothing, in a process with Prefect's settings in its environment.

python trivial_session.py ITEMS SECONDS   # the queue's length, and how long the session may take

It prints as JSON how many units it did, in how many seconds from the first one until the last was committed, and what
memory the process had after so many units.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem

SAMPLE_SECONDS = 0.25

process = psutil.Process()


@dataclass
class Session:
    """What it did.

    Attributes:
        memory: How many units were done, and the process's resident bytes then.
    """

    units: int = 0
    began: float = 0.0
    seconds: float = 0.0
    processor_began: float = 0.0
    processor_seconds: float = 0.0
    sampled: float = 0.0
    memory: list[tuple[int, int]] = field(default_factory=list)


session = Session()


class TrivialAgent(PerpetualAgent):
    """Units that do nothing."""

    items: int

    def plan(self) -> Iterable[WorkItem]:
        for number in range(self.items):
            yield WorkItem(id=f"item-{number:07}", payload={"number": number})

    def work_unit(self, unit: Unit) -> dict[str, Any]:
        now = time.perf_counter()
        if session.units == 0:
            session.began, session.processor_began = now, time.process_time()
        if now - session.sampled > SAMPLE_SECONDS:
            session.sampled = now
            session.memory.append((session.units, process.memory_info().rss))
        session.units += 1
        return {"number": unit.payload["number"], "text": "done"}

    def finish_unit(self) -> None:
        if session.units:
            session.seconds = time.perf_counter() - session.began
            session.processor_seconds = time.process_time() - session.processor_began


def main(items: int, seconds: float) -> None:
    """Runs the session, and prints what it did."""
    TrivialAgent.as_flow(name="trivial", budget=Budget(seconds=seconds))(items=items, chain="trivial")
    print(json.dumps(asdict(session)))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
