"""A chain's rows on their way out to a backup, and back in.

A chain that works on another one's queue has no items of its own: they are in the backup of the chain that they belong
to. What it has done since that one's last backup is found again by the outcomes, as what the chain itself has done is.

What changed after a mark is told by numbers that only go up where a table has one: sessions by their ordinal, usage and
failures by the session, dependencies by their item's position. Items change in place, and are told by the time of their
last change: since the mark, or since the first session after it began, whichever clock was behind; and a minute more,
which is how far apart the clocks of a chain's machines may be at all if its lease is to mean something.
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, or_, select, true, update

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import insert_all_if_new
from perpetual_blocks.errors import DamagedDocument
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionState
from perpetual_blocks.session.ledger import Mark, Row
from perpetual_blocks.work import ItemStatus
from perpetual_blocks.work.item import UNIT

OVERLAP_SECONDS = 60.0
BATCH = 1000

# Rows are put back in this order, too: what others refer to comes first.
TABLES = {
    table.name: table
    for table in (
        t.chains,
        t.sessions,
        t.items,
        t.dependencies,
        t.usage,
        t.failures,
        t.documents,
        t.outbox,
        t.forecasts,
        t.pool_spending,
    )
}


def mark_of(connection: Connection, chain: Chain, now: float) -> Mark:
    """Up to where a snapshot has the chain."""
    last = select(func.coalesce(func.max(t.items.c.position), 0)).where(t.items.c.chain == chain.name)
    return Mark(ordinal=chain.ordinal, position=connection.execute(last).scalar_one(), at=now)


def changed_rows(connection: Connection, chain: Chain, after: Mark | None) -> Iterator[Row]:
    """The rows that changed after a mark, table by table; all of them for None."""
    since = 0.0 if after is None else _since(connection, chain, after)
    for table, query in _queries(chain, after, since).items():
        for row in connection.execute(query, execution_options={"yield_per": BATCH}).mappings():
            yield table, dict(row)


def _since(connection: Connection, chain: Chain, after: Mark) -> float:
    later = and_(t.sessions.c.chain == chain.name, t.sessions.c.ordinal > after.ordinal)
    began = connection.execute(select(func.min(t.sessions.c.started_at)).where(later)).scalar()
    return min(after.at, began if began is not None else after.at) - OVERLAP_SECONDS


def _queries(chain: Chain, after: Mark | None, since: float) -> dict[str, Select[tuple[object, ...]]]:
    everything = true()
    changed = t.items.c.updated_at >= since

    def rows(table: Table, condition: ColumnElement[bool]) -> Select[tuple[object, ...]]:
        return select(table).where(table.c.chain == chain.name, condition if after else everything)

    def of_items(
        table: Table, item: ColumnElement[str], *conditions: ColumnElement[bool]
    ) -> Select[tuple[object, ...]]:
        if after is None:
            return rows(table, everything)
        queue = table.c.chain if table is t.dependencies else chain.queue
        same = and_(t.items.c.chain == queue, t.items.c.id == item)
        return rows(table, and_(*conditions)).join(t.items, same)

    ordinal, position = (after.ordinal, after.position) if after else (0, 0)
    not_backup = t.documents.c.kind != "backup"
    return {
        "chains": select(t.chains).where(t.chains.c.name == chain.name),
        "sessions": rows(t.sessions, t.sessions.c.ordinal >= ordinal),
        "items": rows(t.items, changed),
        "dependencies": of_items(t.dependencies, t.dependencies.c.item, t.items.c.position > position),
        # A unit's spend and its item's change are one commit.
        "usage": of_items(t.usage, t.usage.c.item, changed, t.usage.c.session > ordinal),
        "failures": of_items(t.failures, t.failures.c.item, changed, t.failures.c.session > ordinal),
        # Checkpoints are few, and are forgotten and pinned: the latest segment has all that are left.
        "documents": rows(t.documents, or_(t.documents.c.kind == "checkpoint", t.documents.c.ordinal >= ordinal)).where(
            not_backup
        ),
        "outbox": rows(t.outbox, t.outbox.c.ordinal >= ordinal),
        "forecasts": rows(t.forecasts, everything),
        "pool_spending": select(t.pool_spending).where(
            t.pool_spending.c.holder == chain.uid, t.pool_spending.c.at >= since
        ),
    }


def put_rows(connection: Connection, segments: Iterable[Iterable[Row]]) -> None:
    """Adds the rows of segments, the newest first: of a row that several have, the first one counts.

    Raises:
        DamagedDocument: a row is of a table, or has a column, that this version does not know.
    """
    for number, segment in enumerate(segments):
        batch: list[dict[str, object]] = []
        heading: tuple[str, tuple[str, ...]] = ("", ())
        for table, values in segment:
            if (table, tuple(values)) != heading:
                _put(connection, heading[0], batch)
                heading, batch = (table, tuple(values)), []
                _check(table, values)
            if table == "documents" and values["kind"] == "checkpoint" and number > 0:
                continue
            batch.append(dict(values))
            if len(batch) == BATCH:
                _put(connection, table, batch)
                batch = []
        _put(connection, heading[0], batch)


def _check(table: str, values: Iterable[str]) -> None:
    unknown = [table] if table not in TABLES else [name for name in values if name not in TABLES[table].c]
    if unknown:
        raise DamagedDocument(
            f"backup: got rows of {table} with {', '.join(unknown)}; expected the tables and columns of this version: "
            "the backup was made by a newer perpetual-blocks, upgrade this one"
        )


def _put(connection: Connection, table: str, batch: list[dict[str, object]]) -> None:
    if table != "pool_spending":
        insert_all_if_new(connection, TABLES[table], batch) if batch else None
        return
    accounts = {(str(row["pool"]), str(row["resource"]), str(row["holder"])) for row in batch}
    for pool, resource, holder in sorted(accounts):
        pools.recall(connection, pool, resource, holder)  # where the chain was forgotten, this is told anew
    for row in batch:
        amount, at, failure = (row.pop(name) for name in ("amount", "at", "failure"))
        pools.settle(connection, pools.PoolUnit(**row), amount, at, failure)  # type: ignore[arg-type]


def pause_restored(connection: Connection, chain: str, reason: str, now: float) -> None:
    """Makes rows that were saved while a session was at work those of a chain that nobody works on."""
    connection.execute(
        update(t.chains)
        .where(t.chains.c.name == chain)
        .values(
            status=ChainStatus.PAUSED,
            reason=reason,
            holder=None,
            lease_until=0.0,
            resume_at=None,
            wanted=None,
            wanted_why=None,
            asks_until=None,
            updated_at=now,
        )
    )
    # Units that were finished after the backup have left their outcomes where they are looked for.
    open_items = and_(t.items.c.chain == chain, t.items.c.status != ItemStatus.COMPLETED, t.items.c.claims.is_(None))
    connection.execute(update(t.items).where(open_items).values(claims=UNIT))
    # The session that made the backup had come to its end: all that is missing is how it closed.
    ended = {
        "state": SessionState.WRAPPED,
        "ended_at": now,
        "stop_reason": "restored",
        "stop_message": "it had saved its state and was about to end when the backup was made",
        "graceful": True,
    }
    running = and_(t.sessions.c.chain == chain, t.sessions.c.state == SessionState.RUNNING)
    connection.execute(update(t.sessions).where(running).values(**ended))
    claimed = and_(t.items.c.chain == chain, t.items.c.status == ItemStatus.CLAIMED)
    given_back = {"status": ItemStatus.AVAILABLE, "claimant": None, "claimed_by": None}
    interrupted = {**given_back, "interruptions": t.items.c.interruptions + 1}
    connection.execute(update(t.items).where(claimed).values(**interrupted, updated_at=now))
    # The follow-on that was recorded ahead may have run long ago; whoever resumes the chain makes a new one.
    ordinal = select(t.chains.c.ordinal).where(t.chains.c.name == chain).scalar_subquery()
    ahead = or_(t.outbox.c.created_at.is_(None), t.outbox.c.ordinal > ordinal)
    connection.execute(t.outbox.delete().where(t.outbox.c.chain == chain, ahead))
