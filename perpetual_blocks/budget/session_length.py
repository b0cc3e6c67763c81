"""How long a session should be when its units become dearer the longer it lasts, as an agent's do with its context.

If a restart costs R and each unit costs G more than the one before, N units cost R/N + b + G·N/2 each, which is least
at N* = √(2R/G) (the economic order quantity of Harris 1913). R is what the first unit of a session costs beyond the
line through the others; G is the slope of that line.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

DISCOUNT = 0.998
LEAST_UNITS = 30
LEAST_SESSIONS = 3
SURE = 3.0  # standard errors that a slope must be above 0
WORTHWHILE = 0.05


@dataclass(slots=True)
class Course:
    """How the cost of units goes on within a session: a line of least squares, older units counting less.

    Attributes:
        sessions: How many first units were seen, and `first` their mean cost.
    """

    weight: float = 0.0
    position: float = 0.0
    cost: float = 0.0
    position_2: float = 0.0
    position_cost: float = 0.0
    cost_2: float = 0.0
    sessions: int = 0
    first: float = 0.0

    def learn(self, position: int, cost: float) -> None:
        """A unit ended; the first of a session has the position 1."""
        if position == 1:
            self.sessions += 1
            self.first += (cost - self.first) / min(self.sessions, 20)
            return
        for name, value in (
            ("weight", 1.0),
            ("position", position),
            ("cost", cost),
            ("position_2", position * position),
            ("position_cost", position * cost),
            ("cost_2", cost * cost),
        ):
            setattr(self, name, getattr(self, name) * DISCOUNT + value)

    def line(self) -> tuple[float, float] | None:
        """The cost at position 0 and the growth from unit to unit; None unless the growth is beyond doubt."""
        spread = self.position_2 - self.position**2 / self.weight if self.weight else 0.0
        if self.weight < LEAST_UNITS or spread <= 0:
            return None
        together = self.position_cost - self.position * self.cost / self.weight
        growth = together / spread
        unexplained = max(0.0, self.cost_2 - self.cost**2 / self.weight - growth * together)
        if growth <= SURE * sqrt(unexplained / max(1.0, self.weight - 2) / spread):
            return None
        return (self.cost - growth * self.position) / self.weight, growth

    def best_length(self, otherwise: float) -> float | None:
        """N*, in units; None where it is not known, or saves less than a twentieth of what a unit costs.

        Args:
            otherwise: How many units the session would have until its budget is used.
        """
        line = self.line()
        if line is None or self.sessions < LEAST_SESSIONS:
            return None
        base, growth = line
        restart = self.first - base - growth
        if restart <= 0:
            return None
        best = max(2.0, sqrt(2 * restart / growth))

        def each(units: float) -> float:
            return restart / units + base + growth * units / 2

        return best if otherwise > best and each(otherwise) - each(best) >= WORTHWHILE * each(best) else None

    def to_json(self) -> list[Any]:
        """The state; `Course(*state)` reads it."""
        return [getattr(self, name) for name in self.__slots__]
