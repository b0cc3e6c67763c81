"""How many items a queue has, without counting them: what only ever grows is tallied as it happens.

Items are added, and completed for good; both are kept for each kind in `tallies`, in the transaction that does it. Each
chain has rows of its own there, so that several that work on one queue do not wait for each other. What comes and goes
is counted when somebody asks, by an index: items that are claimed, blocked, discarded or cancelled. The rest is
available.
"""

from collections import Counter
from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, case, delete, func, insert, literal, select, union_all, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.queues import taken_by
from perpetual_blocks.work import ItemStatus, Selector

_ADDED = "added"
_COMPLETED = ItemStatus.COMPLETED.value
_ITEM_COMPLETED = case((t.items.c.status == ItemStatus.COMPLETED, 1), else_=0)

_TALLY = (
    update(t.tallies)
    .where(
        t.tallies.c.queue == bindparam("of_queue"),
        t.tallies.c.chain == bindparam("of_chain"),
        t.tallies.c.kind == bindparam("of_kind"),
    )
    .values(
        added=t.tallies.c.added + bindparam("more_added"), completed=t.tallies.c.completed + bindparam("more_completed")
    )
)


def tally(
    connection: Connection, queue: str, chain: str, *, added: Iterable[str] = (), completed: Iterable[str] = ()
) -> None:
    """Counts items by their kinds: those that come into a queue, and those that are completed.

    Args:
        chain: Whose transaction it is: one that has this chain's row, or the queue's lock alone.
    """
    more_added, more_completed = Counter(added), Counter(completed)
    for kind in sorted({*more_added, *more_completed}):
        key = {"of_queue": queue, "of_chain": chain, "of_kind": kind}
        more = {"more_added": more_added[kind], "more_completed": more_completed[kind]}
        if connection.execute(_TALLY, {**key, **more}).rowcount == 0:
            counts = {"added": more_added[kind], "completed": more_completed[kind]}
            connection.execute(insert(t.tallies).values(queue=queue, chain=chain, kind=kind, **counts))


def recount(connection: Connection, queue: str) -> None:
    """Counts all items of a queue, whose lock the caller has, instead of trusting the tally."""
    connection.execute(delete(t.tallies).where(t.tallies.c.queue == queue))
    rows = select(t.items.c.chain, t.items.c.chain, t.items.c.kind, func.count(), func.sum(_ITEM_COMPLETED))
    counted = rows.where(t.items.c.chain == queue).group_by(t.items.c.chain, t.items.c.kind)
    connection.execute(insert(t.tallies).from_select(["queue", "chain", "kind", "added", "completed"], counted))


def tallies_of(connection: Connection, queue: str) -> dict[str, tuple[int, int]]:
    """What the tally says, by kind: how many items were added, and how many of them are completed."""
    sums = select(t.tallies.c.kind, func.sum(t.tallies.c.added), func.sum(t.tallies.c.completed))
    rows = connection.execute(sums.where(t.tallies.c.queue == queue).group_by(t.tallies.c.kind))
    return {kind: (int(added), int(completed)) for kind, added, completed in rows}


def counts_of(connection: Connection, queue: str, selector: Selector) -> dict[ItemStatus, int]:
    """How many items that a selector takes have each status; items that it names by their ids are all looked at."""
    of_queue = (t.items.c.chain == queue, *taken_by(selector))
    by_status = select(t.items.c.status, func.count()).where(*of_queue).group_by(t.items.c.status)
    if selector.ids:
        return _by_status({status: count for status, count in connection.execute(by_status)})
    tallied = [t.tallies.c.queue == queue]
    if selector.kinds:
        tallied.append(t.tallies.c.kind.in_(selector.kinds))
    passing = [status for status in ItemStatus if status not in (ItemStatus.AVAILABLE, ItemStatus.COMPLETED)]
    # In one statement, so that no item is on its way from one of these to the other.
    rows = union_all(
        by_status.where(t.items.c.status.in_(passing)),
        select(literal(_ADDED), func.coalesce(func.sum(t.tallies.c.added), 0)).where(*tallied),
        select(literal(_COMPLETED), func.coalesce(func.sum(t.tallies.c.completed), 0)).where(*tallied),
    )
    found = {status: int(count) for status, count in connection.execute(rows)}
    added = found.pop(_ADDED)
    return _by_status({**found, ItemStatus.AVAILABLE: added - sum(found.values())})


def _by_status(found: dict[str, int]) -> dict[ItemStatus, int]:
    return {status: found.get(status, 0) for status in ItemStatus}
