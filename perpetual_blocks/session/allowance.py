"""What the units of a batch may use: the budget is asked before each of them, or before each slice of tiny ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from perpetual_blocks.budget import BudgetMonitor, Quota, Reading
from perpetual_blocks.budget.room import Room
from perpetual_blocks.session.choosing import BATCH_SECONDS, Chooser
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import ModelUsed
from perpetual_blocks.work import Item, LlmUsage, Unit

SLICE_SECONDS = 0.01
"""Units that are done in less are not asked for one by one."""


class Allowances:
    """Makes the allowances of a session's batches.

    Attributes:
        choices: Lines that say where on the agent's ladder the budget stands.
        concurrent: Whether batches run at the same time; each then keeps from the others what its unit will use.
    """

    def __init__(
        self,
        monitor: BudgetMonitor,
        chooser: Chooser,
        chain: str,
        world: World,
        stop: StopRequest,
        ladder: Mapping[float, str],
        choices: list[str],
        concurrent: bool,
    ) -> None:
        self.monitor = monitor
        self.chooser = chooser
        self.clock = world.clock
        self.stop = stop
        self.price = world.price
        self._tell = world.tell
        self._chain = chain
        self.concurrent = concurrent
        self.quotas = tuple(limit.name for limit in monitor.budget if limit.window is not None)
        self._ladder = ladder
        self._choices = choices
        self._rung: str | None = None

    def batch(self, first: Item, *, beside_others: bool = False) -> "BatchAllowance | None":
        """The allowance of a batch that begins now with this item; None where others, that run beside it, have begun
        units since the budget was asked, and there is no room for it any more."""
        with self.monitor.lock:  # what it holds is held before anybody asks for more
            if beside_others and self.monitor.refuse(first.expectation) is not None:
                return None
            return BatchAllowance(self, first)

    def tell_usage(self, item: Item, used: LlmUsage) -> None:
        """Tells observers of what a model used; in the thread of the unit."""
        self._tell(ModelUsed(self._chain, item.id, used.model, used.input_tokens, used.output_tokens))

    def rung(self, readings: Sequence[Reading]) -> str | None:
        """Where the budget stands on the agent's ladder."""
        rung = self.monitor.rung(self._ladder, readings)
        if rung is not None and rung[0] != self._rung:
            self._rung = rung[0]
            self._choices.append(f"rung {rung[0]!r}: {rung[1]}")
        return self._rung


class BatchAllowance:
    """See `Allowance`. A slice is a run of equal units for which the budget is asked once.

    Made with the monitor's lock held.
    """

    def __init__(self, all_batches: Allowances, first: Item) -> None:
        self._all = all_batches
        self._monitor = all_batches.monitor
        self._until = all_batches.clock.monotonic() + BATCH_SECONDS
        self._asked = first
        self._unasked = 0
        self._amounts: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._slice_began = 0.0
        self._rung: str | None = None
        self._reserved: Callable[[Item], dict[str, float]] = lambda item: {}
        self._begin_slice(first, self._monitor.readings())

    def admits(self, item: Item) -> bool:
        if self._all.stop.reason is not None or self._all.clock.monotonic() >= self._until:
            return False
        if self._unasked > 0 and item.is_like(self._asked):
            self._unasked -= 1
            return True
        with self._monitor.lock:
            self._monitor.hold(self, None)
            readings = self._monitor.readings()
            if self._monitor.refuse(item.expectation, readings) is not None:
                return False
            self._begin_slice(item, readings)
        return True

    def unit(self, item: Item, context: Mapping[str, Any]) -> Unit:
        used = {**self._used, "seconds": self._all.clock.monotonic() - self._slice_began}
        room = Room(
            {name: max(0.0, amount - used.get(name, 0.0)) for name, amount in self._amounts.items()},
            self._all.clock,
            stopping=lambda: self._all.stop.reason is not None,
            rung=self._rung,
            quotas=self._all.quotas,
            reserved=self._reserved(item),
            extend=partial(self._all.chooser.extend, item),
        )
        return Unit(item, context, room, price=self._all.price, used=partial(self._all.tell_usage, item))

    def count(self, usage: Mapping[str, float], quotas: Mapping[str, Quota]) -> None:
        with self._monitor.lock:
            self._monitor.hold(self, None)
            self._monitor.count(usage, quotas)
        if quotas:
            self._unasked = 0  # the budget has changed since it was asked
        for name in self._amounts:
            self._used[name] = self._used.get(name, 0.0) + usage.get(name, 0.0)

    def _begin_slice(self, item: Item, readings: Sequence[Reading]) -> None:
        monitor, unit = self._monitor, item.expectation
        self._asked = item
        self._unasked = monitor.unasked_units(unit, SLICE_SECONDS, readings) - 1
        self._amounts, self._used = monitor.room(readings), {}
        self._slice_began = self._all.clock.monotonic()
        self._rung = self._all.rung(readings)
        self._reserved = partial(self._reservations, readings)
        if self._all.concurrent:
            monitor.hold(self, unit)

    def _reservations(self, readings: Sequence[Reading], item: Item) -> dict[str, float]:
        reserves = self._all.chooser.reserves(readings, item)
        return {reserve.limit.resource: reserve.amount for reserve in reserves}
