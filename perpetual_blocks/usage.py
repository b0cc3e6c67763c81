"""Amounts of resources: the arithmetic that budgets, items and sessions share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from perpetual_blocks.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that runs out.

    A *counter* adds up over a session (tokens, dollars); a *gauge* has a level at any moment (memory). What a unit
    *reports* is spent by `unit.spend()`; what it does not report is metered by the session.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    reported: bool


RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource("tokens", "counter", "tokens", reported=True),
        Resource("cost", "counter", "US dollars", reported=True),
        Resource("calls", "counter", "calls", reported=True),
        Resource("seconds", "counter", "seconds", reported=False),
        Resource("memory", "gauge", "bytes", reported=False),
    )
}

REPORTED = tuple(name for name, resource in RESOURCES.items() if resource.reported)

Usage = Mapping[str, float]
"""Amounts by resource, in each resource's own unit."""


def validated_usage(usage: Mapping[str, object], field: str, known: tuple[str, ...] = REPORTED) -> dict[str, float]:
    """The amounts as floats.

    Raises:
        InvalidInput: a resource that is not in `known`, or an amount that is not a finite number of at least 0.
    """
    checked: dict[str, float] = {}
    for name, amount in usage.items():
        if name not in known:
            raise InvalidInput.of(f"{field}.{name}", name, f"a resource: {', '.join(known)}")
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or not math.isfinite(amount) or amount < 0:  # type: ignore[operator, arg-type]
            raise InvalidInput.of(f"{field}.{name}", amount, "a finite number of at least 0")
        checked[name] = float(amount)  # type: ignore[arg-type]
    return checked


def add(left: Usage, right: Usage) -> dict[str, float]:
    """The sum, resource by resource."""
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in (*left, *(n for n in right if n not in left))}


def show(name: str, amount: float) -> str:
    """An amount as a person reads it: `1,203,003 tokens`, `$4.20`, `1.5 GiB`, `12 min 5 s`."""
    if name == "cost":
        return f"${amount:,.2f}" if amount >= 1 else f"${amount:,.4f}"
    if name == "memory":
        return show_bytes(amount)
    if name == "seconds":
        return show_duration(amount)
    return f"{amount:,.0f} {name}"


def show_bytes(amount: float) -> str:
    """Bytes with a binary prefix."""
    for prefix, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:,.1f} {prefix}"
    return f"{amount:,.0f} B"


def show_duration(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"
