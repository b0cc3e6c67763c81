"""The unit in the agent's hands: what there is to do, and where to say what it cost and how far it came."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from perpetual_blocks.budget import Quota
from perpetual_blocks.budget.room import Room
from perpetual_blocks.checkpoint.codec import canonical, copy_json, is_plain_text, to_json
from perpetual_blocks.errors import InvalidInput, PerpetualError
from perpetual_blocks.usage import RESOURCES, add, show, validated_usage
from perpetual_blocks.work.context import ContextChange
from perpetual_blocks.work.item import Item, WorkItem
from perpetual_blocks.work.llm_usage import LlmUsage, is_llm_usage, read_llm_usage
from perpetual_blocks.work.outcome import Outcome

MAX_CONTEXT_BYTES = 2**20
"""A context is written with each unit that changes it; what is larger belongs into a file of the agent's own."""

Price = Callable[[LlmUsage], float | None]
"""What a usage costs in US dollars; None where that is not known."""

# None is not it: a response that came without its usage has None there, and must not pass for one that was free.
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Unit:
    """The smallest step that is finished or not.

    Attributes:
        id: The work item's id.
        kind: The work item's kind.
        payload: The work item's payload.
        cursor: Where the previous unit of this item stopped; None at first.
        progress: Done and total, as the previous unit said.
        next_action: What the previous unit said comes next.
        number: 1 for the item's first unit.
        attempt: 1 unless this very unit has failed before.
        begun_before: Whether it has begun before, and was given back.
        context: The agent's memory across units and sessions, a JSON object. What it holds when the unit ends is kept.
        rung: The rung of the agent's `ladder` that the budget has come to: a hint to use less.

    Args:
        room: What the unit may use.
        price: What a model's usage costs, where neither the agent nor the usage itself says it.
        told: Told of each spend as it is recorded.
        used: Told of what a model used, where a usage object says it.
    """

    def __init__(
        self,
        item: Item,
        context: Mapping[str, Any],
        room: Room | None = None,
        *,
        price: Price | None = None,
        told: Callable[[dict[str, float]], None] | None = None,
        used: Callable[[LlmUsage], None] | None = None,
    ) -> None:
        self._item = item
        self.id = item.id
        self.kind = item.kind
        self.payload: dict[str, Any] = copy_json(item.payload)
        self.cursor: Any = copy_json(item.cursor)
        self.progress = item.progress
        self.next_action = item.next_action
        self.number = item.units + 1
        self.attempt = item.attempts + 1
        self.begun_before = item.interruptions > 0
        self.context: dict[str, Any] = copy_json(dict(context))
        self._context_before = context
        self._room = room or Room()
        self.rung = self._room.rung
        self._quotas: dict[str, Quota] = {}
        self._usage: dict[str, float] = {}
        self._price = price
        self._told = told
        self._used = used
        self._needs_cost = self._room.limits("cost")
        self._added: list[WorkItem] = []
        self._advanced: Advanced | None = None

    @property
    def usage(self) -> dict[str, float]:
        """What has been spent so far, by resource."""
        return dict(self._usage)

    @property
    def quotas(self) -> dict[str, Quota]:
        """What the unit was told of quota windows, by the limit's name; `remaining` as it was when the unit began."""
        return dict(self._quotas)

    def spend(
        self, usage: Mapping[str, float] | object = _NOTHING, /, *, model: str | None = None, **amounts: float
    ) -> None:
        """Records what the unit has spent: `unit.spend(response)`, `unit.spend(tokens=1200, cost=0.004)`; calls add up.

        Args:
            usage: Amounts by resource; or the usage, or the whole response, of OpenAI, Anthropic, Pydantic AI,
                LangChain or litellm, of which tokens, calls and cost are counted.
            model: The model whose usage it is, where only the usage is given; its price depends on it.
            amounts: Tokens, cost (US dollars), calls and counters of your own; what is named here goes before what
                the usage says.

        Raises:
            InvalidInput: a resource that is not reported, an amount below 0, or an object that is no
                usage; or dollars are limited and those of this usage are not known: its tokens and calls are recorded
                all the same.
        """
        if usage is not _NOTHING and (not isinstance(usage, Mapping) or is_llm_usage(usage)):
            # The call was made: what is known of it is counted, whichever part of it is refused.
            try:
                self._count(amounts)
            finally:
                self._spend_on_llm(read_llm_usage(usage, model), named=set(amounts))
            return
        self._count({**usage, **amounts})
        if model is not None:
            raise InvalidInput.of("unit.spend(model)", model, "the usage of that model beside it, or cost=… instead")

    def _spend_on_llm(self, used: LlmUsage, named: set[str]) -> None:
        if self._used is not None:
            self._used(used)
        read = {"tokens": used.total_tokens, "calls": used.requests}
        self._count({name: amount for name, amount in read.items() if name not in named})
        if "cost" in named:
            return
        cost = self._price(used) if used.cost is None and self._price else used.cost
        if cost is not None:
            self._count({"cost": cost})
        elif self._needs_cost:
            raise InvalidInput.of(
                "unit.spend(model)",
                used.model,
                "a model whose price is known, as the budget limits dollars: install perpetual-blocks[prices] and "
                "name the model, or pass cost=…",
            )

    def _count(self, amounts: Mapping[str, float]) -> None:
        spent = validated_usage(amounts, "unit.spend")
        self._usage = add(self._usage, spent)
        if self._told is not None:
            self._told(spent)

    @property
    def remaining(self) -> dict[str, float]:
        """What the unit may still use of each limited resource: to cap the tokens of an answer, or set a timeout."""
        return self._room.left(self._usage)

    def should_wrap(self) -> bool:
        """Whether to come to an end: something is used up, or the session was asked to stop. What is done so far is
        kept by returning `unit.advance(…)`."""
        return self._room.stopping() or any(amount <= 0 for amount in self.remaining.values())

    def reserve(self, **amounts: float) -> None:
        """Asks before spending: `unit.reserve(calls=1)`. Without amounts: asks whether there is any room at all.

        Raises:
            CutOff: that much is not left. Let it pass: the item is given back, and goes on in a session with more room.
            InvalidInput: not a resource, or an amount below 0.
        """
        wanted = validated_usage(amounts, "unit.reserve", tuple(RESOURCES))
        for name, left in self.remaining.items():
            needed = self._usage.get(name, 0.0) + wanted[name] if name in wanted else None
            if needed is not None and wanted[name] > left and self._room.extend(name, needed) is None:
                continue
            if left <= 0 or wanted.get(name, 0.0) > left:
                needs = f"needs {show(name, wanted[name])}" if name in wanted else f"works on without any {name} left"
                raise CutOff(f"{self.id}: unit {self.number} {needs}; {show(name, left)} left", name, needed)

    def report_quota(
        self,
        resource: str,
        *,
        resets_at: float | datetime,
        remaining: float | None = None,
        window: str | None = None,
    ) -> None:
        """Passes on what a provider says of its own quota, in its headers or its refusal: it overrides our calendar.

        Args:
            resets_at: When all of it is free again: a time with its zone, or seconds since the Unix epoch.
            remaining: What is left until then, where the provider says so.
            window: The limit's window, where the budget has several for this resource.

        Raises:
            InvalidInput: the budget has no such window, or several and none is named; a value that cannot be.
        """
        if isinstance(resets_at, datetime):
            if resets_at.tzinfo is None:
                raise InvalidInput.of("unit.report_quota(resets_at)", resets_at, "a time with its zone")
            resets_at = resets_at.timestamp()
        if not _is_amount(resets_at):
            raise InvalidInput.of("unit.report_quota(resets_at)", resets_at, "seconds since the Unix epoch, or a time")
        if remaining is not None and not _is_amount(remaining):
            raise InvalidInput.of("unit.report_quota(remaining)", remaining, "a finite number of at least 0")
        names = [name for name in self._room.quotas if name.partition("/")[0] == resource]
        if window is not None:
            names = [name for name in names if name == f"{resource}/{window}"]
        if len(names) != 1:
            raise InvalidInput.of(
                "unit.report_quota",
                resource if window is None else f"{resource}/{window}",
                f"one of the budget's windows: {', '.join(self._room.quotas) or 'there is none'}",
            )
        if remaining is not None:
            # What the unit has spent by then is counted with the rest of it, when it has ended: after this word.
            remaining += self._usage.get(resource, 0.0)
        self._quotas[names[0]] = Quota(remaining, resets_at, self._room.now())

    def add(self, *items: WorkItem) -> None:
        """Adds work items to the queue, in the same transaction that finishes this unit."""
        for item in items:
            if not isinstance(item, WorkItem):
                raise InvalidInput.of("unit.add", item, "a WorkItem")
        self._added.extend(items)

    def advance(
        self,
        *,
        cursor: Any = None,
        progress: tuple[float, float] | None = None,
        next_action: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> "Advanced":
        """Says that the item is not done yet; the next unit goes on at `cursor`.

        Args:
            cursor: Any JSON value; the next unit finds it in `unit.cursor`.
            progress: Done and total, in any unit of measure: `(10, 20)`.
            next_action: One line for the handoff: what comes next.
            context: Replaces `unit.context`.

        Raises:
            InvalidInput: a value that is not JSON, or a progress that is not 0 ≤ done ≤ total.
        """
        to_json(cursor, "unit.advance(cursor)")
        if progress is not None and not _is_progress(progress):
            raise InvalidInput.of("unit.advance(progress)", progress, "(done, total) with 0 <= done <= total")
        if next_action is not None and not (isinstance(next_action, str) and is_plain_text(next_action)):
            raise InvalidInput.of("unit.advance(next_action)", next_action, "one line of text")
        if context is not None:
            self.context = copy_json(dict(context))
        self._advanced = Advanced(cursor, (progress[0], progress[1]) if progress else None, next_action)
        return self._advanced

    def hand_over(self) -> tuple[Item, dict[str, Any], dict[str, Any]]:
        """What another process makes this unit of, before it has spent anything: item, context and room."""
        return self._item, copy_json(self.context), self._room.to_json()

    def time_is_up(self) -> "CutOff":
        """What ends a unit when only what is kept for the shutdown is left of the time."""
        return CutOff(f"{self.id}: unit {self.number} ran until its time was up", "seconds")

    def interrupted(self) -> "CutOff":
        """What ends a unit when its process is about to be killed."""
        return CutOff(f"{self.id}: unit {self.number} was interrupted, as the process is about to end", "seconds")

    def outcome(self, returned: Any, seconds: float) -> Outcome:
        """What the unit came to, given what the agent's `work_unit` returned and how long it took.

        Raises:
            InvalidInput: the return value or the context is not JSON, the context is too large, or a unit that called
                `advance` returned something else besides.
        """
        advanced = self._advanced
        if advanced is not None and returned is not None and returned is not advanced:
            raise InvalidInput.of("work_unit", returned, "nothing, or unit.advance(…) itself, after unit.advance(…)")
        if advanced is None:
            to_json(returned, "work_unit's result")
        changed = bool(self.context or self._context_before)
        if changed:  # as JSON: in Python, True equals 1
            changed = checked_context(self.context, "unit.context") != canonical(self._context_before)
        return Outcome(
            done=advanced is None,
            result=returned if advanced is None else None,
            cursor=advanced.cursor if advanced else None,
            progress=advanced.progress if advanced else None,
            next_action=advanced.next_action if advanced else None,
            usage={**self._usage, "seconds": seconds},
            context=ContextChange.between(self._context_before, copy_json(self.context)) if changed else None,
            added=tuple(self._added),
            quotas=self.quotas,
        )


def checked_context(context: dict[str, Any], field: str) -> str:
    """The context as JSON.

    Raises:
        InvalidInput: it is none, or too large.
    """
    text = to_json(context, field)
    size = len(text.encode())
    if size > MAX_CONTEXT_BYTES:
        raise InvalidInput(
            f"{field}: got {size:,} bytes of JSON; expected at most {MAX_CONTEXT_BYTES:,}: "
            "keep large data in files and their names in the context"
        )
    return text


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_progress(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value)
    return numbers and bool(0 <= value[0] <= value[1])


class CutOff(PerpetualError):
    """A unit stops because there is no room for it: the item is given back, and no attempt is counted.

    Attributes:
        resource: What it had no room in.
        needed: How much of it the unit would have needed altogether, at least, where it said so.
    """

    def __init__(self, message: str, resource: str, needed: float | None = None) -> None:
        super().__init__(message)
        self.resource = resource
        self.needed = needed


class Advanced:
    """What `unit.advance()` returns, for the agent to return in turn."""

    __slots__ = ("cursor", "next_action", "progress")

    def __init__(self, cursor: Any, progress: tuple[float, float] | None, next_action: str | None) -> None:
        self.cursor = cursor
        self.progress = progress
        self.next_action = next_action
