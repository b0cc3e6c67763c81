"""Limits, and the budget that is a set of them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES, show

DEFAULT_THRESHOLD = 0.85

_bytes = TypeAdapter(ByteSize)


class Limit:
    """How much of one resource a session may use.

    Args:
        resource: tokens, cost, calls, seconds or memory.
        amount: In the resource's own unit: tokens, US dollars, calls, seconds, bytes. Memory takes `"2GiB"` too.
        threshold: The share of the amount, above 0 and at most 1, from which on the session wraps.

    Raises:
        InvalidInput: an unknown resource, an amount that is not a finite number above 0, a threshold outside (0, 1].
    """

    __slots__ = ("amount", "resource", "threshold")

    def __init__(self, resource: str, amount: float | str, *, threshold: float = DEFAULT_THRESHOLD) -> None:
        if resource not in RESOURCES:
            raise InvalidInput.of("Limit.resource", resource, f"one of {', '.join(RESOURCES)}")
        if not _is_number(threshold) or not 0 < threshold <= 1:
            raise InvalidInput.of(f"Limit({resource}).threshold", threshold, "a number above 0 and at most 1")
        self.resource = resource
        self.amount = _amount(resource, amount)
        self.threshold = float(threshold)

    def to_json(self) -> dict[str, Any]:
        """The limit as a JSON object; `Limit(**…)` reads it."""
        return {"resource": self.resource, "amount": self.amount, "threshold": self.threshold}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limit) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.resource, self.amount, self.threshold))

    def __repr__(self) -> str:
        return f"Limit({self.resource!r}, {self.amount:g}, threshold={self.threshold:g})"

    def __str__(self) -> str:
        return f"{show(self.resource, self.amount)}, wrapping from {self.threshold:.0%} on"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _amount(resource: str, amount: object) -> float:
    unit = RESOURCES[resource].unit
    if resource == "memory" and isinstance(amount, str):
        try:
            amount = int(_bytes.validate_python(amount))
        except ValidationError:
            raise InvalidInput.of("Limit(memory).amount", amount, 'bytes, or a size such as "2GiB"') from None
    if not _is_number(amount) or amount <= 0:  # type: ignore[operator]
        raise InvalidInput.of(f"Limit({resource}).amount", amount, f"a finite number of {unit} above 0")
    return float(amount)  # type: ignore[arg-type]


class Budget:
    """What one session may use of each resource.

    `Budget(tokens=200_000, seconds=900)` names amounts; `Budget(tokens=Limit("tokens", 200_000, threshold=0.9))` says
    more; `Budget(Limit("calls", 500))` does the same without naming the resource twice. A budget without limits lets a
    session work until the queue is empty.

    Args:
        limits: Limits, at most one for each resource.
        tokens: Tokens.
        cost: US dollars.
        calls: Calls.
        seconds: Seconds from the start of the session.
        memory: Resident memory of the process and its children: bytes, or a size such as `"2GiB"`.

    Raises:
        InvalidInput: a wrong limit, or two for one resource.
    """

    def __init__(
        self,
        *limits: Limit,
        tokens: float | Limit | None = None,
        cost: float | Limit | None = None,
        calls: float | Limit | None = None,
        seconds: float | Limit | None = None,
        memory: float | str | Limit | None = None,
    ) -> None:
        named = {"tokens": tokens, "cost": cost, "calls": calls, "seconds": seconds, "memory": memory}
        by_resource: dict[str, Limit] = {}
        for limit in (*limits, *(_named(name, value) for name, value in named.items() if value is not None)):
            if not isinstance(limit, Limit):
                raise InvalidInput.of("Budget", limit, "limits: Budget(Limit(…)) or Budget(tokens=…)")
            if limit.resource in by_resource:
                raise InvalidInput.of(f"Budget.{limit.resource}", limit, "one limit for each resource; there are two")
            by_resource[limit.resource] = limit
        self._limits = by_resource

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._limits.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._limits == other._limits

    def __hash__(self) -> int:
        return hash(tuple(self._limits.items()))

    def __repr__(self) -> str:
        return f"Budget({', '.join(map(repr, self))})"

    def check_estimate(self, estimate: Mapping[str, float], where: str) -> None:
        """Refuses work that no session could ever do.

        Raises:
            InvalidInput: an estimate is larger than a whole fresh budget.
        """
        for limit in self:
            needed = estimate.get(limit.resource, 0.0)
            if needed > limit.amount:
                raise InvalidInput.of(
                    f"{where}.estimate.{limit.resource}",
                    needed,
                    f"at most a whole session's budget, {limit.amount:g}",
                )

    def to_json(self) -> list[dict[str, Any]]:
        """The limits as JSON objects; `Budget.from_json` reads them."""
        return [limit.to_json() for limit in self]

    @classmethod
    def from_json(cls, limits: list[dict[str, Any]]) -> "Budget":
        """Reads what `to_json` wrote."""
        return cls(*(Limit(**limit) for limit in limits))


def _named(name: str, value: float | str | Limit) -> Limit:
    if not isinstance(value, Limit):
        return Limit(name, value)
    if value.resource != name:
        raise InvalidInput.of(f"Budget.{name}", value, f"a limit on {name}")
    return value
