"""The items of a chain's queue: how they come into it, move in it, and what a person decides on them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, bindparam, false, func, insert, literal_column, or_, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import reopen
from perpetual_blocks.adapters.database.many import ForMany
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.adapters.database.queues import lock_queue
from perpetual_blocks.adapters.database.rows import find_chain
from perpetual_blocks.adapters.database.tallies import tally
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.errors import InvalidInput, LedgerError, UnknownChain
from perpetual_blocks.session.chain import Chain
from perpetual_blocks.session.ledger import Fence
from perpetual_blocks.work import ItemStatus, WorkItem, check_dependencies, sources

VARIABLES = 500  # SQLite allows 999 variables in a statement in its oldest builds

MOVE = {
    target: update(t.items).where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.id == bindparam("of_item"),
        or_(
            false(), *(t.items.c.status == literal_column(f"'{source}'") for source in sources(target))
        ),  # IN cannot be executed for many rows
    )
    for target in ItemStatus
}
"""By what an item becomes; each sets the other names that it is executed with."""

_COUNTERS = ("attempts", "failures", "interruptions", "cut_offs", "passed_over", "units")
_GIVEN = ("kind", "payload", "priority", "estimate", "bound", "complexity", "max_attempts")
_ADD = ForMany(
    insert(t.items).values(dict.fromkeys(_COUNTERS, literal_column("0"))),
    "chain",
    "id",
    "position",
    *_GIVEN,
    "status",
    "blockers",
    "updated_at",
)
_DEPEND = ForMany(insert(t.dependencies), *t.dependencies.c.keys())


@patient()
class ItemWriter(LedgerWriter):
    """The transactions of the queue outside of units."""

    def add_items(self, chain: str, items: Iterable[WorkItem], *, planned_by: Fence | None = None) -> int:
        items = list(items)  # whatever makes them, a file or an agent's plan, must not run within the write lock
        with self._writing() as connection:
            if planned_by is not None:
                self._pass_fence(connection, planned_by, planned=True)
            lock_queue(connection, chain)
            added = insert_items(connection, _owner(connection, chain), items, self._now(connection))
            if added:
                reopen(connection, chain, self._now(connection))
            return added

    def retry_items(self, chain: str, ids: Sequence[str]) -> int:
        with self._writing() as connection:
            lock_queue(connection, chain)
            _owner(connection, chain)
            now = self._now(connection)
            afresh = {"attempts": 0, "cut_offs": 0, "passed_over": 0, "retry_at": None, "crashes": 0}
            these = and_(t.items.c.chain == chain, t.items.c.id.in_(ids))
            rows = connection.execute(
                select(t.items.c.id, t.items.c.blockers).where(these, t.items.c.status == ItemStatus.DISCARDED)
            ).all()
            left_alone = and_(these, t.items.c.status == ItemStatus.AVAILABLE, t.items.c.retry_at > now)
            sooner = connection.execute(update(t.items).where(left_alone).values(updated_at=now, **afresh)).rowcount
            for item, blockers in rows:
                target = ItemStatus.BLOCKED if blockers else ItemStatus.AVAILABLE
                move(connection, chain, item, target, now, **afresh)
            if rows:
                reopen(connection, chain, now)
            return len(rows) + sooner

    def discard_items(self, chain: str, ids: Sequence[str], reason: str) -> int:
        with self._writing() as connection:
            lock_queue(connection, chain)
            _owner(connection, chain)
            these = and_(t.items.c.chain == chain, t.items.c.id.in_(ids))
            still_open = t.items.c.status.in_([ItemStatus.AVAILABLE, ItemStatus.BLOCKED])
            # Locked, as a session may be about to claim one.
            rows = select(t.items.c.id).where(these, still_open).order_by(t.items.c.id).with_for_update()
            wanted = list(connection.execute(rows).scalars())
            for item in wanted:
                move(connection, chain, item, ItemStatus.DISCARDED, self._now(connection), error=reason, retry_at=None)
            return len(wanted)


def _owner(connection: Connection, chain: str) -> Chain:
    """The chain, if the items of its queue are its own.

    Raises:
        UnknownChain: there is no such chain.
        InvalidInput: it works on the queue of another one.
    """
    row = find_chain(connection, chain)
    if row is None:
        raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
    if not row.owns_queue:
        raise InvalidInput.of("chain", chain, f"one with a queue of its own; it works on that of {row.queue}")
    return row


def move(connection: Connection, queue: str, item: str, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item along an edge of the transition table; anything else is a mistake of this program."""
    changes = {"of_queue": queue, "of_item": item, "status": target, "updated_at": now, **values}
    if connection.execute(MOVE[target], changes).rowcount != 1:
        raise LedgerError(f"item {item} of {queue} cannot become {target}")


def insert_items(connection: Connection, chain: Chain, items: Iterable[WorkItem], now: float) -> int:
    """Adds the items that are new to a chain's queue; raises before the first row is written if one of them is wrong.

    The caller has the queue's lock.

    Raises:
        InvalidInput: as `Ledger.add_items` says.
    """
    batch = _distinct(items, _kinds(connection, chain))
    present = _present(connection, chain.queue, list(batch))
    for item in batch.values():
        if item.id in present:
            _check_same(item, *present[item.id][:2])
    new = [item for item in batch.values() if item.id not in present]
    budget = chain.budget
    for item in new:  # what is there already was added under the budget of its time
        budget.check_amounts(item.estimate, f"WorkItem({item.id!r}).estimate")
        budget.check_amounts(item.bound, f"WorkItem({item.id!r}).bound")
    named = {other for item in new for other in item.depends_on if other not in batch}
    others = _present(connection, chain.queue, list(named))
    check_dependencies(new, (*others, *present))
    if not new:
        return 0
    completed = {item for item, (_, _, status) in {**others, **present}.items() if status == ItemStatus.COMPLETED}
    last = select(func.coalesce(func.max(t.items.c.position), 0)).where(t.items.c.chain == chain.queue)
    position: int = connection.execute(last).scalar_one()
    _ADD(connection, [_row(chain.queue, item, position + n, completed, now) for n, item in enumerate(new, start=1)])
    tally(connection, chain.queue, chain.name, added=(item.kind for item in new))
    edges = [{"chain": chain.queue, "item": item.id, "depends_on": other} for item in new for other in item.depends_on]
    _DEPEND(connection, edges)
    return len(new)


def _kinds(connection: Connection, chain: Chain) -> list[str]:
    """The kinds that may be in a chain's queue: those of its own agent, and of the queue's."""
    owner = chain if chain.owns_queue else find_chain(connection, chain.queue)
    known = [kind for one in (chain, owner) if one is not None for kind in one.settings.get("kinds", [])]
    return list(dict.fromkeys(known))


def _distinct(items: Iterable[WorkItem], kinds: Sequence[str]) -> dict[str, WorkItem]:
    batch: dict[str, WorkItem] = {}
    for item in items:
        if not isinstance(item, WorkItem):
            raise InvalidInput.of("plan", item, "WorkItem objects")
        where = f"WorkItem({item.id!r})"
        if item.kind not in kinds:
            raise InvalidInput.of(f"{where}.kind", item.kind, f"one of the agent's kinds: {', '.join(kinds)}")
        first = batch.setdefault(item.id, item)
        _check_same(item, first.kind, dict(first.payload))
    return batch


def _check_same(item: WorkItem, kind: str, payload: dict[str, Any]) -> None:
    if item.kind != kind:
        raise InvalidInput.of(f"WorkItem({item.id!r}).kind", item.kind, f"{kind!r}, as this id has already")
    if item.payload != payload:
        raise InvalidInput.of(
            f"WorkItem({item.id!r}).payload",
            item.payload,
            "the payload that this id has already, or another id",
        )


def _present(connection: Connection, queue: str, ids: Sequence[str]) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Kind, payload and status of those of the ids that the queue has."""
    found: dict[str, tuple[str, dict[str, Any], str]] = {}
    columns = select(t.items.c.id, t.items.c.kind, t.items.c.payload, t.items.c.status)
    for start in range(0, len(ids), VARIABLES):
        some = ids[start : start + VARIABLES]
        for item, kind, payload, status in connection.execute(
            columns.where(t.items.c.chain == queue, t.items.c.id.in_(some))
        ):
            found[item] = (kind, payload, status)
    return found


def _row(queue: str, item: WorkItem, position: int, completed: set[str], now: float) -> dict[str, Any]:
    blockers = sum(other not in completed for other in item.depends_on)
    return {
        "chain": queue,
        "id": item.id,
        "position": position,
        "kind": item.kind,
        "payload": item.payload,
        "priority": item.priority,
        "estimate": dict(item.estimate),
        "bound": dict(item.bound),
        "complexity": item.complexity,
        "max_attempts": item.max_attempts,
        "status": ItemStatus.BLOCKED if blockers else ItemStatus.AVAILABLE,
        "blockers": blockers,
        "updated_at": now,
    }
