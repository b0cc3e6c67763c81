"""A chain of small agents, and everything that its sessions work with: each session has an agent of its own."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from support import KINDS, LEASE, FakeClock, MemoryRuns, MemorySavedWork, follow_on_in_memory

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.session.chain import SessionRequest, SessionState
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import Moment, Observer
from perpetual_blocks.testing import LocalUnits, MemoryDocuments
from perpetual_blocks.work import Item, Unit, WorkItem

Work = Callable[[Unit], Any]

NO_BUDGET = Budget()
UNIT_TOKENS = 100
ONE_UNIT = Budget(Limit("tokens", UNIT_TOKENS, threshold=0.85))
"""Each unit of a test's agent needs a session of its own."""


class Killed(BaseException):
    """The end of a process: nothing catches it, nothing is done after it."""


def window(length: str) -> Budget:
    """One unit of a test's agent in each such time."""
    return Budget(Limit("tokens", UNIT_TOKENS, scope="window", window=length))


def item(id: str, **fields: Any) -> WorkItem:
    """A work item of which it is known what a unit costs."""
    return WorkItem(id=id, bound={"tokens": UNIT_TOKENS}, **fields)


class Rig:
    """A chain whose items and unit are the test's.

    Attributes:
        ran: The units that the agent was asked for, as `item/number`, those that raised included.
        moments: What observers were told.
    """

    def __init__(self, ledger: SqlLedger, clock: FakeClock, items: Sequence[WorkItem], work: Work) -> None:
        self.ledger = ledger
        self.clock = clock
        self._items = items
        self._work = work
        self._kept = MemoryDocuments()
        self._documents, self._saved_work = MemoryDocuments(), MemorySavedWork()
        self.runs = MemoryRuns()
        self.ran: list[str] = []
        self.moments: list[Moment] = []
        self._started = 0

    def run(self, budget: Budget = NO_BUDGET, *, observers: Sequence[Observer] = (), host: str = "here") -> SessionEnd:
        """Runs the chain's next session, as the follow-on of the one before where there is one."""
        self._started += 1
        agent = self._agent()
        runner = LocalUnits(agent, self._kept, self.clock)
        world = World(
            ledger=self.ledger,
            documents=self._documents,
            runner=runner,
            saved_work=self._saved_work,
            clock=self.clock,
            runs=self.runs,
            observers=[self.moments.append, *observers],
        )
        request = SessionRequest(
            chain="mine",
            agent="Tester",
            holder=f"holder-{self._started}",
            host=host,
            pid=self._started,
            process_started=1.0,
            flow_run_id=f"run-{self._started}",
            deployment_id="deployment",
            invitation=list(self.runs.created)[-1] if self.runs.created else None,
            settings={"kinds": list(KINDS), "budget": budget.to_json()},
        )
        return Session(agent, request, budget, world, task="To be tested.", follow_on=follow_on_in_memory).run()

    def run_chain(self, budget: Budget = NO_BUDGET, most: int = 20) -> list[SessionEnd]:
        """Runs session after session, each when its follow-on is due, until the chain does not go on."""
        ends: list[SessionEnd] = []
        while not ends or ends[-1].state is SessionState.WRAPPED:
            if len(ends) == most:
                pytest.fail("the chain does not come to an end")
            self.wait_for_follow_on()
            ends.append(self.run(budget))
        return ends

    def run_killed(self, budget: Budget = NO_BUDGET) -> None:
        """Runs a session whose process dies, and waits until its lease has run out."""
        with pytest.raises(Killed):
            self.run(budget)
        self.clock.advance(LEASE)

    def wait_for_follow_on(self) -> None:
        """Lets the time pass until the latest follow-on is due."""
        for follow_on in list(self.runs.created.values())[-1:]:
            self.clock.advance(max(0.0, (follow_on.not_before or 0.0) - self.clock.now()))

    def found(self, id: str) -> Item:
        """An item as the ledger has it."""
        return next(one for one in self.ledger.items("mine") if one.id == id)

    def result(self, id: str) -> Any:
        """The result that an item's row points at."""
        key = self.found(id).result_key
        assert key is not None, f"{id} has no result"
        return json.loads(self._kept.read(key))["result"]

    def told(self, kind: type[Any]) -> list[Any]:
        """The moments of one kind."""
        return [moment for moment in self.moments if isinstance(moment, kind)]

    def _agent(self) -> PerpetualAgent:
        items, work, ran = self._items, self._work, self.ran

        class Tester(PerpetualAgent):
            """Does what the test says."""

            def plan(self) -> Iterable[WorkItem]:
                return items

            def work_unit(self, unit: Unit) -> Any:
                ran.append(f"{unit.id}/{unit.number}")
                return work(unit)

        return Tester()


MakeRig = Callable[[Sequence[WorkItem], Work], Rig]


def proves(*ids: str) -> pytest.MarkDecorator:
    """Runs a test once for each of these rules."""
    return pytest.mark.parametrize("rule", ids, indirect=True)


def proves_with(name: str, cases: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Runs a test once for each of these rules, with the rule's own value of an argument."""
    values = [pytest.param(id, value, id=id) for id, value in cases.items()]
    return pytest.mark.parametrize(("rule", name), values, indirect=["rule"])
