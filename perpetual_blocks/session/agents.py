"""Agents: the chains that work on one queue, and how each of them stands."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perpetual_blocks.session.chain import Chain, SessionRecord
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.orchestration import state_of
from perpetual_blocks.usage import add, show

RATE_SECONDS = 120.0
"""How far an agent's rate looks back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLine:
    """One agent as it stands.

    Attributes:
        per_minute: Units, of late.
    """

    chain: str
    state: str
    reason: str
    takes: str
    sessions: int
    units: int
    per_minute: float
    usage: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As `perpetual orchestrate --json` prints it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class RecentRate:
    """Units a minute of one chain, as far as it was looked at."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, now: float, units: int) -> float:
        """The rate of late, given how many units there are by now; 0 at the first look."""
        self._seen.append((now, units))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        seconds = now - self._seen[0][0]
        return 60 * (units - self._seen[0][1]) / seconds if seconds > 0 else 0.0


@dataclass(slots=True)
class Agents:
    """The agents of a queue, looked at again and again."""

    _rates: dict[str, RecentRate] = field(default_factory=dict)

    def line(self, chain: Chain, sessions: Sequence[SessionRecord], now: float) -> AgentLine:
        """How one of them stands."""
        units = sum(session.units for session in sessions)
        return AgentLine(
            chain=chain.name,
            state=state_of(chain, now),
            reason=chain.reason,
            takes=str(chain.selector),
            sessions=chain.ordinal,
            units=units,
            per_minute=self._rates.setdefault(chain.name, RecentRate()).look(now, units),
            usage=chain_usage(sessions),
        )

    def lines(self, ledger: Ledger, queue: str, now: float) -> list[AgentLine]:
        """How all of them stand, in order."""
        return [self.line(chain, ledger.sessions(chain.name), now) for chain in in_order(ledger.chains(queue))]


def in_order(chains: Sequence[Chain]) -> list[Chain]:
    """The owner first, then those that were made first."""
    return sorted(chains, key=lambda one: (not one.owns_queue, one.created_at, len(one.name), one.name))


def spent(usage: Mapping[str, float]) -> str:
    """What was used, without the seconds, which all agents use at the same time."""
    return ", ".join(show(name, amount) for name, amount in usage.items() if name != "seconds")


def together(agents: Sequence[AgentLine]) -> dict[str, float]:
    """What all of them have used."""
    total: dict[str, float] = {}
    for agent in agents:
        total = add(total, agent.usage)
    return total
