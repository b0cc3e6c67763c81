"""The orchestrator: sees to it that as many agents work on a queue as is useful, and tells how all of them stand.

Whatever it does is said to the ledger: a chain is added, is to rest, is woken, is over. Sessions begin by what follows
from that: with a deployment from the outbox, else whoever looks starts those that are due. So it may be killed between
any two of these, started again, or started twice.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.account import pool_spends
from perpetual_blocks.session.agents import AgentLine, Agents, in_order, together
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, Wanted, check_chain_name
from perpetual_blocks.session.continuation import WAITING
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.follow_on import create_follow_ons
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.orchestration import (
    Bounds,
    Decision,
    Situation,
    Throughput,
    affordable,
    agent_name,
    agents_wanted,
    is_ending,
    is_going,
    is_resting,
)
from perpetual_blocks.session.ports import Runs
from perpetual_blocks.session.supervisor import Deed, Supervisor
from perpetual_blocks.work import EVERYTHING, ItemStatus, Selector

RESCUE_SECONDS = 10.0
"""How often chains are looked after: whose process is dead, what is to be created, what may begin earlier."""

REST = "fewer agents are enough for now"


@dataclass(frozen=True, slots=True)
class Part:
    """An agent for a part of the queue, beside those that take everything.

    Attributes:
        name: Its chain's name is this one after the queue's.
    """

    name: str
    selector: Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How all agents of a queue stand.

    Attributes:
        planned: Whether the queue has its items.
        decision: How many were to work, and why.
        deeds: What was done for chains since the report before.
        due: Chains that wait for their next session.
        near_end: The sessions at work whose end is near, and after which their chain will go on: ordinals by chain.
        at_work: How many sessions there are.
        over: Whether nobody is at work any more, nor will be by itself.
    """

    queue: str
    planned: bool
    items: dict[ItemStatus, int]
    agents: Sequence[AgentLine]
    decision: Decision
    deeds: Sequence[Deed]
    due: Sequence[str]
    near_end: Mapping[str, int]
    at_work: int
    over: bool

    @property
    def finished(self) -> bool:
        """Whether everything is done that can be."""
        still_open = (ItemStatus.AVAILABLE, ItemStatus.CLAIMED, ItemStatus.BLOCKED)
        return self.planned and self.over and not any(self.items[one] for one in still_open)

    @property
    def items_done(self) -> int:
        """Items that are completed."""
        return self.items[ItemStatus.COMPLETED]

    @property
    def units(self) -> int:
        """All that were finished."""
        return sum(agent.units for agent in self.agents)

    @property
    def per_minute(self) -> float:
        """Units, of late."""
        return sum(agent.per_minute for agent in self.agents)

    @property
    def usage(self) -> dict[str, float]:
        """What all of them have used."""
        return together(self.agents)

    def to_json(self) -> dict[str, Any]:
        """As `perpetual orchestrate --json` prints it."""
        return {
            "queue": self.queue,
            "finished": self.finished,
            "items": {"total": sum(self.items.values()), **{one.value: count for one, count in self.items.items()}},
            "units": self.units,
            "per_minute": round(self.per_minute, 3),
            "usage": self.usage,
            "wanted": {"agents": self.decision.agents, "why": self.decision.why},
            "agents": [agent.to_json() for agent in self.agents],
        }


@dataclass(slots=True)
class Orchestrator:
    """Looks after the agents of a queue.

    Attributes:
        queue: The chain that the queue belongs to; it is made where it is new.
        bounds: How many agents there may be that take everything.
        parts: Agents for a part each, in addition.
        template: What the first run of an agent is made of, as a session's row has it; None where whoever looks starts
            the sessions that are due.
        runs: Prefect's flow runs; None without a server.

    Raises:
        InvalidInput: two parts have one name, or a name is none.
    """

    ledger: Ledger
    queue: str
    bounds: Bounds
    clock: Clock
    supervisor: Supervisor
    parts: Sequence[Part] = ()
    template: dict[str, Any] | None = None
    runs: Runs | None = None
    _throughput: Throughput = field(default_factory=Throughput)
    _agents: Agents = field(default_factory=Agents)
    _looked_after: float | None = None
    _decision: Decision = field(default_factory=lambda: Decision(1, "it begins"))

    def __post_init__(self) -> None:
        names = [agent_name(self.queue, number) for number in range(1, self.bounds.most + 1)]
        names += [check_chain_name(f"{self.queue}-{part.name}") for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInput.of("agents", name.removeprefix(f"{self.queue}-"), "a name that no other agent has")

    def look(self, starting: Collection[str] = ()) -> Report:
        """Looks once, and does what is to be done.

        Args:
            starting: Chains for whose next session a process has been started.
        """
        deeds = self._look_after()
        chains = self._chains()
        if self.queue not in chains:
            self._add(self.queue)
            chains = self._chains()
        if chains[self.queue].planned:
            for part in self.parts:
                self._see_to(part, chains.get(f"{self.queue}-{part.name}"))
        sessions = {name: self.ledger.sessions(name) for name in chains}
        items = self.ledger.counts(self.queue)
        self._decision = self._decide(chains, sessions, items)
        self._begin_waiting(chains)
        self._grow(chains)
        self._shrink(chains)
        self._finish({name: chain for name, chain in chains.items() if name not in starting}, items)
        return self._report(sessions, items, deeds)

    def tell(self) -> Report:
        """How all of them stand now; nothing is done."""
        sessions = {chain.name: self.ledger.sessions(chain.name) for chain in self.ledger.chains(self.queue)}
        return self._report(sessions, self.ledger.counts(self.queue), ())

    def look_after(self, chain: str) -> list[Deed]:
        """Looks at one chain at once, whose process has ended."""
        return self.supervisor.look_at(chain)

    # Looking --------------------------------------------------------------------------------------------------------

    def _chains(self) -> dict[str, Chain]:
        """All of them by name, the owner first, then those that were made first."""
        return {chain.name: chain for chain in in_order(self.ledger.chains(self.queue))}

    def _look_after(self) -> list[Deed]:
        now = self.clock.monotonic()
        if self._looked_after is not None and now - self._looked_after < RESCUE_SECONDS:
            return []
        self._looked_after = now
        return self.supervisor.look(self.queue)

    def _decide(
        self, chains: dict[str, Chain], sessions: dict[str, list[SessionRecord]], items: dict[ItemStatus, int]
    ) -> Decision:
        now, going = self.clock.now(), [chain for chain in _general(chains) if is_going(chain)]
        waiting = [chain for chain in going if chain.resume_at is not None and chain.resume_at > now]
        to_do = items[ItemStatus.AVAILABLE] + items[ItemStatus.CLAIMED]
        on_duty = len(going) - len(waiting)
        units = sum(session.units for all_of_one in sessions.values() for session in all_of_one)
        # Those that find nothing to do say nothing of what so many can do.
        self._throughput.observe(now, on_duty if to_do >= on_duty else 0, units)
        seen = Situation(
            going=len(going),
            held_back=sum(_stopped_by(sessions[chain.name]) != WAITING for chain in waiting),
            planned=chains[self.queue].planned,
            to_do=to_do,
            rates=self._throughput.known(now),
        )
        wanted = agents_wanted(seen, self.bounds)
        return self._within_pools(wanted, len(going), chains, sessions, units) if wanted.agents > len(going) else wanted

    def _within_pools(
        self,
        wanted: Decision,
        going: int,
        chains: dict[str, Chain],
        sessions: dict[str, list[SessionRecord]],
        units: int,
    ) -> Decision:
        used = chain_usage([session for all_of_one in sessions.values() for session in all_of_one])
        for limit in chains[self.queue].budget:
            if limit.pool is None or not units:
                continue
            left = limit.amount - sum(spend.amount for spend in pool_spends(self.ledger, limit, self.clock.now()))
            agents = affordable(left, used.get(limit.resource, 0.0) / units, wanted.agents, max(1, going))
            if agents < wanted.agents:
                wanted = Decision(agents, f"pool {limit.pool} has room for no more")
        return wanted

    # Doing ----------------------------------------------------------------------------------------------------------

    def _see_to(self, part: Part, chain: Chain | None) -> None:
        name = f"{self.queue}-{part.name}"
        if chain is None or chain.selector != part.selector:
            self._add(name, part.selector)
        elif not is_going(chain):
            self._wake(name)

    def _begin_waiting(self, chains: dict[str, Chain]) -> None:
        """Lets those go on that have work again, and that nobody has started for it."""
        for chain in chains.values():
            waits = chain.status is ChainStatus.WAITING and chain.resume_at is None
            if self.template is not None and waits and self.ledger.follow_on(chain.name, chain.ordinal + 1) is None:
                self._wake(chain.name)

    def _grow(self, chains: dict[str, Chain]) -> None:
        """Begins with as many more as are missing. One that a person holds, or whose budget is gone, keeps its place:
        another one would go around that."""
        missing = self._decision.agents - sum(is_going(chain) for chain in _general(chains))
        for number in range(1, self.bounds.most + 1):
            if missing <= 0:
                return
            chain = chains.get(name := agent_name(self.queue, number))
            if chain is None:
                self._add(name)
                missing -= 1
            elif not is_going(chain) and self._wake(name):
                missing -= 1

    def _add(self, name: str, selector: Selector = EVERYTHING) -> None:
        self.ledger.add_chain(name, queue=self.queue, selector=selector, template=self.template)
        self._create_run(name)

    def _wake(self, name: str) -> bool:
        woken = self.ledger.wake(name)
        if woken:
            self._create_run(name)
        return woken

    def _create_run(self, name: str) -> None:
        if self.runs is not None:
            with suppress(Exception):  # it stays in the outbox, for when chains are looked after
                create_follow_ons(self.ledger, self.runs, name)

    def _shrink(self, chains: dict[str, Chain]) -> None:
        """Asks those to rest that are too many, the latest first; what they do is finished, and saved."""
        going = [chain for chain in _general(chains) if is_going(chain)]
        for chain in reversed(going[max(1, self._decision.agents) :]):
            if not chain.owns_queue:
                scheduled = self.ledger.want(chain.name, Wanted.REST, REST)
                if scheduled is not None:
                    self._cancel(scheduled.flow_run_id)

    def _finish(self, chains: dict[str, Chain], items: dict[ItemStatus, int]) -> None:
        """Ends those that wait or rest when nothing is left: no process needs to begin for that."""
        if items[ItemStatus.AVAILABLE] or items[ItemStatus.CLAIMED] or not sum(items.values()):
            return
        for chain in chains.values():
            if chain.status is ChainStatus.WAITING or is_resting(chain):
                created = self.ledger.follow_on(chain.name, chain.ordinal + 1)
                if self.ledger.finish(chain.name) and created is not None:
                    self._cancel(created[0].flow_run_id)

    def _cancel(self, flow_run_id: str | None) -> None:
        if self.runs is not None and flow_run_id is not None:
            with suppress(Exception):  # it would end by itself at once
                self.runs.cancel(flow_run_id, REST)

    # Telling --------------------------------------------------------------------------------------------------------

    def _report(
        self, sessions: dict[str, list[SessionRecord]], items: dict[ItemStatus, int], deeds: Sequence[Deed]
    ) -> Report:
        chains, now = self._chains(), self.clock.now()
        lines = [self._agents.line(chain, sessions.get(name, []), now) for name, chain in chains.items()]
        return Report(
            queue=self.queue,
            planned=chains[self.queue].planned,
            items=items,
            agents=lines,
            decision=self._decision,
            deeds=deeds,
            due=[name for name, chain in chains.items() if chain.status is ChainStatus.WAITING],
            near_end={name: chain.ordinal for name, chain in chains.items() if _is_near_end(chain, sessions.get(name))},
            at_work=sum(chain.status is ChainStatus.RUNNING for chain in chains.values()),
            over=not any(is_going(chain) or is_ending(chain) for chain in chains.values()),
        )


def _general(chains: dict[str, Chain]) -> list[Chain]:
    """Those that take everything."""
    return [chain for chain in chains.values() if chain.selector.takes_all]


def _is_near_end(chain: Chain, sessions: Sequence[SessionRecord] | None) -> bool:
    if not sessions or sessions[-1].ordinal != chain.ordinal or sessions[-1].ends_at is None:
        return False
    return chain.status is ChainStatus.RUNNING and is_going(chain)


def _stopped_by(sessions: Sequence[SessionRecord]) -> str | None:
    return sessions[-1].stop_reason if sessions else None
