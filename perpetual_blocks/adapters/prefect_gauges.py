"""Pools at a glance: each has a mirror among Prefect's global concurrency limits, which nobody decides by.

Prefect shows of such a limit how many slots there are, and how many are active: the amount of the pool, and what is
used and reserved of it, in whole numbers. Anybody can change it, and it is only written to.
"""

import math
import re

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound

from perpetual_blocks.budget import Limit
from perpetual_blocks.usage import RESOURCES

MOST_SLOTS = 2**31 - 1
"""What the server's database can hold."""

_NOT_IN_NAMES = re.compile(r"[^\w .:()+-]")


def gauge_name(limit: Limit) -> str:
    """What the mirror of a limit's pool is called, and what its slots are: `pool llm: cost a day in cents`."""
    unit = RESOURCES[limit.resource].unit
    shown = {"US dollars": " in cents", "bytes": " in MiB"}.get(unit, "" if unit == limit.resource else f" in {unit}")
    return _NOT_IN_NAMES.sub("-", f"pool {limit.pool}: {limit.resource}{limit.per}{shown}")


def slots(limit: Limit, amount: float) -> int:
    """An amount of a limit's resource in whole units of its mirror; what is more than nothing is at least one."""
    per_slot = {"US dollars": 0.01, "bytes": 2.0**20}.get(RESOURCES[limit.resource].unit, 1.0)
    return min(MOST_SLOTS, math.ceil(round(amount / per_slot, 6)))


def show_pool(limit: Limit, used: float, reserved: float) -> None:
    """Brings the mirror of a limit's pool to this level; makes it where it is new.

    Args:
        used: In the resource's unit; and so is `reserved`.
    """
    name, most, active = gauge_name(limit), slots(limit, limit.amount), slots(limit, used + reserved)
    with get_client(sync_client=True) as client:
        try:
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=most, active_slots=active))
        except ObjectNotFound:
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=most, active_slots=active)
            )
