"""Limits, and the budget that is a set of them."""

import math
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, Literal, get_args

from pydantic import ByteSize, TypeAdapter, ValidationError

from perpetual_blocks.budget.forecast import RISK
from perpetual_blocks.budget.windows import Window, parse_length
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import OURS, RESOURCES, define_resource, show

Scope = Literal["session", "window", "total"]
Rule = Literal["predictive", "adaptive", "fixed"]

DEFAULT_THRESHOLD = 0.85
POOL_NAME = 64

_bytes = TypeAdapter(ByteSize)


class Limit:
    """How much of one resource may be used.

    Args:
        resource: tokens, cost, calls, seconds, memory or cpu_seconds; or what `define_resource` has made known.
        amount: In the resource's own unit: tokens, US dollars, calls, seconds, bytes. Bytes take `"2GiB"` too,
            seconds `"15m"` (s, m, h, d).
        scope: What the amount is for: each `session`; each `window`, by all sessions of the chain; or the whole chain
            together, `total`. A window or a total of seconds counts the time that units take.
        window: With scope `window`: `"day"`, `"month America/Los_Angeles"` (minute, hour, day, week, month; UTC if no
            time zone is named), or the last so much time: `"5h"`, `"7d"` (s, m, h, d).
        threshold: The used share, above 0 and at most 1, from which on nothing is started; it makes the rule `fixed`.
        rule: `predictive` stops when the next unit and the shutdown would probably not fit any more; `adaptive` at 90,
            85 or 80 % by the complexity of the next item; `fixed` at the threshold, 85 % if none is given.
        pool: A name. All chains of the ledger whose limits name the same pool use one amount together; for windows and
            totals.
        share: With a pool: the share of the amount, 0 to 1, that is kept for this chain.
        priority: With a pool: what is kept for chains of a lower priority may be borrowed.

    Raises:
        InvalidInput: one of these is not what it should be, or does not go with another.
    """

    __slots__ = ("amount", "pool", "priority", "resource", "rule", "scope", "share", "threshold", "window")

    def __init__(
        self,
        resource: str,
        amount: float | str,
        *,
        scope: Scope = "session",
        window: str | Window | None = None,
        threshold: float | None = None,
        rule: Rule | None = None,
        pool: str | None = None,
        share: float = 0.0,
        priority: int = 0,
    ) -> None:
        if not isinstance(resource, str) or resource not in RESOURCES:
            raise InvalidInput.of("Limit.resource", resource, f"one of {', '.join(RESOURCES)}")
        self.resource = resource
        self.amount = _amount(resource, amount)
        self.scope = scope
        self.window = self._window(window)
        self.rule: Rule = self._rule(rule, threshold)
        self.threshold = float(DEFAULT_THRESHOLD if threshold is None else threshold)
        self.pool = pool
        self.share = share
        self.priority = priority
        self._check_pool()

    def _window(self, window: str | Window | None) -> Window | None:
        where = f"Limit({self.resource})"
        if self.scope not in get_args(Scope):
            raise InvalidInput.of(f"{where}.scope", self.scope, f"one of {', '.join(get_args(Scope))}")
        if self.scope != "session" and RESOURCES[self.resource].kind == "gauge":
            raise InvalidInput.of(f"{where}.scope", self.scope, f'"session": {self.resource} is metered in each')
        if (window is None) == (self.scope == "window"):
            expected = 'a window such as "day" or "5h"' if window is None else 'none, or scope="window" with it'
            raise InvalidInput.of(f"{where}.window", window, expected)
        if window is None or isinstance(window, Window):
            return window
        try:
            return Window.parse(window)
        except InvalidInput as error:
            raise InvalidInput(f"{where}.{error}") from None

    def _rule(self, rule: Rule | None, threshold: float | None) -> Rule:
        where = f"Limit({self.resource})"
        if rule is not None and rule not in get_args(Rule):
            raise InvalidInput.of(f"{where}.rule", rule, f"one of {', '.join(get_args(Rule))}")
        if threshold is None:
            return rule or "predictive"
        if not _is_number(threshold) or not 0 < threshold <= 1:
            raise InvalidInput.of(f"{where}.threshold", threshold, "a number above 0 and at most 1")
        if rule not in (None, "fixed"):
            raise InvalidInput.of(f"{where}.threshold", threshold, f'none with the rule {rule}, or the rule "fixed"')
        return "fixed"

    def _check_pool(self) -> None:
        where = f"Limit({self.resource})"
        if self.pool is not None:
            if not isinstance(self.pool, str) or not 1 <= len(self.pool) <= POOL_NAME:
                raise InvalidInput.of(f"{where}.pool", self.pool, f"a name of 1 to {POOL_NAME} characters")
            if self.scope == "session":
                raise InvalidInput.of(
                    f"{where}.pool", self.pool, "none for a session; a window or a total can be shared"
                )
        if not _is_number(self.share) or not 0 <= self.share <= 1 or (self.share and self.pool is None):
            raise InvalidInput.of(f"{where}.share", self.share, "a number from 0 to 1, with a pool")
        if type(self.priority) is not int or (self.priority and self.pool is None):
            raise InvalidInput.of(f"{where}.priority", self.priority, "a whole number, with a pool")

    @property
    def name(self) -> str:
        """What tells it from the budget's other limits: `tokens`, `calls/day`, `cost/total`."""
        return self.resource if self.scope == "session" else f"{self.resource}/{self.window or self.scope}"

    def to_json(self) -> dict[str, Any]:
        """The limit as a JSON object; `from_json` reads it."""
        fields: dict[str, Any] = {
            "resource": self.resource,
            "amount": self.amount,
            "scope": self.scope,
            "rule": self.rule,
        }
        if self.window is not None:
            fields["window"] = str(self.window)
        if self.rule == "fixed":
            fields["threshold"] = self.threshold
        if self.pool is not None:
            fields |= {"pool": self.pool, "share": self.share, "priority": self.priority}
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Limit":
        """Reads what `to_json` wrote."""
        return cls(**fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limit) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(tuple(self.to_json().items()))

    def __repr__(self) -> str:
        _, amount, *others = self.to_json().items()
        extra = "".join(f", {name}={value!r}" for name, value in others if value != _DEFAULTS.get(name))
        return f"Limit({self.resource!r}, {amount[1]:.15g}{extra})"

    def __str__(self) -> str:
        return f"{show(self.resource, self.amount)}{self.per}"

    @property
    def per(self) -> str:
        """What the amount is for, as a person reads it: ` a session`, ` a day`, ` in 5h`, ` in all`."""
        if self.scope == "session":
            return " a session"
        if self.scope == "total":
            return " in all"
        text = str(self.window)
        return f" in {text}" if text[0].isdigit() else f" a {text}"


_DEFAULTS = {"scope": "session", "rule": "predictive", "share": 0.0, "priority": 0}


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _amount(resource: str, amount: object) -> float:
    unit = RESOURCES[resource].unit
    if unit == "bytes" and isinstance(amount, str):
        try:
            amount = int(_bytes.validate_python(amount))
        except ValidationError:
            raise InvalidInput.of(f"Limit({resource}).amount", amount, 'bytes, or a size such as "2GiB"') from None
    if unit in ("seconds", "CPU seconds") and isinstance(amount, str):
        amount = parse_length(amount, f"Limit({resource}).amount")
    if not _is_number(amount) or amount <= 0:  # type: ignore[operator]
        raise InvalidInput.of(f"Limit({resource}).amount", amount, f"a finite number of {unit} above 0")
    return float(amount)  # type: ignore[arg-type]


class Budget:
    """How much may be used of each resource.

    `Budget(tokens=200_000, seconds=900)` names what each session may use; `Budget(Limit("calls", 500, scope="window",
    window="day America/Los_Angeles"), cost=Limit("cost", 80, scope="total"))` says more. A budget without limits lets a
    session work until the queue is empty.

    Args:
        limits: Limits; of one resource at most one for the session, one for each window and one in total.
        tokens: Tokens a session.
        cost: US dollars a session.
        calls: Calls a session.
        seconds: Seconds from the start of the session, or a length of time such as `"15m"`.
        memory: Resident memory of the process and its children: bytes, or a size such as `"2GiB"`.
        cpu_seconds: CPU time of the process and its children since the start of the session.
        own: Resources of your own, a session.
        risk: How probable it may be that a unit overruns a limit whose rule is predictive: above 0, at most 0.5.

    Raises:
        InvalidInput: a wrong limit, two of the same scope for one resource, or two of which one could never be reached.
    """

    def __init__(
        self,
        *limits: Limit,
        tokens: float | Limit | None = None,
        cost: float | Limit | None = None,
        calls: float | Limit | None = None,
        seconds: float | str | Limit | None = None,
        memory: float | str | Limit | None = None,
        cpu_seconds: float | str | Limit | None = None,
        risk: float = RISK,
        **own: float | str | Limit | None,
    ) -> None:
        named = {
            "tokens": tokens,
            "cost": cost,
            "calls": calls,
            "seconds": seconds,
            "memory": memory,
            "cpu_seconds": cpu_seconds,
            **own,
        }
        by_name: dict[str, Limit] = {}
        for limit in (*limits, *(_named(name, value) for name, value in named.items() if value is not None)):
            if not isinstance(limit, Limit):
                raise InvalidInput.of("Budget", limit, "limits: Budget(Limit(…)) or Budget(tokens=…)")
            if limit.name in by_name:
                raise InvalidInput.of(f"Budget.{limit.name}", limit, "one limit of each scope; there are two")
            by_name[limit.name] = limit
        if not _is_number(risk) or not 0 < risk <= 0.5:
            raise InvalidInput.of("Budget.risk", risk, "a number above 0 and at most 0.5")
        self._limits = by_name
        self.risk = float(risk)
        self._check_reachable()

    def _check_reachable(self) -> None:
        """Refuses a limit that another one of the same resource makes useless: 1,000 an hour, but 500 a day."""
        for narrow, wide in permutations(self, 2):
            if narrow.resource == wide.resource and narrow.amount > wide.amount and _within(narrow, wide):
                expected = f"at most the {show(wide.resource, wide.amount)} of {wide.name}"
                raise InvalidInput.of(f"Budget.{narrow.name}", narrow.amount, expected)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._limits.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((*self._limits.values(), self.risk))

    def __repr__(self) -> str:
        risk = [] if self.risk == RISK else [f"risk={self.risk:g}"]
        return f"Budget({', '.join([*map(repr, self), *risk])})"

    def total(self, resource: str) -> Limit | None:
        """The limit on a resource in total."""
        return self._limits.get(f"{resource}/total")

    def with_more(self, amounts: Mapping[str, float]) -> "Budget":
        """The budget with so much more, by resource, in total; a pool's total is not one chain's to raise."""
        if not any(amounts.values()):
            return self
        return Budget(*(_raised(limit, amounts.get(limit.resource, 0.0)) for limit in self), risk=self.risk)

    def check_amounts(self, amounts: Mapping[str, float], where: str) -> None:
        """Refuses work that could never be done.

        Raises:
            InvalidInput: what it needs is more than a whole limit.
        """
        for limit in self:
            needed = amounts.get(limit.resource, 0.0)
            if needed > limit.amount:
                raise InvalidInput.of(f"{where}.{limit.resource}", needed, f"at most the limit of {limit}")

    def to_json(self) -> dict[str, Any]:
        """The budget as a JSON object; `Budget.from_json` reads it, also where the user's resources are not known."""
        budget: dict[str, Any] = {"risk": self.risk, "limits": [limit.to_json() for limit in self]}
        own = [RESOURCES[name] for name in sorted({limit.resource for limit in self} - set(OURS))]
        if own:
            budget["resources"] = [[resource.name, resource.kind, resource.unit] for resource in own]
        return budget

    @classmethod
    def from_json(cls, budget: dict[str, Any] | list[dict[str, Any]]) -> "Budget":
        """Reads what `to_json` wrote; version 0.1 wrote the limits alone, all of them fixed."""
        if isinstance(budget, list):
            return cls(*map(Limit.from_json, budget))
        for resource in budget.get("resources", []):
            define_resource(*resource)
        return cls(*map(Limit.from_json, budget["limits"]), risk=budget["risk"])


def _raised(limit: Limit, more: float) -> Limit:
    if limit.scope != "total" or limit.pool is not None or not more:
        return limit
    return Limit.from_json({**limit.to_json(), "amount": limit.amount + more})


def _within(narrow: Limit, wide: Limit) -> bool:
    """Whether all that counts against the narrow limit always counts against the wide one too.

    A session may go on from one day into the next, and five hours may too: they are not within a day of the calendar.
    """
    if narrow.scope == "total" or wide.scope == "session":
        return False
    if narrow.window is None or wide.window is None:
        return wide.scope == "total"
    narrow_rolls, wide_rolls = (window.resets_at(0.0) is None for window in (narrow.window, wide.window))
    return narrow.window.seconds < wide.window.seconds and (wide_rolls or not narrow_rolls)


def _named(name: str, value: float | str | Limit) -> Limit:
    if not isinstance(value, Limit):
        return Limit(name, value)
    if value.resource != name:
        raise InvalidInput.of(f"Budget.{name}", value, f"a limit on {name}")
    return value
