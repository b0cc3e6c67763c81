"""Batches: units that share one task run, one document of outcomes and one transaction.

Most batches are of one unit. Units that are so small that a task run for each would cost more than they do run together
for about a second: so much is repeated at most when a session dies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from perpetual_blocks.budget import Quota
from perpetual_blocks.clock import Clock
from perpetual_blocks.session.documents import UnitKeys
from perpetual_blocks.session.ledger import Claim, Finished
from perpetual_blocks.work import CutOff, Item, Outcome, Unit


class Allowance(Protocol):
    """What the units of a batch may use."""

    def admits(self, item: Item) -> bool:
        """Whether the next unit may begin, after others of its batch."""

    def unit(self, item: Item, context: Mapping[str, Any]) -> Unit:
        """The unit, with its room."""

    def count(self, usage: Mapping[str, float], quotas: Mapping[str, Quota]) -> None:
        """Counts what a unit has spent, and takes in what it was told of quotas."""


class Unlimited:
    """The allowance of units that are not run, but looked for."""

    def __init__(self, count: Callable[[Mapping[str, float], Mapping[str, Quota]], None]) -> None:
        self.count = count

    def admits(self, item: Item) -> bool:
        return True

    def unit(self, item: Item, context: Mapping[str, Any]) -> Unit:
        return Unit(item, context)


@dataclass(frozen=True, slots=True)
class Failed:
    """A unit that came to no outcome.

    Attributes:
        usage: What it spent all the same.
    """

    item: Item
    unit: Unit
    usage: dict[str, float]
    error: BaseException


class Batch:
    """A batch as it runs: the runner iterates over its units, and tells it what each of them came to.

    Args:
        context: The agent's context; each unit finds what those before it in the batch have made of it.
        chain: Whose session runs it.
        fresh: Whether its first unit is the session's first.
        phase: The pace's, when it begins.

    Attributes:
        items: What was claimed for it.
        key: Where its outcomes are to lie: of a single unit the unit's own.
        finished: Units that came to an outcome, in order.
        made: Those of them whose outcome was not found: what is to be written under the batch's key.
        failed: Units that raised, in order.
        cut_off: The unit that had no room to finish; it was the last one.
        peaks: What the batch used of gauges.
    """

    def __init__(
        self,
        claim: Claim,
        keys: UnitKeys,
        context: Mapping[str, Any],
        allowance: Allowance,
        clock: Clock,
        *,
        chain: str = "",
        fresh: bool = False,
        phase: int = 0,
    ) -> None:
        self.items: Sequence[Item] = claim.items
        self.key = keys.unit(claim.items[0]) if len(claim.items) == 1 else keys.batch(claim.token)
        self.fresh = fresh
        self.phase = phase
        self.finished: list[Finished] = []
        self.made: list[Finished] = []
        self.failed: list[Failed] = []
        self.cut_off: Failed | None = None
        self.peaks: dict[str, float] = {}
        self._keys = keys
        self._context = context
        self._allowance = allowance
        self._clock = clock
        self._chain = chain
        self._began = 0.0
        self._begun = 0
        self._unit: Unit | None = None

    @property
    def single(self) -> bool:
        """Whether it is of one unit, whose outcome is a document by itself."""
        return len(self.items) == 1

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it: processes have died while they worked on it, and others."""
        return self.items[0].crashes > 1

    @property
    def label(self) -> str:
        """What people see of it."""
        first = self.items[0]
        name = f"{first.id} · {first.units + 1}"
        return name if self.single else f"{name} and up to {len(self.items) - 1} more"

    @property
    def left(self) -> Sequence[Item]:
        """Items whose units have not begun."""
        return self.items[self._begun :]

    @property
    def item(self) -> Item:
        """The item of the current unit."""
        return self.items[self._begun - 1]

    def units(self) -> Iterator[Unit]:
        """The next units, for as long as there is room and time for them."""
        for item in self.items[self._begun :]:
            if self.cut_off is not None or (self._begun and not self._allowance.admits(item)):
                return
            self._begun += 1
            self._began = self._clock.monotonic()
            self._unit = self._allowance.unit(item, self._context)
            yield self._unit

    def earlier(self) -> list[str]:
        """Where an outcome of the current unit may lie already: documents, the oldest first."""
        # Of a unit by itself it is always asked: a ledger that was restored does not know what was begun since.
        own = [self.key] if self.single else []
        return list(dict.fromkeys([*self._keys.earlier(self.item), *own]))

    def finish(self, outcome: Outcome, kept_under: str | None = None) -> None:
        """The current unit came to this outcome.

        Args:
            kept_under: The result's key, where it was not done now but found.
        """
        own = self.key if self.single else f"{self.key}#{len(self.made)}"
        self._allowance.count(outcome.usage, outcome.quotas)
        if kept_under is not None and self.item.claimant not in (None, self._chain):
            # It was made with the memory of another chain of the queue, and is not this one's.
            outcome = replace(outcome, context=None)
        if outcome.context is not None:
            self._context = outcome.context.apply(self._context, lambda key, now, before, after: after)
        finished = Finished(self.item, outcome, kept_under or own)
        self.finished.append(finished)
        if kept_under is None:
            self.made.append(finished)

    def fail(self, error: BaseException) -> None:
        """The current unit raised."""
        unit = self._unit
        assert unit is not None
        if isinstance(error, CutOff):
            seconds = self._clock.monotonic() - self._began
            self.cut_off = Failed(self.item, unit, {**unit.usage, "seconds": seconds}, error)
        else:
            self.failed.append(Failed(self.item, unit, unit.usage, error))
        self._allowance.count((self.cut_off or self.failed[-1]).usage, unit.quotas)
