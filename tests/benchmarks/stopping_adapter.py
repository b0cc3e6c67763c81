"""Plugs the stopping policy into a simulator of sessions, through the functions that sessions run.

`factory(budget, shutdown_guess, cancellable, emergency)` returns an object with five methods: `start(budget)`,
`go(remaining, hint)`, `reserve()`, `seen(cost, hint, done)` and `closed(cost, graceful)`, where a hint is
`(kind, estimate, upper bound, complexity)`, each of the first three possibly None.
"""

import json
from typing import Any

from perpetual_blocks.budget.fit import overrun_risk, reserve, worth_trying
from perpetual_blocks.budget.forecast import RISK, Forecast, Hint


class Policy:
    """The forecast of one resource, asked as a session asks it, and saved and restored between any two sessions."""

    def __init__(self, emergency: float | None) -> None:
        self._forecast = Forecast()
        self._emergency = emergency

    def start(self, budget: float) -> None:
        self._budget = budget
        self._forecast = Forecast.from_json(json.loads(json.dumps(self._forecast.to_json())))
        self._shutdown = self._forecast.shutdown_law(budget)
        self._reserve = 0.0 if self._emergency is None else reserve(self._forecast, self._emergency)

    def go(self, remaining: float, hint: tuple[Any, ...]) -> bool:
        if self._emergency is not None:
            return worth_trying(self._forecast, _hint(hint), remaining - self._reserve, self._budget)
        return overrun_risk(self._forecast, _hint(hint), remaining, self._budget, self._shutdown) <= RISK

    def reserve(self) -> float:
        return self._reserve

    def seen(self, cost: float, hint: tuple[Any, ...], done: bool = True) -> None:
        self._forecast.learn(cost, _hint(hint), finished=done)

    def closed(self, cost: float | None, graceful: bool) -> None:
        self._forecast.close(cost, graceful=graceful)


def factory(budget: float, shutdown_guess: float, cancellable: bool, emergency: float | None) -> Policy:
    return Policy(emergency if cancellable else None)


def _hint(hint: tuple[Any, ...]) -> Hint:
    return Hint(hint[0] or "", hint[1], hint[2])
