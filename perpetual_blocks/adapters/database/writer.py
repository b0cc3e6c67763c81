"""What all transactions that change the ledger begin with: the fence, the lease, and the limits that chains share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import writing
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.adapters.database.reader import LedgerReader
from perpetual_blocks.adapters.database.rows import find_chain, pool_key
from perpetual_blocks.budget import Limit
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import Fenced
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.ledger import Fence, Reserve
from perpetual_blocks.work import Item, Selector

# Built once, as all statements of each claim and commit are: building them again would cost more than the database
# does. What an UPDATE sets are the other names that it is executed with.
_PASS_FENCE = update(t.chains).where(
    t.chains.c.name == bindparam("of_chain"),
    t.chains.c.epoch == bindparam("of_epoch"),
    t.chains.c.holder == bindparam("of_holder"),
)


@patient(but=["lease_seconds"])
class LedgerWriter(LedgerReader):
    """What the classes that the ledger is composed of have in common.

    Args:
        synced: Whether every commit is synced to disk.
        lease_seconds: How long a session owns its chain without a heartbeat.
    """

    def __init__(
        self, address: str, clock: Clock | None, patience: Patience, *, synced: bool, lease_seconds: float
    ) -> None:
        super().__init__(address, clock, patience)
        self._synced = synced
        self._lease_seconds = lease_seconds
        self._shared_limits: tuple[tuple[str, int], _Shared] | None = None
        self._passed_over: dict[tuple[str, int], set[str]] = {}

    def lease_seconds(self) -> float:
        return self._lease_seconds

    def _writing(self, *, synced: bool = False) -> AbstractContextManager[Connection]:
        return writing(self._engine, synced=synced or self._synced)

    def _pass_fence(self, connection: Connection, fence: Fence, **changes: Any) -> float:
        """Moves the lease on and sets more of the chain's row, if it is still ours; returns the time."""
        now = self._now(connection)
        ours = {"of_chain": fence.chain, "of_epoch": fence.epoch, "of_holder": fence.holder}
        lease = {"lease_until": now + self._lease_seconds, "updated_at": now}
        if connection.execute(_PASS_FENCE, {**ours, **lease, **changes}).rowcount != 1:
            raise Fenced(f"session {fence.ordinal} of {fence.chain} does not own the chain any more")
        return now

    # What is shared with other chains ---------------------------------------------------------------------------------

    def _shared(self, connection: Connection, fence: Fence) -> _Shared:
        """What a session shares with other chains: limits, and the queue."""
        key, known = (fence.chain, fence.epoch), self._shared_limits
        if known is None or known[0] != key:
            chain = find_chain(connection, fence.chain)
            assert chain is not None
            # Everybody locks several pools in the same order, so that no two wait for each other.
            limits = sorted((limit for limit in chain.budget if limit.pool), key=lambda x: (pool_key(x), x.resource))
            known = self._shared_limits = (key, _Shared(chain.uid, tuple(limits), chain.selector))
        return known[1]

    def _reserve(
        self, connection: Connection, fence: Fence, item: Item, wanted: Sequence[Reserve], now: float
    ) -> pools.Refused | None:
        """All of them, or none and why."""
        uid = self._shared(connection, fence).uid
        several = connection.begin_nested() if len(wanted) > 1 else None
        for one in sorted(wanted, key=lambda reserve: (pool_key(reserve.limit), reserve.limit.resource)):
            limit = one.limit
            request = pools.PoolRequest(
                unit=_pool_unit(limit, uid, item),
                wanted=one.amount,
                amount=limit.amount,
                since=limit.window.since(now) if limit.window else None,
                expires_at=now + self._lease_seconds,
            )
            answer = pools.reserve(connection, request, now)
            if isinstance(answer, pools.Refused):
                if several is not None:
                    several.rollback()
                return answer
        if several is not None:
            several.commit()
        return None

    def _settle(
        self, connection: Connection, fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float
    ) -> None:
        shared = self._shared(connection, fence)
        for limit in shared.limits:
            unit = _pool_unit(limit, shared.uid, item)
            pools.settle(connection, unit, usage.get(limit.resource, 0.0), now, failure)

    def _give_back_reserved(self, connection: Connection, fence: Fence, items: Sequence[Item] | None = None) -> None:
        """What the session has reserved for these items, or for all of its items."""
        shared = self._shared(connection, fence)
        if shared.limits and items is None:
            pools.release_all(connection, shared.uid)
        for limit in shared.limits:
            for item in items or ():
                pools.release(connection, _pool_unit(limit, shared.uid, item))


@dataclass(frozen=True, slots=True)
class _Shared:
    """The chain's uid, by which pools know it, its limits that have one, and what it takes of its queue."""

    uid: str
    limits: tuple[Limit, ...]
    selector: Selector


def _pool_unit(limit: Limit, uid: str, item: Item) -> pools.PoolUnit:
    return pools.PoolUnit(pool=pool_key(limit), resource=limit.resource, holder=uid, item=item.id, unit=item.units + 1)
