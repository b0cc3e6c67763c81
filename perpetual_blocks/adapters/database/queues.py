"""A queue that several chains work on: what each of them takes of it, what is left for it, and who changes what when.

`items.chain` is the chain that the queue belongs to; `chains.queue` is that chain's name in the rows of the others, and
null in its own. A claim names its chain and session (`claimant`, `claimed_by`).

Chains of one queue do not wait for each other: a session locks its own chain's row, and of the items the ones that it
claims, where rows that another one has locked are skipped. What must not happen at the same moment on PostgreSQL has
the queue's lock (SQLite has one writer at a time anyway):

* whoever completes items has it with the others that do. Whoever adds items, tries them again or gives them up has it
  alone: how many dependencies of an item are not completed yet cannot be counted while one is just being completed.
* whoever decides that nothing is left has it alone as well, so that nothing can just be on its way into the queue.

It is taken after the chain's own row, and before any item and any pool. Rows of items that a transaction changes beside
those that it has claimed, it changes in the order of their ids.
"""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, bindparam, func, literal, or_, select

from perpetual_blocks.adapters.database import postgres
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.rows import CLAIM_ORDER, ITEMS
from perpetual_blocks.session.chain import Chain, ChainStatus
from perpetual_blocks.work import EVERYTHING, ItemStatus, Selector

_GO_ON = (ChainStatus.RUNNING, ChainStatus.WAITING, ChainStatus.PAUSED)


# Who works on it ------------------------------------------------------------------------------------------------------


def queue_of(connection: Connection, chain: str) -> str:
    """The chain whose items a chain works on; the chain itself where it is not there."""
    columns = select(func.coalesce(t.chains.c.queue, t.chains.c.name))
    return connection.execute(columns.where(t.chains.c.name == chain)).scalar() or chain


def works_on(queue: str) -> ColumnElement[bool]:
    """The condition on `chains` for those that work on a queue; its owner is one of them."""
    return or_(t.chains.c.name == queue, t.chains.c.queue == queue)


def names_on(queue: str) -> Select[tuple[str]]:
    """The names of these chains."""
    return select(t.chains.c.name).where(works_on(queue))


def held_by(queue: str, chain: str, ordinal: int) -> ColumnElement[bool]:
    """The condition on `items` for those that a session has claimed."""
    return and_(
        t.items.c.chain == queue,
        t.items.c.status == ItemStatus.CLAIMED,
        t.items.c.claimant == chain,
        t.items.c.claimed_by == ordinal,
    )


# What is there --------------------------------------------------------------------------------------------------------


def taken_by(selector: Selector) -> list[ColumnElement[bool]]:
    """The conditions on `items` for those that a selector takes."""
    conditions: list[ColumnElement[bool]] = []
    if selector.kinds:
        conditions.append(t.items.c.kind.in_(selector.kinds))
    if selector.ids:
        # Not LIKE, which does not tell capitals from small letters on SQLite.
        begins = [func.substr(t.items.c.id, 1, len(start)) == start for start in selector.beginnings]
        conditions.append(or_(t.items.c.id.in_(selector.exact_ids), *begins))
    return conditions


@cache
def candidates(selector: Selector) -> Select[Any]:
    """Available items in the order of claiming, without those that another transaction is just looking at.

    It is executed with `of_queue`, `now`, `many` and `after`.
    """
    return (
        ITEMS.where(
            t.items.c.chain == bindparam("of_queue"),
            t.items.c.status == ItemStatus.AVAILABLE,
            or_(t.items.c.retry_at.is_(None), t.items.c.retry_at <= bindparam("now")),
            *taken_by(selector),
        )
        .order_by(*CLAIM_ORDER)
        .limit(bindparam("many"))
        .offset(bindparam("after"))
        .with_for_update(skip_locked=True)
    )


@cache
def next_retry(selector: Selector) -> Select[Any]:
    """When the first of those that are left alone may be claimed; executed with `of_queue` and `now`."""
    return select(func.min(t.items.c.retry_at)).where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.status == ItemStatus.AVAILABLE,
        t.items.c.retry_at > bindparam("now"),
        *taken_by(selector),
    )


def has_work(connection: Connection, queue: str, selector: Selector) -> bool:
    """Whether an item is available that a chain with this selector takes."""
    return connection.execute(select(_available(queue, selector))).scalar_one()


def is_elsewhere(connection: Connection, chain: Chain) -> bool:
    """Whether others have what may come back to a chain, or lead to more for it.

    An item that another chain has claimed may come back, may unblock others or add some. So may one that is available,
    and taken by another chain that goes on. Where nobody else goes on, nothing more comes: two chains that leave the
    same items to others do not wait for each other.
    """
    columns = select(*(t.chains.c[name] for name in ("name", "planned", "selector")))
    others = columns.where(works_on(chain.queue), t.chains.c.name != chain.name, t.chains.c.status.in_(_GO_ON))
    going = connection.execute(others).all()
    if any(name == chain.queue and not planned for name, planned, _ in going):
        return True
    selectors = {Selector.from_json(selector) for _, _, selector in going}
    # What it takes itself, too: somebody may be looking at it, and pass it over.
    selectors = {EVERYTHING} if EVERYTHING in selectors else selectors | {chain.selector} if selectors else set()
    claimed = select(literal(1)).where(
        t.items.c.chain == chain.queue, t.items.c.status == ItemStatus.CLAIMED, t.items.c.claimant != chain.name
    )
    # In one statement, so that no item is on its way from one of these to the other.
    return connection.execute(
        select(or_(claimed.exists(), *(_available(chain.queue, selector) for selector in selectors)))
    ).scalar_one()


def _available(queue: str, selector: Selector) -> ColumnElement[bool]:
    rows = select(literal(1)).where(t.items.c.chain == queue, t.items.c.status == ItemStatus.AVAILABLE)
    return rows.where(*taken_by(selector)).exists()


# The lock -------------------------------------------------------------------------------------------------------------


def lock_queue(connection: Connection, queue: str, *, shared: bool = False) -> None:
    """Has the queue's lock until this transaction ends, alone or with others that share it."""
    if connection.dialect.name == "postgresql":
        postgres.lock_name(connection, f"queue {queue}", shared=shared)
