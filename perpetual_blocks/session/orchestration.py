"""How many agents work on one queue: pure decisions, from what the ledger says and what more of them have brought.

The words. A **queue** is the work items of one name. It belongs to one **chain**, its owner, whose agent's `plan()`
makes the items; by default that chain is the only one that works on it. More chains may: each is made for the queue
(`Ledger.add_chain`), and has sessions, context, budget, checkpoints, handoffs and usage of its own, and a **selector**
where it is to take a part only. An **agent** is the user's program; where several of them work at the same time, each
is one chain of the queue, and the first is its owner. The **orchestrator** makes these chains, sees to it that as many
work as is useful, and reports for all. It keeps nothing to itself: killed and started again, it finds its agents by
their queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import Chain, ChainStatus, Wanted
from perpetual_blocks.usage import show_duration

MOST_AGENTS = 999

SETTLE_SECONDS = 10.0
"""Not measured after the number of agents has changed: a session needs so long to begin, or to end."""

MEASURE_SECONDS = 30.0
MEASURE_UNITS = 20
"""A number of agents is measured for at least so long, and until they have finished so many units, if that is soon."""

LONGEST_MEASURE_SECONDS = 600.0
KEPT_SECONDS = 1800.0
"""For how long a measurement counts: what limits the agents may have changed."""

WORTH = 0.2
"""What another agent must bring, as a share of what each of those before brought."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many agents there may be.

    Raises:
        InvalidInput: the least is not from 1 to the most, or the most is above 999.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        for value in (self.least, self.most):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_AGENTS:
                raise InvalidInput.of("agents", value, f"a whole number from 1 to {MOST_AGENTS}")
        if self.least > self.most:
            raise InvalidInput.of("agents", f"{self.least}-{self.most}", "the least first, as 2-8")

    @classmethod
    def parse(cls, text: str) -> "Bounds":
        """From `4` or `2-8`.

        Raises:
            InvalidInput: it is neither.
        """
        least, _, most = text.partition("-")
        try:
            return cls(int(least), int(most or least))
        except ValueError:
            raise InvalidInput.of("agents", text, "a number, or the least and the most of them, as 2-8") from None

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


# What more agents have brought ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """What a number of agents has done together.

    Attributes:
        per_second: Units.
        at: When it was measured last, in seconds since the Unix epoch.
    """

    per_second: float
    at: float


@dataclass(slots=True)
class Throughput:
    """Measures how many units a second are finished by so many agents.

    Attributes:
        rates: By the number of agents.
    """

    rates: dict[int, Rate] = field(default_factory=dict)
    _agents: int = -1
    _since: float = 0.0
    _began: tuple[float, int] | None = None

    def observe(self, now: float, agents: int, units: int) -> None:
        """Takes note of how many agents are at work, and how many units have been finished in all.

        Args:
            now: In seconds since the Unix epoch.
            agents: 0 while nothing is to be measured.
        """
        if agents < 1:
            self._agents = -1
            return
        if agents != self._agents:
            self._agents, self._since, self._began = agents, now, None
        if self._began is None:
            if now - self._since >= SETTLE_SECONDS:
                self._began = (now, units)
            return
        began, before = self._began
        seconds, done = now - began, units - before
        enough = seconds >= MEASURE_SECONDS and done >= MEASURE_UNITS
        if enough or seconds >= LONGEST_MEASURE_SECONDS:
            self.rates[agents] = Rate(done / seconds, now)
            self._began = (now, units)

    def known(self, now: float) -> dict[int, float]:
        """Units a second by number of agents, as far as that still counts."""
        return {count: rate.per_second for count, rate in self.rates.items() if now - rate.at < KEPT_SECONDS}


# How many -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the orchestrator sees.

    Attributes:
        going: Chains whose sessions are at work, or are to come.
        held_back: Those of them that wait for a quota or a pool.
        planned: Whether the queue has its items.
        to_do: Items that are available or claimed.
        rates: Units a second by number of agents, as measured.
    """

    going: int
    held_back: int = 0
    planned: bool = True
    to_do: int
    rates: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many agents are to work now.

    Attributes:
        why: For people, in a few words.
    """

    agents: int
    why: str


def agents_wanted(seen: Situation, bounds: Bounds) -> Decision:
    """How many agents are to work now; of those that go on beyond that, some are to rest.

    Of those that there may be, as many as bring something: one or half as many more at a time, and back where they have
    not brought what they should. None more than there are items, and none more while some wait for a quota. An agent
    that finds nothing to do ends by itself, so that nobody is asked to rest for that.
    """
    if not seen.planned:
        return Decision(1, "the queue is being planned")
    wanted = _climbed(seen, bounds)
    if wanted.agents > (most := max(seen.going, seen.to_do)):
        wanted = Decision(most, f"{seen.to_do:,} items are left")
    if wanted.agents > (most := max(seen.going, bounds.least)) and seen.held_back:
        wanted = Decision(most, f"{seen.held_back} wait for a quota: more would wait too")
    return wanted


def _climbed(seen: Situation, bounds: Bounds) -> Decision:
    """As many as bring something, within the bounds."""
    now, rates = min(max(seen.going, bounds.least), bounds.most), seen.rates
    if now not in rates:
        return Decision(
            now, f"{bounds} wanted" if bounds.least == bounds.most else "how much they do is being measured"
        )
    fewer = max((count for count in rates if bounds.least <= count < now), default=None)
    if fewer is not None and (share := _brought(rates, fewer, now)) < WORTH:
        return Decision(fewer, f"{now} bring {share:.0%} of what {fewer} do, for each one more")
    more = min(now + max(1, now // 2), bounds.most)
    if more == now:
        return Decision(now, f"{bounds} wanted")
    tried = min((count for count in rates if now < count <= more), default=None)
    if tried is not None and (share := _brought(rates, now, tried)) < WORTH:
        return Decision(now, f"{tried} brought {share:.0%} of what {now} do, for each one more")
    return Decision(more, f"{now} do {rates[now]:.3g} units a second; more may do more")


def _brought(rates: Mapping[int, float], few: int, many: int) -> float:
    """What each agent more has brought, as a share of what each of the few does."""
    if rates[few] <= 0:
        return 1.0 if rates[many] > 0 else 0.0
    return max(0.0, (rates[many] - rates[few]) / (many - few) / (rates[few] / few))


def affordable(left: float, per_unit: float, wanted: int, going: int) -> int:
    """How many agents a pool has room for: each is to have a unit's worth of it. Those that go on are left alone.

    Args:
        left: What is neither spent nor reserved of the pool, in its resource's unit.
        per_unit: What a unit has used of it so far, on average; 0 where that is not known.
    """
    room = wanted if per_unit <= 0 else int(left / per_unit)
    return max(going, min(wanted, room))


# Which ----------------------------------------------------------------------------------------------------------------


def agent_name(queue: str, number: int) -> str:
    """The name of the chain that is the queue's n-th agent; the first is the owner.

    Raises:
        InvalidInput: the queue's name is too long for that.
    """
    name = queue if number == 1 else f"{queue}-{number}"
    if len(name) > 64:
        raise InvalidInput.of(
            "chain", queue, f"at most {64 - len(str(MOST_AGENTS)) - 1} characters, for several agents"
        )
    return name


def is_going(chain: Chain) -> bool:
    """Whether a chain's session is at work, or is to come by itself."""
    return chain.status in (ChainStatus.RUNNING, ChainStatus.WAITING) and chain.wanted is None


def is_resting(chain: Chain) -> bool:
    """Whether a chain has stopped because fewer agents were enough."""
    return chain.status is ChainStatus.PAUSED and chain.wanted is Wanted.REST


def is_ending(chain: Chain) -> bool:
    """Whether somebody has asked a session at work to stop."""
    return chain.status is ChainStatus.RUNNING and chain.wanted is not None


def state_of(chain: Chain, now: float) -> str:
    """What an agent does, in a word or two, for a table."""
    if is_resting(chain):
        return "resting"
    if is_ending(chain):
        return "ending"
    if chain.status is ChainStatus.RUNNING:
        return "at work"
    if chain.status is ChainStatus.WAITING and chain.resume_at is not None and chain.resume_at > now:
        return f"waits {show_duration(chain.resume_at - now)}"
    return str(chain.status)
