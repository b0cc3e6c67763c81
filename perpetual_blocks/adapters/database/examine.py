"""What a chain's rows say of themselves, for a verification; and the repairs of rows.

JSON is read as text here: a column that holds none must be found, and not be stumbled over.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Text, and_, cast, func, literal, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.export import BATCH, TABLES
from perpetual_blocks.adapters.database.queues import names_on
from perpetual_blocks.adapters.database.tallies import tallies_of
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.session.consistency import ChainFacts, ItemFacts, ResultFacts, SessionFacts
from perpetual_blocks.work import ItemStatus

_VARIABLES = 500


def chain_facts(connection: Connection, chain: str, now: float) -> ChainFacts:
    """The facts of a chain within a snapshot, which must last until its items have been read.

    Raises:
        UnknownChain: there is no such chain.
    """
    plain = [column for column in t.chains.c if not isinstance(column.type, JSON)]
    columns = (*plain, cast(t.chains.c.context, Text).label("context"))
    row = connection.execute(select(*columns).where(t.chains.c.name == chain)).mappings().first()
    if row is None:
        raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
    sessions = _sessions(connection, chain)
    outbox = select(t.outbox.c.ordinal).where(t.outbox.c.chain == chain).order_by(t.outbox.c.ordinal)
    return ChainFacts(
        name=row["name"],
        uid=row["uid"],
        status=row["status"],
        ordinal=row["ordinal"],
        holder=row["holder"],
        context=row["context"],
        working=row["lease_until"] > now and any(session.state == SessionState.RUNNING for session in sessions),
        sessions=sessions,
        items=_items(connection, chain),
        outbox=list(connection.execute(outbox).scalars()),
        lost_dependencies=_lost_dependencies(connection, chain),
        not_json=list(_not_json(connection, chain)),
        others_at_work=_at_work(connection, chain),
        tallies=tallies_of(connection, chain),
    )


def _at_work(connection: Connection, queue: str) -> set[tuple[str, int]]:
    running = select(t.sessions.c.chain, t.sessions.c.ordinal).where(t.sessions.c.state == SessionState.RUNNING)
    rows = running.where(t.sessions.c.chain.in_(names_on(queue)), t.sessions.c.chain != queue)
    return {(chain, ordinal) for chain, ordinal in connection.execute(rows)}


def _sessions(connection: Connection, chain: str) -> list[SessionFacts]:
    spent: dict[int, dict[str, float]] = {}
    sums = select(t.usage.c.session, t.usage.c.resource, func.sum(t.usage.c.amount)).where(t.usage.c.chain == chain)
    for session, resource, amount in connection.execute(sums.group_by(t.usage.c.session, t.usage.c.resource)):
        spent.setdefault(session, {})[resource] = amount
    units = (
        select(t.usage.c.session, t.usage.c.item, t.usage.c.unit)
        .where(t.usage.c.chain == chain, t.usage.c.failure == 0)
        .distinct()
        .subquery()
    )
    counts = select(units.c.session, func.count()).group_by(units.c.session)
    finished = {session: count for session, count in connection.execute(counts)}
    columns = [t.sessions.c[name] for name in ("ordinal", "state", "holder", "units")]
    rows = select(*columns, cast(t.sessions.c.usage, Text).label("usage")).where(t.sessions.c.chain == chain)
    return [
        SessionFacts(**row, spent=spent.get(row["ordinal"], {}), finished=finished.get(row["ordinal"], 0))
        for row in connection.execute(rows.order_by(t.sessions.c.ordinal)).mappings()
    ]


def _items(connection: Connection, chain: str) -> Iterator[ItemFacts]:
    rows = select(*_ITEM, _WAITS_FOR.label("waits_for")).where(t.items.c.chain == chain).order_by(t.items.c.position)
    for row in connection.execute(rows, execution_options={"yield_per": BATCH}).mappings():
        yield ItemFacts(**row)


_ITEM = [
    t.items.c[name] for name in ("id", "kind", "status", "blockers", "claimant", "claimed_by", "units", "result_key")
]
_OTHER = t.items.alias("other")
_WAITS_FOR = (
    select(func.count())
    .select_from(t.dependencies)
    .outerjoin(_OTHER, and_(_OTHER.c.chain == t.dependencies.c.chain, _OTHER.c.id == t.dependencies.c.depends_on))
    .where(
        t.dependencies.c.chain == t.items.c.chain,
        t.dependencies.c.item == t.items.c.id,
        func.coalesce(_OTHER.c.status, "") != ItemStatus.COMPLETED,
    )
    .correlate(t.items)
    .scalar_subquery()
)
"""How many of an item's dependencies are not completed."""


def _lost_dependencies(connection: Connection, chain: str) -> list[tuple[str, str]]:
    same = and_(t.items.c.chain == t.dependencies.c.chain, t.items.c.id == t.dependencies.c.depends_on)
    rows = (
        select(t.dependencies.c.item, t.dependencies.c.depends_on)
        .outerjoin(t.items, same)
        .where(t.dependencies.c.chain == chain, t.items.c.id.is_(None))
    )
    return [(item, other) for item, other in connection.execute(rows)]


def _not_json(connection: Connection, chain: str) -> Iterator[tuple[str, str, str]]:
    if connection.dialect.name != "sqlite":
        return  # PostgreSQL refuses what is no JSON
    for name, table in TABLES.items():
        key = [column for column in table.primary_key if column.name != "chain"] or list(table.primary_key)
        owner = table.c.get("chain", table.c.get("name"))
        for column in table.c:
            if isinstance(column.type, JSON) and owner is not None:
                there = cast(column, Text)
                broken = select(*key).where(owner == chain, there.is_not(None), func.json_valid(there) == 0)
                for row in connection.execute(broken):
                    yield name, " ".join(map(str, row)), column.name


def result_facts(connection: Connection, chain: str, after: str, limit: int) -> list[ResultFacts]:
    """Where outcomes lie, in the order of the items' ids."""
    columns = [t.items.c[name] for name in ("id", "units", "result_key", "status")]
    # A session by hand has no outcomes: its agent is elsewhere.
    kept = and_(t.items.c.chain == chain, t.items.c.id > after, t.items.c.result_key != "")
    rows = connection.execute(select(*columns).where(kept).order_by(t.items.c.id).limit(limit))
    return [
        ResultFacts(item=item, unit=units, key=key, completed=status == ItemStatus.COMPLETED)
        for item, units, key, status in rows
    ]


def repair_items(connection: Connection, chain: str, ids: Sequence[str], now: float) -> None:
    """Counts the blockers of these items again, and takes them from sessions that are not running."""
    at_work = select(literal(1)).where(
        t.sessions.c.chain == t.items.c.claimant,
        t.sessions.c.ordinal == t.items.c.claimed_by,
        t.sessions.c.state == SessionState.RUNNING,
    )
    nobodys = {"claimant": None, "claimed_by": None}
    for start in range(0, len(ids), _VARIABLES):
        these = and_(t.items.c.chain == chain, t.items.c.id.in_(ids[start : start + _VARIABLES]))

        def change(*conditions: Any, these: Any = these, **values: Any) -> None:
            connection.execute(update(t.items).where(these, *conditions).values(**values, updated_at=now))

        change(blockers=_WAITS_FOR)
        claimed = t.items.c.status == ItemStatus.CLAIMED
        given_back = {"status": ItemStatus.AVAILABLE, "interruptions": t.items.c.interruptions + 1}
        change(claimed, ~at_work.exists(), **nobodys, **given_back)
        change(t.items.c.status != ItemStatus.CLAIMED, t.items.c.claimed_by.is_not(None), **nobodys)
        change(t.items.c.status == ItemStatus.AVAILABLE, t.items.c.blockers > 0, status=ItemStatus.BLOCKED)
        change(t.items.c.status == ItemStatus.BLOCKED, t.items.c.blockers == 0, status=ItemStatus.AVAILABLE)
