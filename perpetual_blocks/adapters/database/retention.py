"""What forgets chains that are over for good, and what pools do not count any more."""

from sqlalchemy import Connection, delete, select, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import reading
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.adapters.database.queues import lock_queue, works_on
from perpetual_blocks.adapters.database.rows import chain_of
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.session.chain import Chain, ChainStatus
from perpetual_blocks.session.retention import judge

RETIRED = "`perpetual prune` has begun to forget it, and its documents may be gone; run it again"


@patient()
class ChainRetention(LedgerWriter):
    """The transactions of forgetting."""

    def retire(self, queue: str, before: float) -> bool:
        with self._writing(synced=True) as connection:
            names = [chain.name for chain in _lock_old(connection, queue, before)]
            retired = {"status": ChainStatus.CANCELLED, "reason": RETIRED}
            connection.execute(update(t.chains).where(t.chains.c.name.in_(names)).values(**retired))
            return bool(names)

    def forget(self, queue: str, before: float) -> bool:
        with self._writing(synced=True) as connection:
            chains = _lock_old(connection, queue, before)
            pools.forget(connection, [chain.uid for chain in chains])
            # All other rows of theirs go with these.
            connection.execute(delete(t.chains).where(t.chains.c.name.in_([chain.name for chain in chains])))
            # Gone is gone, whoever has done it, and be it this very transaction that is tried again.
            return connection.execute(select(t.chains.c.name).where(works_on(queue))).first() is None

    def tidy_pools(self, before: float, *, dry_run: bool = False) -> int:
        with reading(self._engine) as connection:
            names = connection.execute(select(t.pools.c.name, t.pools.c.resource)).all()
            if dry_run:
                now = self._now(connection)
                return sum(pools.outdated(connection, pool, resource, before, now) for pool, resource in names)
        rows = 0
        for pool, resource in names:  # each by itself: nobody waits for a pool that is not its own
            with self._writing() as connection:
                rows += pools.tidy(connection, pool, resource, before, self._now(connection))
        return rows


def _lock_old(connection: Connection, queue: str, before: float) -> list[Chain]:
    """The chains of a queue if all of them may be forgotten; none is touched or added until this transaction ends.

    The queue's lock comes first here, because whoever adds items has it when it opens their chain again. So a chain's
    row that somebody has already is not waited for: it is being touched.
    """
    lock_queue(connection, queue)
    of_queue = select(t.chains).where(works_on(queue)).order_by(t.chains.c.name)
    locked = connection.execute(of_queue.with_for_update(skip_locked=True)).mappings().all()
    chains = [chain_of(row) for row in connection.execute(of_queue).mappings()]
    if len(locked) != len(chains):
        return []
    names = [chain.name for chain in chains]
    pinned = select(t.documents.c.chain).where(t.documents.c.chain.in_(names), t.documents.c.pinned)
    judged = judge(chains, set(connection.execute(pinned).scalars()), before)
    return judged.queues[0] if judged.queues else []
