"""Pools in the ledger's database: limits that several holders share, each known by its name and resource.

These functions work within the caller's transaction, so that the claim of a unit and its reservation are one, and its
commit and its settlement. Each that writes locks the pool's row first (on SQLite the whole database is locked already).
A transaction that uses several pools uses them in the order of their (name, resource), after the chain's row: then no
two wait for each other.

A member's `used` is a running total, so that a reservation costs the same with a thousand units behind it as with a
million. It counts the spending since the pool's `since`; when a window moves on, what falls out of it is taken away.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, delete, func, insert, literal, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import insert_if_new
from perpetual_blocks.adapters.database.rows import window_of
from perpetual_blocks.budget import Spend
from perpetual_blocks.budget.pool import Member, refusal
from perpetual_blocks.budget.pool import Refusal as Refused
from perpetual_blocks.errors import InvalidInput

__all__ = [
    "FORGOTTEN",
    "Grant",
    "PoolRequest",
    "PoolUnit",
    "Refused",
    "forget",
    "join",
    "level",
    "outdated",
    "recall",
    "release",
    "release_all",
    "renew",
    "reserve",
    "settle",
    "spends",
    "tidy",
]

FORGOTTEN = "forgotten chains"
"""The holder of what chains that were forgotten have spent of pools that count everything: one row for each uid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUnit:
    """What a reservation is for and a spend is of: one unit of a holder's work.

    Attributes:
        holder: Who spends: a chain's uid, or any name of at most 128 characters.
        item: With `unit`, tells the holder's units apart.
    """

    pool: str
    resource: str
    holder: str
    item: str
    unit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest:
    """A reservation that somebody wants.

    Attributes:
        wanted: All that the unit may spend, in the resource's unit; what is reserved for it already is part of it.
        amount: The pool's limit.
        since: From when on spending counts, in seconds since the epoch; None counts all.
        expires_at: Until when the reservation stands if it is not renewed.
    """

    unit: PoolUnit
    wanted: float
    amount: float
    since: float | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation that was made, or brought to another amount."""

    unit: PoolUnit
    amount: float


# Built once, as in ledger.py.
def _in(table: Table) -> ColumnElement[bool]:
    return and_(table.c.pool == bindparam("of_pool"), table.c.resource == bindparam("of_resource"))


def _is_unit(table: Table) -> ColumnElement[bool]:
    return and_(*(table.c[name] == bindparam(f"of_{name}") for name in PoolUnit.__slots__))


_SINCE = select(t.pools.c.since).where(
    t.pools.c.name == bindparam("of_pool"), t.pools.c.resource == bindparam("of_resource")
)
_LOCK = _SINCE.with_for_update()
_SET_SINCE = update(t.pools).where(
    t.pools.c.name == bindparam("of_pool"), t.pools.c.resource == bindparam("of_resource")
)
_MEMBERS = select(*(t.pool_members.c[name] for name in ("holder", "share", "priority", "used"))).where(
    _in(t.pool_members)
)
_USED = select(func.sum(t.pool_members.c.used)).where(_in(t.pool_members))
_RESERVED = select(func.sum(t.pool_reservations.c.amount)).where(
    _in(t.pool_reservations), t.pool_reservations.c.expires_at > bindparam("now")
)
_THIS_MEMBER = and_(_in(t.pool_members), t.pool_members.c.holder == bindparam("of_holder"))
_SET_MEMBER = update(t.pool_members).where(_THIS_MEMBER)
_COUNT = _SET_MEMBER.values(used=t.pool_members.c.used + bindparam("more"))
_RESERVATIONS = select(t.pool_reservations).where(_in(t.pool_reservations))
_SPENDS_BEFORE = and_(_in(t.pool_spending), t.pool_spending.c.at < bindparam("until"))
_RAN_OUT = and_(_in(t.pool_reservations), t.pool_reservations.c.expires_at <= bindparam("now"))
_RELEASE = delete(t.pool_reservations).where(_is_unit(t.pool_reservations))
_SET_RESERVATION = update(t.pool_reservations).where(_is_unit(t.pool_reservations))
_ADD_RESERVATION = insert(t.pool_reservations)
_SPENT_BETWEEN = (
    select(t.pool_spending.c.holder, func.sum(t.pool_spending.c.amount))
    .where(
        _in(t.pool_spending),
        t.pool_spending.c.at >= bindparam("first"),
        t.pool_spending.c.at < bindparam("end"),
    )
    .group_by(t.pool_spending.c.holder)
)


def join(
    connection: Connection, pool: str, resource: str, holder: str, *, share: float = 0.0, priority: int = 0
) -> None:
    """Makes a holder a member, or changes what it is guaranteed; with a share of 0 it gives its guarantee up.

    Raises:
        InvalidInput: a share outside 0 to 1, or more than the other members leave.
    """
    if not 0 <= share <= 1:
        raise InvalidInput.of("share", share, "a share of the pool's amount from 0 to 1")
    _lock(connection, pool, resource)
    _add_member(connection, pool, resource, holder)
    key = {"of_pool": pool, "of_resource": resource}
    members = connection.execute(_MEMBERS, key).all()
    left = 1 - sum(member.share for member in members if member.holder != holder)
    if round(share - left, 9) > 0:
        expected = f"at most {max(0.0, left):g}: pool {pool} has guaranteed the rest to others"
        raise InvalidInput.of("share", share, expected)
    connection.execute(_SET_MEMBER, {**key, "of_holder": holder, "share": share, "priority": priority})


def reserve(connection: Connection, request: PoolRequest, now: float) -> Grant | Refused:
    """Reserves for a unit before it spends, or extends what is reserved for it; refused, all stays as it was."""
    unit = request.unit
    _show_window(connection, unit.pool, unit.resource, request.since)
    ours, members = _standing(connection, unit, now)
    refused = refusal(unit.pool, unit.resource, request.amount, members, unit.holder, request.wanted)
    if refused is not None:
        return refused
    values = {"amount": request.wanted, "expires_at": request.expires_at}
    if ours:
        connection.execute(_SET_RESERVATION, {**_of(unit), **values})
    else:
        if all(member.holder != unit.holder for member in members):
            _add_member(connection, unit.pool, unit.resource, unit.holder)
        connection.execute(_ADD_RESERVATION, {**_columns(unit), **values})
    return Grant(unit, request.wanted)


def settle(connection: Connection, unit: PoolUnit, actual: float, now: float, failure: int = 0) -> bool:
    """Counts what a unit has really spent, more than was reserved too, and ends its reservation.

    Returns:
        Whether it was counted now; a settlement that is repeated after a crash counts once.
    """
    since = _lock(connection, unit.pool, unit.resource)
    connection.execute(_RELEASE, _of(unit))
    spent = {**_columns(unit), "failure": failure, "amount": actual, "at": now}
    if not insert_if_new(connection, t.pool_spending, **spent):
        return False
    if now >= since:
        _add_member(connection, unit.pool, unit.resource, unit.holder)
        _count(connection, unit.pool, unit.resource, unit.holder, actual)
    return True


def release(connection: Connection, unit: PoolUnit) -> None:
    """Gives a reservation back: the unit has spent nothing."""
    _lock(connection, unit.pool, unit.resource)
    connection.execute(_RELEASE, _of(unit))


def release_all(connection: Connection, holder: str, joining: Iterable[tuple[str, str]] = ()) -> None:
    """Gives all of a holder's reservations back, in every pool: whoever took over from a dead process does this.

    Args:
        joining: The pools, by name and resource, that the caller joins next: they are locked here, in order with the
            others.
    """
    _lock_pools_of(connection, holder, joining)
    connection.execute(delete(t.pool_reservations).where(t.pool_reservations.c.holder == holder))


def renew(connection: Connection, holder: str, expires_at: float, now: float) -> None:
    """Moves on the end of a holder's reservations, in every pool. What has run out stays so: its room may be gone."""
    _lock_pools_of(connection, holder)
    live = and_(t.pool_reservations.c.holder == holder, t.pool_reservations.c.expires_at > now)
    connection.execute(update(t.pool_reservations).where(live).values(expires_at=expires_at))


def level(connection: Connection, pool: str, resource: str, since: float | None, now: float) -> tuple[float, float]:
    """What is used and what is reserved of a pool, in the resource's unit. It locks nothing, and wants a snapshot."""
    key, wanted_since = {"of_pool": pool, "of_resource": resource}, since or 0.0
    counted_since = connection.execute(_SINCE, key).scalar()
    if counted_since is None:
        return 0.0, 0.0
    used = connection.execute(_USED, key).scalar() or 0.0
    if counted_since != wanted_since:
        first, end = sorted((counted_since, wanted_since))
        moved = connection.execute(_SPENT_BETWEEN, {**key, "first": first, "end": end})
        between = sum(amount for _, amount in moved)
        used += -between if wanted_since > counted_since else between
    reserved = connection.execute(_RESERVED, {**key, "now": now}).scalar() or 0.0
    return round(used, 9), round(reserved, 9)


def spends(connection: Connection, pool: str, resource: str, since: float) -> list[Spend]:
    """What everybody has spent of a pool from that instant on, in order."""
    rows = (
        select(t.pool_spending.c.at, t.pool_spending.c.amount)
        .where(t.pool_spending.c.pool == pool, t.pool_spending.c.resource == resource, t.pool_spending.c.at >= since)
        .order_by(t.pool_spending.c.at)
    )
    return [Spend(at, amount) for at, amount in connection.execute(rows)]


# Forgetting -----------------------------------------------------------------------------------------------------------


def forget(connection: Connection, holders: Collection[str]) -> None:
    """Lets holders go that will not spend any more: their guarantees and their reservations end.

    Of what they have spent, a pool that counts everything keeps the sum. A window keeps each spend until it is out.
    """
    columns = select(*(t.pool_members.c[name] for name in ("pool", "resource", "holder")))
    of_holders = columns.where(t.pool_members.c.holder.in_(holders))
    # Sorted here, as above.
    for pool, resource, holder in sorted(tuple(row) for row in connection.execute(of_holders)):
        since = _lock(connection, pool, resource)
        key = {"of_pool": pool, "of_resource": resource, "of_holder": holder}
        connection.execute(_SET_MEMBER, {**key, "share": 0.0, "priority": 0})
        if since == 0:
            _sum_up(connection, pool, resource, holder)
    connection.execute(delete(t.pool_reservations).where(t.pool_reservations.c.holder.in_(holders)))


def recall(connection: Connection, pool: str, resource: str, holder: str) -> float:
    """Takes away the sum of what a forgotten holder has spent, because it is told anew; returns it."""
    since = _lock(connection, pool, resource)
    unit = _of(PoolUnit(pool=pool, resource=resource, holder=FORGOTTEN, item=holder))
    this = _is_unit(t.pool_spending)
    row = connection.execute(select(t.pool_spending.c.amount, t.pool_spending.c.at).where(this), unit).first()
    if row is None:
        return 0.0
    connection.execute(delete(t.pool_spending).where(this), unit)
    if row.at >= since:
        _count(connection, pool, resource, FORGOTTEN, -row.amount)
    return float(row.amount)


def _sum_up(connection: Connection, pool: str, resource: str, holder: str) -> None:
    of_holder = and_(_in(t.pool_spending), t.pool_spending.c.holder == bindparam("of_holder"))
    key = {"of_pool": pool, "of_resource": resource, "of_holder": holder}
    sums = select(func.sum(t.pool_spending.c.amount), func.max(t.pool_spending.c.at)).where(of_holder)
    spent, at = connection.execute(sums, key).one()
    connection.execute(delete(t.pool_spending).where(of_holder), key)
    connection.execute(delete(t.pool_members).where(_THIS_MEMBER), key)
    if spent:
        total = spent + recall(connection, pool, resource, holder)
        settle(connection, PoolUnit(pool=pool, resource=resource, holder=FORGOTTEN, item=holder), total, at)


def outdated(connection: Connection, pool: str, resource: str, before: float, now: float) -> int:
    """How many rows `tidy` would delete, of the spends and reservations."""
    key = {"of_pool": pool, "of_resource": resource}
    since = connection.execute(select(t.pools.c.since).where(t.pools.c.name == pool, t.pools.c.resource == resource))
    until = min(before, _counts_since(pool, since.scalar() or 0.0, now))
    spends = select(func.count()).select_from(t.pool_spending).where(_SPENDS_BEFORE)
    reservations = select(func.count()).select_from(t.pool_reservations).where(_RAN_OUT)
    counted = connection.execute(spends, {**key, "until": until}).scalar_one()
    return int(counted + connection.execute(reservations, {**key, "now": now}).scalar_one())


def tidy(connection: Connection, pool: str, resource: str, before: float, now: float) -> int:
    """Deletes what a pool does not count any more: spends, if they are older than that too, and reservations that ran
    out. With them go the members of which nothing is left, and a pool that has none.

    What a pool counts may move back: a clock may be set back, and of programs that share a pool each says for itself
    from when on spending counts. So no spend goes that is not old as well.

    Returns:
        How many spends and reservations these were.
    """
    key = {"of_pool": pool, "of_resource": resource}
    since = _counts_since(pool, _lock(connection, pool, resource), now)
    _show_window(connection, pool, resource, since)
    spends = connection.execute(delete(t.pool_spending).where(_SPENDS_BEFORE), {**key, "until": min(before, since)})
    reservations = connection.execute(delete(t.pool_reservations).where(_RAN_OUT), {**key, "now": now})
    # Such a member is to the pool as one that is not there; a program or a chain that goes on becomes one again.
    nothing = and_(*(~_has(table) for table in (t.pool_spending, t.pool_reservations)))
    no_guarantee = and_(t.pool_members.c.share == 0, t.pool_members.c.priority == 0)
    connection.execute(delete(t.pool_members).where(_in(t.pool_members), no_guarantee, nothing), key)
    unused = and_(*(~_in_pool(table) for table in (t.pool_spending, t.pool_reservations, t.pool_members)))
    this = and_(t.pools.c.name == bindparam("of_pool"), t.pools.c.resource == bindparam("of_resource"))
    connection.execute(delete(t.pools).where(this, unused), key)
    return spends.rowcount + reservations.rowcount


def _counts_since(pool: str, since: float, now: float) -> float:
    """From when on a pool counts now: its window may have gone on since it was used."""
    window = window_of(pool) if since else None
    return max(since, window.since(now)) if window else since


def _has(table: Table) -> ColumnElement[bool]:
    same = and_(*(table.c[name] == t.pool_members.c[name] for name in ("pool", "resource", "holder")))
    return select(literal(1)).where(same).exists()


def _in_pool(table: Table) -> ColumnElement[bool]:
    return select(literal(1)).where(table.c.pool == t.pools.c.name, table.c.resource == t.pools.c.resource).exists()


# What all of these do -------------------------------------------------------------------------------------------------


def _lock(connection: Connection, pool: str, resource: str) -> float:
    """Nobody else changes the pool until this transaction ends; returns from when on its `used` counts."""
    key = {"of_pool": pool, "of_resource": resource}
    since: float | None = connection.execute(_LOCK, key).scalar()
    if since is None:
        insert_if_new(connection, t.pools, name=pool, resource=resource, since=0.0)
        since = connection.execute(_LOCK, key).scalar_one()
    return since


def _lock_pools_of(connection: Connection, holder: str, and_these: Iterable[tuple[str, str]] = ()) -> None:
    columns = t.pool_reservations.c.pool, t.pool_reservations.c.resource
    rows = connection.execute(select(*columns).where(t.pool_reservations.c.holder == holder).distinct())
    # Sorted here and not by the database, whose collation may have another order than a claim.
    for pool, resource in sorted({*and_these, *((pool, resource) for pool, resource in rows)}):
        _lock(connection, pool, resource)


def _show_window(connection: Connection, pool: str, resource: str, since: float | None) -> None:
    """Locks the pool, and makes `used` count what was spent since then."""
    counted_since, wanted_since = _lock(connection, pool, resource), since or 0.0
    if counted_since == wanted_since:
        return
    between = sorted((counted_since, wanted_since))
    key = {"of_pool": pool, "of_resource": resource}
    moved = connection.execute(_SPENT_BETWEEN, {**key, "first": between[0], "end": between[1]})
    for holder, amount in moved.all():
        _count(connection, pool, resource, holder, -amount if wanted_since > counted_since else amount)
    connection.execute(_SET_SINCE, {**key, "since": wanted_since})


def _standing(connection: Connection, unit: PoolUnit, now: float) -> tuple[bool, list[Member]]:
    """Whether something is reserved for the unit, and all members without that; deletes reservations that ran out."""
    ours = False
    reserved: dict[str, float] = {}
    key = {"of_pool": unit.pool, "of_resource": unit.resource}
    for row in connection.execute(_RESERVATIONS, key).mappings().all():
        of = PoolUnit(**{name: row[name] for name in PoolUnit.__slots__})
        if row["expires_at"] <= now:
            connection.execute(_RELEASE, _of(of))
        elif of == unit:
            ours = True
        else:
            reserved[of.holder] = reserved.get(of.holder, 0.0) + row["amount"]
    members = [
        Member(**row, reserved=reserved.get(row["holder"], 0.0)) for row in connection.execute(_MEMBERS, key).mappings()
    ]
    return ours, members


def _add_member(connection: Connection, pool: str, resource: str, holder: str) -> None:
    values = {"share": 0.0, "priority": 0, "used": 0.0}
    insert_if_new(connection, t.pool_members, pool=pool, resource=resource, holder=holder, **values)


def _count(connection: Connection, pool: str, resource: str, holder: str, amount: float) -> None:
    key = {"of_pool": pool, "of_resource": resource, "of_holder": holder}
    connection.execute(_COUNT, {**key, "more": amount})


def _columns(unit: PoolUnit) -> dict[str, str | int]:
    return {name: getattr(unit, name) for name in PoolUnit.__slots__}


def _of(unit: PoolUnit) -> dict[str, str | int]:
    return {f"of_{name}": value for name, value in _columns(unit).items()}
