"""Amounts of resources: the arithmetic that budgets, items and sessions share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Literal, get_args

from perpetual_blocks.errors import InvalidInput

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that runs out.

    A *counter* adds up over a session (tokens, dollars); a *gauge* has a level at any moment (memory). What a unit
    *reports* is spent by `unit.spend()`; what it does not report is metered by the session.
    """

    name: str
    kind: Kind
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
        # What a session has used never goes down; it is a gauge all the same, as it is metered and not reported.
        Resource("cpu_seconds", "gauge", "CPU seconds", reported=False),
    )
}

OURS = tuple(RESOURCES)
"""The resources that every process knows; those that users define come after them."""

NAME_LENGTH = 64
TAKEN = ("model", "risk")
"""No names for a resource, because `unit.spend(model=…)` and `Budget(risk=…)` mean something else."""


def reported() -> tuple[str, ...]:
    """The resources that units report."""
    return tuple(name for name, resource in RESOURCES.items() if resource.reported)


def define_resource(name: str, kind: Kind, unit: str) -> Resource:
    """Makes a resource of your own known: `define_resource("gpu_memory", "gauge", "bytes")`.

    Budgets, estimates and bounds may then name it. Do it where the agent's module is imported; a second time with the
    same meaning does no harm.

    Args:
        name: An identifier, so that it can be an argument: `unit.spend(pages=3)`.
        kind: A `counter` adds up, and is reported by `unit.spend`; a `gauge` has a level at any moment, and is read by
            a meter in the agent's `meters`.
        unit: What it is counted in, for people; amounts in `bytes`, `seconds` and `US dollars` are shown as such.

    Raises:
        InvalidInput: one of these is not what it should be, or the name has another meaning already.
    """
    if not isinstance(name, str) or not name.isidentifier() or iskeyword(name) or len(name) > NAME_LENGTH:
        raise InvalidInput.of("define_resource(name)", name, f"an identifier of at most {NAME_LENGTH} characters")
    if name in TAKEN:
        raise InvalidInput.of("define_resource(name)", name, f"a name other than {' and '.join(TAKEN)}")
    if kind not in get_args(Kind):
        raise InvalidInput.of("define_resource(kind)", kind, f"one of {', '.join(get_args(Kind))}")
    if not isinstance(unit, str) or not unit.isprintable() or not unit.strip():
        raise InvalidInput.of("define_resource(unit)", unit, "a word or two, as bytes or pages")
    defined = Resource(name, kind, unit, reported=kind == "counter")
    known = RESOURCES.setdefault(name, defined)
    if known != defined:
        raise InvalidInput.of("define_resource", name, f"another name: this is a {known.kind}, in {known.unit}")
    return defined


MOST_AMOUNT, LEAST_AMOUNT = 1e30, 1e-15
"""Forecasts square amounts and divide them by each other: within these no float overflows. What is less is nothing."""

Usage = Mapping[str, float]
"""Amounts by resource, in each resource's own unit."""


def validated_usage(usage: Mapping[str, object], field: str, known: tuple[str, ...] | None = None) -> dict[str, float]:
    """The amounts as floats.

    Args:
        known: The resources that may be named; those that units report if not given.

    Raises:
        InvalidInput: a resource that is not known, or an amount that is not a finite number from 0 to 1e30.
    """
    known = reported() if known is None else known
    checked: dict[str, float] = {}
    for name, amount in usage.items():
        if name not in known:
            raise InvalidInput.of(f"{field}.{name}", name, f"a resource: {', '.join(known)}")
        is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not is_number or not math.isfinite(amount) or amount < 0:  # type: ignore[operator, arg-type]
            raise InvalidInput.of(f"{field}.{name}", amount, "a finite number of at least 0")
        if amount > MOST_AMOUNT:  # type: ignore[operator]
            raise InvalidInput.of(f"{field}.{name}", amount, f"at most {MOST_AMOUNT:g}")
        checked[name] = float(amount) if amount >= LEAST_AMOUNT else 0.0  # type: ignore[arg-type, operator]
    return checked


def add(*usages: Usage) -> dict[str, float]:
    """The sum, resource by resource."""
    sums: dict[str, float] = {}
    for usage in usages:
        for name, amount in usage.items():
            sums[name] = sums.get(name, 0.0) + amount
    return sums


def show(name: str, amount: float) -> str:
    """An amount as a person reads it: `1,203,003 tokens`, `$4.20`, `1.5 GiB`, `12 min 5 s`, `0.25 credits`."""
    # A resource of another process's own is not known here; its name says at least what it is.
    unit = RESOURCES[name].unit if name in RESOURCES else name
    if unit == "US dollars":
        return f"${amount:,.2f}" if amount >= 1 else f"${amount:,.4f}"
    if unit == "bytes":
        return show_bytes(amount)
    if unit == "seconds":
        return show_duration(amount)
    if unit == "CPU seconds":
        return f"{show_duration(amount)} of CPU"
    whole = name in OURS or amount >= 100 or amount == int(amount)
    return f"{amount:,.0f} {unit}" if whole else f"{amount:.3g} {unit}"


def show_bytes(amount: float) -> str:
    """Bytes with a binary prefix."""
    for prefix, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:,.1f} {prefix}"
    return f"{amount:,.0f} B"


def show_duration(seconds: float) -> str:
    """A duration in its two largest units, or in milliseconds."""
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.2g} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"
