"""Every fault point × (exception, SIGTERM, SIGKILL, lost lease): agents of every kind come to the same end.

`PERPETUAL_MOST_CASES=5000` interrupts them at every occurrence of every point, which takes some minutes.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.testing import Report, assert_resumable
from perpetual_blocks.testing.interruptions import MODES
from perpetual_blocks.work import Unit, WorkItem

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="assert_resumable forks")

MOST_CASES = int(os.environ.get("PERPETUAL_MOST_CASES", "100"))

POINTS = {
    "session.opened", "unit.claimed", "unit.returned", "unit.persisted", "unit.committing", "unit.committed",
    "checkpoint.written", "handoff.written", "session.closing", "session.closed", "follow_on.created",
}  # fmt: skip


class Everything(PerpetualAgent):
    """Writes files, remembers what it has seen, takes several units for an item, adds one, and has one that always
    fails."""

    out: Path

    def plan(self) -> Iterable[WorkItem]:
        return [
            WorkItem(id="first", payload={"text": "one"}),
            WorkItem(id="bad", max_attempts=2),
            WorkItem(id="then", payload={"text": "two"}, depends_on=("first",)),
        ]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=10, calls=1)
        if unit.id == "bad":
            raise ValueError("never works")
        unit.context["seen"] = [*unit.context.get("seen", []), unit.id]
        if unit.number == 1:
            return unit.advance(cursor={"at": 1}, progress=(1, 2), next_action="write it")
        (self.out / f"{unit.id}.txt").write_text(unit.payload["text"] * unit.cursor["at"])
        if unit.id == "first":
            unit.add(WorkItem(id="more", payload={"text": "three"}, priority=2, depends_on=("then",)))
        return {"written": unit.id}


class Asynchronous(Everything):
    """Does the same in coroutines."""

    async def work_unit(self, unit: Unit) -> Any:
        await asyncio.sleep(0)
        return super().work_unit(unit)


AGENTS: dict[str, tuple[Callable[[Path], PerpetualAgent], Limit]] = {
    # how it is made, and its tokens a session: two sessions each
    "async": (lambda folder: Asynchronous(out=folder), Limit("tokens", 65)),
    # One whose end is foretold: its follow-on is created ahead.
    "ahead": (lambda folder: Everything(out=folder), Limit("tokens", 60, threshold=1.0)),
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_point_in_every_way(name: str) -> None:
    """Items, results, context, usage, files and the number of follow-ons are those of the uninterrupted run."""
    make, tokens = AGENTS[name]

    report: Report = assert_resumable(make, budget=Budget(tokens), most_cases=MOST_CASES)

    print(report)
    assert report.sessions >= 2
    assert set(report.cases) == set(MODES)
    assert set(report.points) >= POINTS
    before_the_first_end = list(report.points)[: list(report.points).index("session.closing")]
    assert ("follow_on.announced" in before_the_first_end) is (name == "ahead")


class Blocked(PerpetualAgent):
    """Comes to an item that waits for one which was given up: its chain ends as stalled."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="bad", max_attempts=1), WorkItem(id="after", depends_on=("bad",))]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=1)
        raise ValueError("never works")


class Spender(PerpetualAgent):
    """Does one unit, isolated, with a budget for the whole chain that is then gone, while there is more to do."""

    isolated = True

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="first", bound={"calls": 1}), WorkItem(id="second", bound={"calls": 1})]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(calls=1)
        return unit.id


@pytest.mark.parametrize(
    ("agent", "budget", "units"),
    [(Blocked(), None, 0), (Spender(), Budget(Limit("calls", 1, scope="total", threshold=1)), 1)],
    ids=["stalled", "exhausted"],
)
def test_chains_that_end_before_their_queue_does(agent: PerpetualAgent, budget: Budget | None, units: int) -> None:
    """A chain that cannot go on ends as what it would have ended as: stalled, or exhausted."""
    report = assert_resumable(agent, budget=budget, most_cases=MOST_CASES)

    print(report)
    assert report.points.get("unit.committed", 0) == units
    assert report.not_reached == 0
