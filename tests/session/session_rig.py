"""A chain without Prefect: its sessions run in this process, on a ledger, with the world in memory."""

from dataclasses import dataclass, field
from typing import Any

from support import KINDS, FakeClock, MemoryRuns, MemorySavedWork, follow_on_in_memory

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.session.chain import SessionRequest, SessionState
from perpetual_blocks.session.ledger import Fence, FollowOn
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import Moment, Observer
from perpetual_blocks.testing import LocalUnits, MemoryDocuments

NO_BUDGET = Budget()


def tokens(amount: float, threshold: float = 0.85) -> Budget:
    return Budget(Limit("tokens", amount, threshold=threshold))


@dataclass
class Rig:
    """A chain and everything that its sessions work with."""

    ledger: SqlLedger
    clock: FakeClock
    agent: PerpetualAgent
    chain: str = "mine"
    documents: MemoryDocuments = field(default_factory=MemoryDocuments)
    backup: MemoryDocuments = field(default_factory=MemoryDocuments)
    saved_work: MemorySavedWork = field(default_factory=MemorySavedWork)
    runs: MemoryRuns = field(default_factory=MemoryRuns)
    moments: list[Moment] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    started: int = 0
    unit_seconds: float = 1.0

    def __post_init__(self) -> None:
        self.runner = LocalUnits(self.agent, MemoryDocuments(), self.clock, self.unit_seconds)

    def run(
        self,
        budget: Budget = NO_BUDGET,
        *,
        stop: StopRequest | None = None,
        invited: str | None = None,
        code: str | None = None,
        concurrency: int = 1,
        **outside: Any,
    ) -> SessionEnd:
        """Runs the chain's next session, as a flow run of its own; `outside` is more of the world."""
        self.started += 1
        world = World(
            ledger=self.ledger,
            documents=self.documents,
            runner=self.runner,
            saved_work=self.saved_work,
            clock=self.clock,
            runs=self.runs,
            observers=[self.moments.append, *self.observers],
            backup=self.backup,
            **outside,
        )
        request = SessionRequest(
            chain=self.chain,
            agent=type(self.agent).__name__,
            holder=f"holder-{self.started}",
            host="here",
            pid=1,
            process_started=1.0,
            flow_run_id=f"run-{self.started}",
            deployment_id="deployment",
            invitation=invited,
            settings={"kinds": list(KINDS), "budget": budget.to_json()},
            code=code,
        )
        session = Session(
            self.agent,
            request,
            budget,
            world,
            task=self.agent.task(),
            follow_on=self.follow_on,
            stop=stop,
            concurrency=concurrency,
        )
        return session.run()

    def run_chain(self, budget: Budget = NO_BUDGET, most: int = 20) -> list[SessionEnd]:
        """Runs session after session, each invited by the one before, until the chain does not go on."""
        ends = [self.run(budget)]
        while ends[-1].state is SessionState.WRAPPED:
            assert len(ends) < most, "the chain does not come to an end"
            ends.append(self.run(budget, invited=list(self.runs.created)[-1]))
        return ends

    def follow_on(self, uid: str, fence: Fence, not_before: float | None = None) -> FollowOn:
        return follow_on_in_memory(uid, fence, not_before)

    def told(self, kind: type[Any]) -> list[Any]:
        """The moments of one kind."""
        return [moment for moment in self.moments if isinstance(moment, kind)]

    def document(self, kind: str, ordinal: int) -> str:
        """The text of a session's checkpoint or handoff, as the ledger points at it."""
        found = next(one for one in self.ledger.documents(self.chain, kind) if one.ordinal == ordinal)  # type: ignore[arg-type]
        return self.documents.read(found.key)
