"""Every point, every way to be interrupted there: the chain comes to the end that it comes to without.

The agents here are small, and together have what a chain can have: units in turn, cursors and progress, a context, items
that units add, dependencies, items that fail for good, several sessions with their follow-ons, async units.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.testing import Report, assert_resumable
from perpetual_blocks.work import Unit, WorkItem

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="assert_resumable forks")


class Translator(PerpetualAgent):
    """Translates a book chapter by chapter, then binds it. A page that nobody can read fails for good."""

    out: Path

    def plan(self) -> Iterable[WorkItem]:
        return [
            WorkItem(id="book", priority=1),
            WorkItem(id="torn page", max_attempts=2),
            WorkItem(id="cover", depends_on=("book",)),
        ]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100, calls=1)
        if unit.id == "torn page":
            raise ValueError("unreadable")
        if unit.id == "book" and unit.number == 1:
            (self.out / "chapter-1.txt").write_text("Call me Ishmael.")
            unit.context["names"] = ["Ishmael"]
            return unit.advance(cursor={"chapter": 2}, progress=(1, 2), next_action="chapter 2")
        unit.context["names"] = [*unit.context["names"], unit.id]
        if unit.id == "book":
            unit.add(WorkItem(id="index", payload={"of": unit.cursor["chapter"]}))
        return {"names": unit.context["names"], "cursor": unit.cursor}


class Postman(PerpetualAgent):
    """Delivers letters, as many in a session as its budget lets it, and signs the handoff."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"letter-{number}", bound={"tokens": 100}) for number in range(3)]

    async def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100)
        unit.context["delivered"] = unit.context.get("delivered", 0) + 1
        return {"delivered": unit.context["delivered"]}

    def create_handoff(self, handoff: Handoff) -> Handoff:
        self.spend(tokens=5)
        handoff.notes.append("signed")
        return handoff


class Blocked(PerpetualAgent):
    """Comes to an item that waits for one which was given up: its chain ends as stalled."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="bad", max_attempts=1), WorkItem(id="after", depends_on=("bad",))]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=1)
        raise ValueError("never")


class Isolated(PerpetualAgent):
    """Does its one unit with a budget for the whole chain that is then gone, while there is more to do."""

    isolated = True

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="first", bound={"calls": 1}), WorkItem(id="second", bound={"calls": 1})]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(calls=1)
        return unit.id


def everything_was_tried(report: Report) -> None:
    """Each occurrence of each point was interrupted in each way."""
    each = sum(report.points.values())
    assert report.cases == {"exception": each, "SIGTERM": each, "SIGKILL": each, "lost lease": each}
    assert (report.left_out, report.not_reached) == (0, 0)


def test_units_in_turn_with_all_that_they_do() -> None:
    """Cursor, progress, context, files, added items, dependencies and failed attempts are what they would have been."""
    report = assert_resumable(lambda folder: Translator(out=folder))

    everything_was_tried(report)
    assert report.points["unit.claimed"] == 6  # two chapters, the cover, the index, the torn page twice
    assert report.points["unit.committed"] == 4


def test_several_sessions_with_their_follow_ons() -> None:
    """Async units within a small budget: each session that goes on has one follow-on, whatever happens to it."""
    report = assert_resumable(Postman(), budget=Budget(Limit("tokens", 250, threshold=1)))

    everything_was_tried(report)
    assert report.sessions == 2
    assert report.points["follow_on.created"] == 1
    assert report.points["unit.committed"] == 3


@pytest.mark.parametrize(
    ("agent", "budget", "units"),
    [(Blocked(), None, 0), (Isolated(), Budget(Limit("calls", 1, scope="total", threshold=1)), 1)],
    ids=["stalled", "exhausted"],
)
def test_chains_that_end_before_their_queue_does(agent: PerpetualAgent, budget: Budget | None, units: int) -> None:
    """A chain that cannot go on ends so, and as what it would have ended as."""
    report = assert_resumable(agent, budget=budget)

    everything_was_tried(report)
    assert report.points.get("unit.committed", 0) == units
