"""How a unit's rows change when it is over: its item, what it spent, and the items that waited for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, literal_column, null, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.items import MOVE, VARIABLES
from perpetual_blocks.adapters.database.many import ForMany
from perpetual_blocks.adapters.database.patient import DoneBefore
from perpetual_blocks.adapters.database.queues import names_on
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.session.ledger import Fence, Finished
from perpetual_blocks.work import Item, ItemStatus

# Of the unit that the item was claimed for, and no later one.
_END_UNIT = {
    target: statement.where(
        t.items.c.claimant == bindparam("of_claimant"),
        t.items.c.claimed_by == bindparam("of_session"),
        t.items.c.units == bindparam("of_units"),
        t.items.c.failures == bindparam("of_failures"),
    )
    for target, statement in MOVE.items()
}
_FINISH = {
    target: ForMany(
        _END_UNIT[target].values(
            status=literal_column(f"'{target}'"),
            **dict.fromkeys(("attempts", "cut_offs", "crashes"), literal_column("0")),
            **dict.fromkeys(("claimant", "claimed_by", "claims", "retry_at", "error"), null()),
        ),
        *("units", "progress", "cursor", "next_action", "result_key", "updated_at"),
    )
    for target in (ItemStatus.COMPLETED, ItemStatus.AVAILABLE)
}
COUNT_USAGE = ForMany(insert(t.usage), *t.usage.c.keys())
_DEPENDENTS = (
    select(t.dependencies.c.item.label("of_item"), func.count().label("completed"))
    .where(
        t.dependencies.c.chain == bindparam("of_queue"),
        t.dependencies.c.depends_on.in_(bindparam("of_items", expanding=True)),
    )
    .group_by(t.dependencies.c.item)
    .order_by(t.dependencies.c.item)
)
_UNBLOCK = (
    update(t.items)
    .where(t.items.c.chain == bindparam("of_queue"), t.items.c.id == bindparam("of_item"))
    .values(blockers=t.items.c.blockers - bindparam("completed"))
)
_FREE = (
    update(t.items)
    .where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.status == ItemStatus.BLOCKED,
        t.items.c.blockers == 0,
        t.items.c.id.in_(bindparam("of_items", expanding=True)),
    )
    .values(status=ItemStatus.AVAILABLE)
)


def end_units(connection: Connection, fence: Fence, finished: Sequence[Finished], now: float) -> None:
    """Moves items whose running units are finished.

    Raises:
        DoneBefore: they were finished in this way already.
    """
    for target, finish in _FINISH.items():
        rows = [
            {
                **_this_unit(fence, one.item),
                "updated_at": now,
                "units": one.item.units + 1,
                "progress": list(one.outcome.progress) if one.outcome.progress else None,
                "cursor": one.outcome.cursor,
                "next_action": one.outcome.next_action,
                "result_key": one.result_key,
            }
            for one in finished
            if one.outcome.done == (target is ItemStatus.COMPLETED)
        ]
        if finish(connection, rows) != len(rows):
            if all(_finished_before(connection, fence, one) for one in finished):
                raise DoneBefore
            raise LedgerError(f"items of {fence.queue}, one of which is {rows[0]['of_item']}, cannot become {target}")


def _finished_before(connection: Connection, fence: Fence, one: Finished) -> bool:
    rows = select(t.items.c.units, t.items.c.result_key)
    row = connection.execute(rows.where(t.items.c.chain == fence.queue, t.items.c.id == one.item.id)).first()
    if row is None:
        return False
    # It was this session's until it was finished; since then others may have taken it on.
    units = one.item.units + 1
    return bool(row.units > units or (row.units == units and row.result_key == one.result_key))


def end_unit(connection: Connection, fence: Fence, item: Item, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item whose running unit came to nothing."""
    freed = {"status": target, "updated_at": now, "claimant": None, "claimed_by": None, "claims": None}
    if connection.execute(_END_UNIT[target], {**_this_unit(fence, item), **freed, **values}).rowcount != 1:
        raise LedgerError(f"item {item.id} of {fence.queue} cannot become {target}")


def _this_unit(fence: Fence, item: Item) -> dict[str, Any]:
    """The unit that the item was claimed for."""
    return {
        "of_queue": fence.queue,
        "of_item": item.id,
        "of_claimant": fence.chain,
        "of_session": fence.ordinal,
        "of_units": item.units,
        "of_failures": item.failures,
    }


def ended_before(connection: Connection, fence: Fence, item: Item) -> ItemStatus | None:
    """What became of an item whose failed unit has been counted already; None if it has not."""
    columns = select(t.items.c.status, t.items.c.failures)
    row = connection.execute(columns.where(t.items.c.chain == fence.queue, t.items.c.id == item.id)).first()
    return ItemStatus(row[0]) if row is not None and row[1] > item.failures else None


def unblock(connection: Connection, queue: str, completed: Sequence[str], now: float) -> None:
    """Makes available what has waited for these items, and for nothing else."""
    for start in range(0, len(completed), VARIABLES):
        some = {"of_queue": queue, "of_items": completed[start : start + VARIABLES]}
        waiting = [dict(row) for row in connection.execute(_DEPENDENTS, some).mappings()]
        if waiting:
            connection.execute(_UNBLOCK, [{"of_queue": queue, "updated_at": now, **row} for row in waiting])
            for later in range(0, len(waiting), VARIABLES):
                ids = [row["of_item"] for row in waiting[later : later + VARIABLES]]
                connection.execute(_FREE, {"of_queue": queue, "of_items": ids, "updated_at": now})


def usage_rows(fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float) -> list[dict[str, Any]]:
    """The rows of what one unit has used."""
    unit = {"chain": fence.chain, "item": item.id, "unit": item.units, "failure": failure}
    return [
        {**unit, "resource": resource, "session": fence.ordinal, "amount": amount, "at": now}
        for resource, amount in usage.items()
    ]


def count_failure(
    connection: Connection,
    fence: Fence,
    item: Item,
    error: str,
    usage: Mapping[str, float],
    now: float,
    *,
    cut_off: bool,
) -> None:
    """Writes down an attempt that came to nothing, and what it spent."""
    failure = item.failures + 1
    row = {"item": item.id, "failure": failure, "unit": item.units, "error": error, "cut_off": cut_off}
    connection.execute(insert(t.failures).values(chain=fence.chain, session=fence.ordinal, at=now, **row))
    COUNT_USAGE(connection, usage_rows(fence, item, failure, usage, now))


def wasted(connection: Connection, queue: str, item: str, attempts: int) -> dict[str, float]:
    """What an item's last failed attempts have used together: as many as its next unit has had since it was retried."""
    by_any = t.failures.c.chain.in_(names_on(queue))
    of_item = and_(by_any, t.failures.c.item == item, t.failures.c.cut_off.is_(False))
    last = select(t.failures.c.failure).where(of_item).order_by(t.failures.c.failure.desc()).limit(attempts)
    used = (
        select(t.usage.c.resource, func.sum(t.usage.c.amount))
        .where(t.usage.c.chain.in_(names_on(queue)), t.usage.c.item == item, t.usage.c.failure.in_(last))
        .group_by(t.usage.c.resource)
    )
    return {resource: amount for resource, amount in connection.execute(used)}
