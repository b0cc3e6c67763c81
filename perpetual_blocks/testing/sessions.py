"""Sessions for an agent's tests: in this process and in memory, with the ledger and the loop of every other session."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Meter
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import SessionState, StopReason
from perpetual_blocks.session.loop import Session
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import UnitCompleted
from perpetual_blocks.testing.local import (
    UNIT_SECONDS,
    LocalUnits,
    ManualClock,
    MemoryDocuments,
    NoSavedWork,
    ScriptedMeter,
    kept_outcome,
    local_meters,
    local_request,
)
from perpetual_blocks.work import Item, ItemStatus

CHAIN = "tested"
MOST_ITEMS = 1_000_000


@dataclass(slots=True)
class _Chain:
    """What the sessions of one chain share."""

    agent: PerpetualAgent
    budget: Budget
    clock: ManualClock
    meters: Mapping[str, Meter]
    unit_seconds: float
    ledger: SqlLedger = field(init=False)
    documents: MemoryDocuments = field(default_factory=MemoryDocuments)

    def __post_init__(self) -> None:
        self.ledger = SqlLedger("sqlite://", clock=self.clock)


@dataclass(frozen=True, kw_only=True)
class SessionRun:
    """What happened in a session, and how its chain stands after it.

    Attributes:
        ordinal: The session's number in its chain.
        state: How it ended: `Wrapped`, `Finished`, `Exhausted`, `Stalled`, `Failed`.
        reason: Why, in a sentence, and as a code.
        units: The items whose units it finished, in order: one id for each unit.
        usage: What the session has used, by resource.
        results: What the chain's completed items came to so far, by id.
        errors: What is wrong with items, by id: those that are tried again, and those that were discarded.
        items: All items of the chain, by id.
        context: The agent's memory.
        handoff: The document for whoever comes next, as Markdown; empty where the session has written none.
    """

    ordinal: int
    state: SessionState
    reason: StopReason
    units: tuple[str, ...]
    usage: dict[str, float]
    results: dict[str, Any]
    errors: dict[str, str]
    context: dict[str, Any]
    items: dict[str, Item] = field(repr=False)
    handoff: str = field(repr=False)
    _chain: _Chain = field(repr=False, compare=False)

    def go_on(
        self,
        *,
        agent: PerpetualAgent | None = None,
        budget: Budget | None = None,
        stop_after: int | None = None,
    ) -> "SessionRun":
        """Runs the chain's next session, when it is due: the clock goes on to then, and nobody waits.

        Args:
            agent: What goes on from here; the same agent if not given.
            budget: What each session may use from here on; as before if not given.
            stop_after: See `run_session`.

        What happened before stays as it is in the runs that were returned before.
        """
        chain = self._chain
        chain.agent, chain.budget = agent or chain.agent, budget or chain.budget
        due = chain.ledger.chain(CHAIN).resume_at
        chain.clock.advance(max(0.0, (due or 0.0) - chain.clock.now()))
        return _run(chain, stop_after)


def run_session(
    agent: PerpetualAgent,
    *,
    budget: Budget | None = None,
    stop_after: int | None = None,
    clock: ManualClock | None = None,
    meters: Mapping[str, Meter] | None = None,
    unit_seconds: float = UNIT_SECONDS,
) -> SessionRun:
    """Runs the first session of a new chain, in memory: no Prefect, no server, no files but the agent's own.

    The ledger is the real one, so that what is guaranteed of chains holds here too. A unit that raises is tried again,
    and then discarded, as everywhere; pytest shows the traceback with a test that fails.

    Args:
        budget: What each session may use; as much as there is if not given.
        stop_after: The session is asked to stop when it has finished so many units, as by a signal; small units are
            finished several at once. It is not if not given.
        clock: The chain's clock, which moves only when it is told to.
        meters: What reads gauges, by resource, in place of what the agent has: `ScriptedMeter`s, say.
        unit_seconds: How long each unit takes by that clock.

    Raises:
        InvalidInput: `stop_after` is less than 1, or the budget limits a gauge that nobody reads.
    """
    chain = _Chain(agent, budget or Budget(), clock or ManualClock(), meters or {}, unit_seconds)
    return _run(chain, stop_after)


def run_chain(
    agent: PerpetualAgent,
    *,
    budget: Budget | None = None,
    clock: ManualClock | None = None,
    meters: Mapping[str, Meter] | None = None,
    unit_seconds: float = UNIT_SECONDS,
    most: int = 1000,
) -> list[SessionRun]:
    """Runs a whole chain, session after session, until it does not go on by itself; see `run_session`.

    Args:
        most: So many sessions at most.

    Raises:
        AssertionError: the chain has not ended by then.
    """
    runs = [run_session(agent, budget=budget, clock=clock, meters=meters, unit_seconds=unit_seconds)]
    while runs[-1].state is SessionState.WRAPPED:
        assert len(runs) < most, f"the chain had not ended after {most} sessions: {runs[-1]}"
        runs.append(runs[-1].go_on())
    return runs


def _run(chain: _Chain, stop_after: int | None) -> SessionRun:
    if stop_after is not None and stop_after < 1:
        raise InvalidInput.of("stop_after", stop_after, "at least 1 unit, or None")
    agent, budget, ledger, documents = chain.agent, chain.budget, chain.ledger, chain.documents
    stop, finished = StopRequest(), list[str]()

    def observe(moment: object) -> None:
        if not isinstance(moment, UnitCompleted):
            return
        finished.append(moment.item)
        for meter in chain.meters.values():
            if isinstance(meter, ScriptedMeter):
                meter.move_on()
        if len(finished) == stop_after:
            stop.ask(StopReason("asked", f"the test stops it after {stop_after} units"))

    units = LocalUnits(agent, documents, chain.clock, chain.unit_seconds)
    world = World(
        ledger=ledger,
        documents=documents,
        runner=units,
        saved_work=NoSavedWork(),
        clock=chain.clock,
        meters={**local_meters(agent), **chain.meters},
        observers=[observe],
        price=price,
    )
    request = local_request(agent, budget, CHAIN)
    try:
        end = Session(agent, request, budget, world, task=agent.task(), stop=stop).run()
    finally:
        units.close()
    record = ledger.sessions(CHAIN)[-1]
    items = {item.id: item for item in ledger.items(CHAIN, limit=MOST_ITEMS)}
    handoffs = [one for one in ledger.documents(CHAIN, "handoff") if one.ordinal == end.ordinal]
    return SessionRun(
        ordinal=end.ordinal,
        state=end.state,
        reason=end.reason,
        units=tuple(finished),
        usage=record.usage,
        results={
            item.id: kept_outcome(documents, item.result_key).result
            for item in items.values()
            if item.status is ItemStatus.COMPLETED and item.result_key
        },
        errors={item.id: item.error for item in items.values() if item.error},
        context=ledger.chain(CHAIN).context,
        items=items,
        handoff=documents.read(handoffs[0].key) if handoffs else "",
        _chain=chain,
    )
