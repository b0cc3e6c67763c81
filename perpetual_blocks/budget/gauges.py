"""Gauges: resources that have a level, which goes up and down, and not a sum. A meter reads it."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Protocol

from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES

SAMPLE_SECONDS = 0.2
"""How often a gauge is read while a unit runs. A peak between two readings is missed."""


class Meter(Protocol):
    """Reads the level of a gauge: `level()` in the resource's unit, and `capacity()`, the most the machine allows."""

    def level(self) -> float:
        """The level now, in the resource's unit."""

    def capacity(self) -> float | None:
        """The most that the machine allows; None where it sets no limit of its own."""


def is_gauge(limit: Limit) -> bool:
    """Whether a limit is one of a gauge."""
    return RESOURCES[limit.resource].kind == "gauge"


def check_metered(budget: Budget, metered: Container[str]) -> None:
    """Refuses a budget that limits a gauge which nobody reads.

    Raises:
        InvalidInput: names it.
    """
    for limit in budget:
        if is_gauge(limit) and limit.resource not in metered:
            raise InvalidInput.of(f"Budget.{limit.resource}", limit, "a meter for it in the agent's meters")


@contextmanager
def watched(meters: Mapping[str, Meter]) -> Iterator[dict[str, float]]:
    """Watches gauges while units run, so that their peaks count and not what they left behind.

    What it yields holds the peaks above the level at the start, by resource, when it is over.
    """
    peaks: dict[str, float] = {}
    if not meters:
        yield peaks
        return
    before = {name: meter.level() for name, meter in meters.items()}
    highest = dict(before)
    over = Event()

    def look() -> None:
        for name, meter in meters.items():
            highest[name] = max(highest[name], meter.level())

    def sample() -> None:
        # A meter that breaks is noticed by the session before its next unit; this one is not to be lost by it.
        with suppress(Exception):
            while not over.wait(SAMPLE_SECONDS):
                look()

    sampler = Thread(target=sample, name="gauges", daemon=True)
    sampler.start()
    try:
        yield peaks
    finally:
        over.set()
        sampler.join()
        with suppress(Exception):
            look()
        peaks |= {name: max(0.0, highest[name] - before[name]) for name in meters}
