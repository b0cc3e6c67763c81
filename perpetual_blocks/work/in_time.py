"""Async units end in time: what is kept for the shutdown is never used up by one that awaits."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from perpetual_blocks.work.unit import Unit

T = TypeVar("T")


async def in_time(work: Coroutine[Any, Any, T], unit: Unit) -> T:
    """Awaits the work of a unit, and cancels it when only what is kept for the shutdown is left of the time.

    Raises:
        CutOff: the unit's time was up.
    """
    try:
        async with asyncio.timeout(unit.remaining.get("seconds")) as deadline:
            return await work
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the agent's own
        raise unit.time_is_up() from error
