"""The room that one unit has: what it may use before the session must end."""

from collections.abc import Callable, Mapping
from typing import Any

from perpetual_blocks.clock import Clock, SystemClock


class Room:
    """What one unit may use of each limited resource, without what is kept for the shutdown.

    Args:
        amounts: By resource, as the unit begins.
        stopping: Whether the session has been asked to stop.
        rung: Where the session stands on the agent's ladder.
        quotas: The budget's windows, by the limit's name, whose provider may say when they reset.
        reserved: What is reserved for the unit of resources that are shared in a pool; it has no more than that.
        extend: Reserves more of a resource, up to an amount; answers why not, or None.
    """

    def __init__(
        self,
        amounts: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        stopping: Callable[[], bool] = lambda: False,
        rung: str | None = None,
        quotas: tuple[str, ...] = (),
        reserved: Mapping[str, float] | None = None,
        extend: Callable[[str, float], str | None] = lambda resource, amount: "it is not shared",
    ) -> None:
        self._most = dict(amounts or {})
        self._reserved = dict(reserved or {})
        self._amounts = self._most | {
            name: min(amount, self._most.get(name, amount)) for name, amount in self._reserved.items()
        }
        self._extend = extend
        self._clock = clock or SystemClock()
        self._started = self._clock.monotonic()
        self.stopping = stopping
        self.rung = rung
        self.quotas = quotas
        self.now = self._clock.now

    def limits(self, resource: str) -> bool:
        """Whether this resource is limited."""
        return resource in self._amounts

    def left(self, spent: Mapping[str, float]) -> dict[str, float]:
        """What is left of it after this was spent, at least 0; seconds run by themselves."""
        used = {**spent, "seconds": self._clock.monotonic() - self._started}
        return {name: max(0.0, amount - used.get(name, 0.0)) for name, amount in self._amounts.items()}

    def to_json(self) -> dict[str, Any]:
        """The room that is left now, for another process; what is reserved there cannot be extended."""
        return {"amounts": self.left({}), "rung": self.rung, "quotas": self.quotas}

    def extend(self, resource: str, amount: float) -> str | None:
        """Brings what is reserved of a shared resource to this amount; why not, or None."""
        if resource not in self._reserved:
            return "it is not shared"
        if amount > self._most.get(resource, amount):
            return "another limit has no more"
        refused = self._extend(resource, amount)
        if refused is None:
            self._amounts[resource] = amount
        return refused
