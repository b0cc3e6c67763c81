"""Work items: what the user puts into the queue, and what the ledger makes of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from perpetual_blocks.budget import Expectation
from perpetual_blocks.checkpoint.codec import is_plain_text, to_json
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES, validated_usage

Complexity = Literal["simple", "normal", "complex"]

UNIT = "unit"
"""How an item's claims say that it was claimed by itself, and not for a batch."""

MAX_ID_LENGTH = 512
MAX_INTEGER = 2**31 - 1


class ItemStatus(StrEnum):
    """Where an item stands. `TRANSITIONS` says who moves it on."""

    BLOCKED = "blocked"  # waits for its dependencies
    AVAILABLE = "available"  # may be claimed
    CLAIMED = "claimed"  # a unit of it is running
    COMPLETED = "completed"
    DISCARDED = "discarded"  # the dead letter: its attempts are used up, or a person gave it up
    CANCELLED = "cancelled"


TRANSITIONS: dict[tuple[ItemStatus, ItemStatus], str] = {
    (ItemStatus.BLOCKED, ItemStatus.AVAILABLE): "its last dependency was completed",
    (ItemStatus.AVAILABLE, ItemStatus.CLAIMED): "a session took it",
    (ItemStatus.CLAIMED, ItemStatus.COMPLETED): "its last unit was finished",
    (ItemStatus.CLAIMED, ItemStatus.AVAILABLE): "a unit advanced it, failed, or was given back",
    (ItemStatus.CLAIMED, ItemStatus.DISCARDED): "its last attempt failed",
    (ItemStatus.AVAILABLE, ItemStatus.DISCARDED): "a person gave it up, or no session has room for it",
    (ItemStatus.BLOCKED, ItemStatus.DISCARDED): "a person gave it up",
    (ItemStatus.DISCARDED, ItemStatus.AVAILABLE): "a person asked for another try",
    (ItemStatus.DISCARDED, ItemStatus.BLOCKED): "a person asked for another try; a dependency is not done",
    (ItemStatus.AVAILABLE, ItemStatus.CANCELLED): "its chain was cancelled",
    (ItemStatus.BLOCKED, ItemStatus.CANCELLED): "its chain was cancelled",
}
"""Every legal move with its reason; the ledger makes no other."""


def sources(target: ItemStatus) -> tuple[ItemStatus, ...]:
    """The statuses from which an item may come to `target`."""
    return tuple(before for before, after in TRANSITIONS if after is target)


DEFAULT_KIND = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One entry of the queue.

    Attributes:
        id: Names the item within its chain, at most 512 characters. Adding the same id again changes nothing.
        kind: One of the agent's `kinds`; items of one kind cost about the same.
        payload: What the agent needs to know, as a JSON object.
        priority: Higher goes first.
        depends_on: Ids of items that must be completed first.
        estimate: What one unit will probably cost, by resource: tokens, cost (US dollars), calls, seconds, memory
            (bytes).
        bound: What one unit cannot exceed, by resource; with it a unit is started even where it just fits.
        complexity: simple, normal or complex, for limits whose rule is adaptive.
        max_attempts: How often a unit may fail before the item is discarded.

    Raises:
        InvalidInput: a field is not what it should be.
    """

    id: str
    kind: str = DEFAULT_KIND
    payload: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    depends_on: tuple[str, ...] = ()
    estimate: Mapping[str, float] = field(default_factory=dict)
    bound: Mapping[str, float] = field(default_factory=dict)
    complexity: Complexity = "normal"
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not 1 <= len(self.id) <= MAX_ID_LENGTH or not is_plain_text(self.id):
            raise InvalidInput.of("WorkItem.id", self.id, f"a string of 1 to {MAX_ID_LENGTH} characters, no NUL")
        where = f"WorkItem({self.id!r})"
        if not isinstance(self.kind, str) or not self.kind:
            raise InvalidInput.of(f"{where}.kind", self.kind, "the name of one of the agent's kinds")
        if not isinstance(self.payload, dict):
            raise InvalidInput.of(f"{where}.payload", self.payload, "a dict that is a JSON object")
        to_json(self.payload, f"{where}.payload")
        for name, value, least in (("priority", self.priority, None), ("max_attempts", self.max_attempts, 1)):
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if not is_integer or abs(value) > MAX_INTEGER or (least is not None and value < least):
                bounds = f"at least {least}" if least else "not below -2**31"
                raise InvalidInput.of(f"{where}.{name}", value, f"a whole number, {bounds}, and below 2**31")
        others = self.depends_on
        if (
            not isinstance(others, Sequence)
            or isinstance(others, str)
            or not all(isinstance(o, str) and is_plain_text(o) for o in others)
        ):
            raise InvalidInput.of(f"{where}.depends_on", self.depends_on, "a sequence of item ids")
        object.__setattr__(self, "depends_on", tuple(dict.fromkeys(self.depends_on)))
        for name in ("estimate", "bound"):
            amounts = getattr(self, name)
            if not isinstance(amounts, Mapping):
                raise InvalidInput.of(f"{where}.{name}", amounts, "amounts by resource")
            object.__setattr__(self, name, validated_usage(amounts, f"{where}.{name}", known=tuple(RESOURCES)))
        for name, bound in self.bound.items():
            if self.estimate.get(name, 0.0) > bound:
                raise InvalidInput.of(f"{where}.bound.{name}", bound, f"at least the estimate, {self.estimate[name]:g}")
        if self.complexity not in get_args(Complexity):
            raise InvalidInput.of(f"{where}.complexity", self.complexity, f"one of {', '.join(get_args(Complexity))}")

    @property
    def expectation(self) -> Expectation:
        """What its units will need, as far as that is declared."""
        return Expectation(self.kind, self.estimate, self.bound, self.complexity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A work item as the ledger holds it.

    Attributes:
        units: How many units of it are finished; it numbers the next one.
        attempts: How often the unit that is next has failed; a person's retry starts again from 0.
        failures: How many attempts have ever failed; numbers them.
        interruptions: How often a running unit of it was given back.
        cut_offs: How often in a row its next unit used up all that a fresh session could give it.
        passed_over: In how many sessions something behind it was taken because it did not fit.
        crashes: How many processes died, one after the other, while they worked on it.
        claims: See `earlier_claims`; words, or None where the ledger says nothing.
        claimant: The chain whose session has it, or had it last and was interrupted.
        retry_at: Until when it is left alone after a failed attempt, in seconds since the Unix epoch.
        progress: Done and total, as the agent counts them.
        result_key: Where its latest outcome lies in the results storage.
    """

    id: str
    kind: str
    payload: dict[str, Any]
    priority: int
    estimate: dict[str, float]
    max_attempts: int
    position: int
    status: ItemStatus
    bound: dict[str, float] = field(default_factory=dict)
    complexity: Complexity = "normal"
    attempts: int = 0
    failures: int = 0
    interruptions: int = 0
    cut_offs: int = 0
    passed_over: int = 0
    crashes: int = 0
    claims: str | None = None
    units: int = 0
    progress: tuple[float, float] | None = None
    cursor: Any = None
    next_action: str | None = None
    result_key: str | None = None
    error: str | None = None
    retry_at: float | None = None
    claimant: str | None = field(default=None, compare=False)

    @property
    def expectation(self) -> Expectation:
        """What its next unit will need, as far as that was declared."""
        return Expectation(self.kind, self.estimate, self.bound, self.complexity)

    def is_like(self, other: "Item") -> bool:
        """Whether the same is said of both beforehand."""
        return (
            self.kind == other.kind
            and self.estimate == other.estimate
            and self.bound == other.bound
            and self.complexity == other.complexity
        )

    @property
    def earlier_claims(self) -> list[str]:
        """For what it was claimed before, the oldest first: `UNIT`, or the names of batches."""
        # Rows that are older than the column say only that a unit was interrupted.
        return self.claims.split() if self.claims else [UNIT] if self.interruptions else []


def check_dependencies(items: Iterable[WorkItem], known: Iterable[str]) -> None:
    """Refuses a batch of new items whose dependencies are missing or form a cycle.

    Items that are in the ledger already (`known`) cannot depend on new ones, so a cycle lies within the batch.

    Raises:
        InvalidInput: names the missing dependency, or the cycle from item to item.
    """
    batch = {item.id: item.depends_on for item in items}
    present = set(known)
    for item, others in batch.items():
        for other in others:
            if other not in batch and other not in present:
                raise InvalidInput.of(f"WorkItem({item!r}).depends_on", other, "the id of an item of this chain")
    done: set[str] = set()
    for start, first in batch.items():
        path: dict[str, None] = {}  # an ordered set: the way down to the item that is being looked at
        stack = [(start, iter(first))] if start not in done else []
        path[start] = None
        while stack:
            item, others_left = stack[-1]
            for other in others_left:
                if other in path:
                    way = [*path]
                    cycle = " -> ".join([*way[way.index(other) :], other])
                    raise InvalidInput(f"WorkItem({other!r}).depends_on: got a cycle: {cycle}; expected none")
                if other in batch and other not in done:
                    path[other] = None
                    stack.append((other, iter(batch[other])))
                    break
            else:
                stack.pop()
                path.pop(item)
                done.add(item)
