"""A pool for programs that share a budget without a chain."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database.engine import connect, reading, time_of, writing
from perpetual_blocks.adapters.database.pools import PoolRequest, PoolUnit
from perpetual_blocks.budget.pool import Refusal
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import PoolRefused
from perpetual_blocks.usage import validated_usage


class Pool:
    """A limit that several programs share, in a ledger's database.

    `with pool.reserve("agent-1", 0.05) as reservation: …; reservation.settle(0.031)` reserves before it spends. Threads
    may share a pool; every process makes its own.

    Args:
        address: The ledger's: a path, or a database URL.
        name: With the resource, tells the pool from others.
        amount: What all holders together may spend, in the resource's unit. Each program says it anew.
        window_since: Says from when on spending counts, given the time now, both in seconds since the epoch; without it
            all spending counts.

    Raises:
        InvalidInput: not an address, or a resource or amount that is none.
        LedgerError: the database cannot be used.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        resource: str,
        amount: float,
        window_since: Callable[[float], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._name = name
        self._resource = resource
        self._amount = _checked(resource, amount, "amount")
        self._window_since = window_since
        self._clock = clock
        self._engine = connect(address)

    def join(self, holder: str, *, share: float = 0.0, priority: int = 0) -> None:
        """Guarantees a holder a share of the amount, which only holders of a higher priority may borrow.

        Raises:
            InvalidInput: a share outside 0 to 1, or more than the other members leave.
        """
        with writing(self._engine) as connection:
            pools.join(connection, self._name, self._resource, holder, share=share, priority=priority)

    @contextmanager
    def reserve(self, holder: str, wanted: float, lease_seconds: float = 60.0) -> Iterator[Reservation]:
        """Reserves for one piece of work. What is not settled when the `with` ends is given back as not spent.

        Args:
            lease_seconds: When the reservation runs out, should this process die.

        Raises:
            PoolRefused: there is no room for it.
        """
        unit = PoolUnit(pool=self._name, resource=self._resource, holder=holder, item=secrets.token_hex(8))
        reservation = Reservation(self, unit, lease_seconds)
        reservation.extend(wanted)
        try:
            yield reservation
        finally:
            reservation.release()

    def level(self) -> tuple[float, float]:
        """What is used, within the window, and what is reserved, in the resource's unit."""
        with reading(self._engine, snapshot=True) as connection:
            now = time_of(connection, self._clock)
            return pools.level(connection, self._name, self._resource, self._since(now), now)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _since(self, now: float) -> float | None:
        return self._window_since(now) if self._window_since else None

    def _reserve(self, unit: PoolUnit, wanted: float, lease_seconds: float) -> None:
        with writing(self._engine) as connection:
            now = time_of(connection, self._clock)
            request = PoolRequest(
                unit=unit,
                wanted=wanted,
                amount=self._amount,
                since=self._since(now),
                expires_at=now + lease_seconds,
            )
            answer = pools.reserve(connection, request, now)
        if isinstance(answer, Refusal):
            raise PoolRefused(answer.reason, contended=answer.contended)

    def _settle(self, unit: PoolUnit, actual: float) -> None:
        with writing(self._engine) as connection:
            pools.settle(connection, unit, actual, time_of(connection, self._clock))

    def _release(self, unit: PoolUnit) -> None:
        with writing(self._engine) as connection:
            pools.release(connection, unit)


class Reservation:
    """What one piece of work may spend; `Pool.reserve` makes it.

    Attributes:
        amount: In the resource's unit.
    """

    def __init__(self, pool: Pool, unit: PoolUnit, lease_seconds: float) -> None:
        self._pool = pool
        self._unit = unit
        self._lease_seconds = lease_seconds
        self._over = False
        self.amount = 0.0

    def extend(self, more: float) -> None:
        """Reserves more, for work that costs more than was thought; the lease starts anew.

        Raises:
            PoolRefused: there is no room for it; what was reserved stays reserved.
        """
        wanted = self.amount + _checked(self._unit.resource, more, "wanted")
        self._pool._reserve(self._unit, wanted, self._lease_seconds)
        self.amount = wanted

    def settle(self, actual: float) -> None:
        """Counts what was really spent, and ends the reservation; a second time does nothing."""
        self._pool._settle(self._unit, _checked(self._unit.resource, actual, "spent"))
        self._over = True

    def release(self) -> None:
        """Gives the reservation back, unless it was settled."""
        if not self._over:
            self._pool._release(self._unit)
            self._over = True


def _checked(resource: str, amount: float, field: str) -> float:
    return validated_usage({resource: amount}, f"Pool.{field}")[resource]
