"""The room that one unit has: what it may use before the session must end."""

from collections.abc import Callable, Mapping

from perpetual_blocks.clock import Clock, SystemClock


class Room:
    """What one unit may use of each limited resource, without what is kept for the shutdown.

    Args:
        amounts: By resource, as the unit begins.
        stopping: Whether the session has been asked to stop.
        rung: Where the session stands on the agent's ladder.
        quotas: The budget's windows, by the limit's name, whose provider may say when they reset.
    """

    def __init__(
        self,
        amounts: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        stopping: Callable[[], bool] = lambda: False,
        rung: str | None = None,
        quotas: tuple[str, ...] = (),
    ) -> None:
        self._amounts = dict(amounts or {})
        self._clock = clock or SystemClock()
        self._started = self._clock.monotonic()
        self.stopping = stopping
        self.rung = rung
        self.quotas = quotas
        self.now = self._clock.now

    def left(self, spent: Mapping[str, float]) -> dict[str, float]:
        """What is left of it after this was spent, at least 0; seconds run by themselves."""
        used = {**spent, "seconds": self._clock.monotonic() - self._started}
        return {name: max(0.0, amount - used.get(name, 0.0)) for name, amount in self._amounts.items()}
