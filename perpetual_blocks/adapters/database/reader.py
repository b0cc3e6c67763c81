"""What can be read of the ledger, by anybody and at any time: each method is one snapshot, and locks nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, literal, select

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import connect, reading, shown, time_of
from perpetual_blocks.adapters.database.examine import chain_facts, result_facts
from perpetual_blocks.adapters.database.export import changed_rows, mark_of
from perpetual_blocks.adapters.database.patient import is_away, patient
from perpetual_blocks.adapters.database.queues import is_elsewhere, names_on, queue_of, taken_by, works_on
from perpetual_blocks.adapters.database.rows import (
    CLAIM_ORDER,
    ITEMS,
    chain_of,
    find_chain,
    follow_on_of,
    item_of,
    pool_key,
    session_of,
)
from perpetual_blocks.adapters.database.tallies import counts_of
from perpetual_blocks.budget import Expectation, Limit, Spend
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.session.attempts import Attempt, Story
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, Wanted
from perpetual_blocks.session.consistency import ChainFacts, ResultFacts
from perpetual_blocks.session.ledger import (
    Document,
    DocumentKind,
    Export,
    Fence,
    FollowOn,
    KindCount,
    Mark,
    Turn,
    UnitCost,
)
from perpetual_blocks.usage import RESOURCES
from perpetual_blocks.work import EVERYTHING, Item, ItemStatus, Selector

LEARNED_ROWS = 2048
LATEST_START_UPS = 5
OPEN = (ItemStatus.AVAILABLE, ItemStatus.CLAIMED, ItemStatus.BLOCKED)

_TURN = (
    select(
        *(t.chains.c[name] for name in ("status", "ordinal", "epoch", "wanted", "lease_until")),
        t.outbox.c.idempotency_key,
    )
    .outerjoin(t.outbox, and_(t.outbox.c.chain == t.chains.c.name, t.outbox.c.ordinal == t.chains.c.ordinal + 1))
    .where(t.chains.c.name == bindparam("chain"))
)


@patient(but=["close", "export", "facts"])
class LedgerReader:
    """The reading half of the ledger; `SqlLedger` has the transactions that change it.

    Args:
        address: A path, or a database URL.
        clock: Tells the time; the database's own where it has one (PostgreSQL), so that machines with wrong clocks
            agree, else this machine's.
        patience: For how long each transaction is tried again while the database is away.
    """

    def __init__(self, address: str, clock: Clock | None = None, patience: Patience = IMPATIENT) -> None:
        self.patience = patience
        self.renewed: dict[Fence, float] = {}
        self._clock = clock
        self._engine = patience(lambda: connect(address), is_away)
        self.shown = shown(self._engine.url)

    def _now(self, connection: Connection) -> float:
        return time_of(connection, self._clock)

    def now(self) -> float:
        with reading(self._engine) as connection:
            return self._now(connection)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    # Looking --------------------------------------------------------------------------------------------------------

    def chain(self, name: str) -> Chain:
        with reading(self._engine) as connection:
            chain = find_chain(connection, name)
            if chain is None:
                names = connection.execute(select(t.chains.c.name).order_by(t.chains.c.updated_at.desc()).limit(5))
                known = ", ".join(names.scalars()) or "none yet"
                raise UnknownChain(f"chain: got {name!r}; expected one of {self.shown} (latest: {known})")
            return chain

    def chains(self, queue: str | None = None) -> list[Chain]:
        rows = select(t.chains).order_by(t.chains.c.updated_at.desc(), t.chains.c.name)
        if queue is not None:
            rows = rows.where(works_on(queue))
        with reading(self._engine) as connection:
            return [chain_of(row) for row in connection.execute(rows).mappings()]

    def sessions(self, chain: str) -> list[SessionRecord]:
        rows = select(t.sessions).where(t.sessions.c.chain == chain).order_by(t.sessions.c.ordinal)
        with reading(self._engine) as connection:
            return [session_of(row) for row in connection.execute(rows).mappings()]

    def documents(self, chain: str, kind: DocumentKind) -> list[Document]:
        rows = (
            select(t.documents)
            .where(t.documents.c.chain == chain, t.documents.c.kind == kind)
            .order_by(t.documents.c.ordinal.desc())
        )
        with reading(self._engine) as connection:
            return [
                Document(kind, row["ordinal"], row["key"], row["digest"], row["size"], row["pinned"], row["at"])
                for row in connection.execute(rows).mappings()
            ]

    def counts(self, chain: str, *, taken: bool = False) -> dict[ItemStatus, int]:
        with reading(self._engine) as connection:
            return counts_of(connection, *_share(connection, chain, taken=taken))

    def kinds(self, chain: str) -> list[KindCount]:
        with reading(self._engine) as connection:
            rows = (
                select(t.items.c.kind, t.items.c.status, func.count(), func.sum(t.items.c.units))
                .where(t.items.c.chain == queue_of(connection, chain))
                .group_by(t.items.c.kind, t.items.c.status)
            )
            found: dict[str, tuple[dict[ItemStatus, int], int]] = {}
            for kind, status, count, units in connection.execute(rows):
                items, before = found.get(kind, ({}, 0))
                found[kind] = {**items, ItemStatus(status): count}, before + int(units)
            return [KindCount(kind, *found[kind]) for kind in sorted(found)]

    def has_more_than(self, chain: str, count: int) -> bool:
        with reading(self._engine) as connection:
            queue, selector = _share(connection, chain, taken=True)
            rows = select(literal(1)).where(t.items.c.chain == queue, t.items.c.status.in_(OPEN), *taken_by(selector))
            return connection.execute(rows.offset(count).limit(1)).first() is not None

    def is_elsewhere(self, chain: str) -> bool:
        with reading(self._engine) as connection:
            found = find_chain(connection, chain)
            return found is not None and is_elsewhere(connection, found)

    def items(
        self, chain: str, status: ItemStatus | None = None, limit: int = 100, *, taken: bool = False
    ) -> list[Item]:
        rows = ITEMS.order_by(*CLAIM_ORDER).limit(limit)
        if status is not None:
            rows = rows.where(t.items.c.status == status)
        with reading(self._engine) as connection:
            queue, selector = _share(connection, chain, taken=taken)
            these = rows.where(t.items.c.chain == queue, *taken_by(selector))
            return [item_of(row) for row in connection.execute(these)]

    def story(self, chain: str, item: str) -> Story:
        with reading(self._engine) as connection:
            queue = queue_of(connection, chain)
            of_item = and_(t.failures.c.chain.in_(names_on(queue)), t.failures.c.item == item)
            spent = and_(t.usage.c.chain.in_(names_on(queue)), t.usage.c.item == item, t.usage.c.failure > 0)
            row = connection.execute(ITEMS.where(t.items.c.chain == queue, t.items.c.id == item)).first()
            if row is None:
                raise UnknownChain(
                    f"item: got {item!r}; expected an item of {chain}; `perpetual items list {chain}` has them"
                )
            usage: dict[int, dict[str, float]] = {}
            for one in connection.execute(select(t.usage).where(spent).order_by(t.usage.c.resource)).mappings():
                usage.setdefault(one["failure"], {})[one["resource"]] = one["amount"]
            failures = connection.execute(select(t.failures).where(of_item).order_by(t.failures.c.failure)).mappings()
            attempts = [
                Attempt(
                    number=one["failure"],
                    unit=one["unit"] + 1,
                    chain=one["chain"],
                    session=one["session"],
                    error=one["error"],
                    cut_off=one["cut_off"],
                    usage=usage.get(one["failure"], {}),
                    at=one["at"],
                )
                for one in failures
            ]
            return Story(item_of(row), attempts)

    # Backups --------------------------------------------------------------------------------------------------------

    def has_chain(self, chain: str) -> bool:
        with reading(self._engine) as connection:
            return find_chain(connection, chain) is not None

    @contextmanager
    def export(self, chain: str, after: Mark | None) -> Iterator[Export]:
        with reading(self._engine, snapshot=True) as connection:
            now = self._now(connection)
            found = find_chain(connection, chain)
            if found is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of {self.shown}")
            yield Export(found.uid, mark_of(connection, found, now), changed_rows(connection, found, after))

    # Verification ---------------------------------------------------------------------------------------------------

    @contextmanager
    def facts(self, chain: str) -> Iterator[ChainFacts]:
        with reading(self._engine, snapshot=True) as connection:
            yield chain_facts(connection, chain, self._now(connection))

    def results(self, chain: str, after: str, limit: int) -> list[ResultFacts]:
        with reading(self._engine) as connection:
            return result_facts(connection, chain, after, limit)

    def finished_in(self, chain: str, item: str, unit: int) -> tuple[str, int, str | None] | None:
        of_session = and_(t.sessions.c.chain == t.usage.c.chain, t.sessions.c.ordinal == t.usage.c.session)
        # The account numbers units from 0.
        this = and_(
            t.usage.c.chain.in_(names_on(chain)),
            t.usage.c.item == item,
            t.usage.c.unit == unit - 1,
            t.usage.c.failure == 0,
        )
        columns = [t.sessions.c[name] for name in ("chain", "ordinal", "flow_run_id")]
        with reading(self._engine) as connection:
            row = connection.execute(select(*columns).join(t.usage, of_session).where(this).limit(1)).first()
            return (row[0], row[1], row[2]) if row else None

    # Follow-ons -----------------------------------------------------------------------------------------------------

    def turn(self, chain: str) -> Turn:
        with reading(self._engine) as connection:
            row = connection.execute(_TURN, {"chain": chain}).mappings().first()
            if row is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
            return Turn(
                status=ChainStatus(row["status"]),
                ordinal=row["ordinal"],
                epoch=row["epoch"],
                wanted=Wanted(row["wanted"]) if row["wanted"] else None,
                key=row["idempotency_key"],
                lapsed=row["lease_until"] <= self._now(connection),
            )

    def start_ups(self, chain: str) -> list[float]:
        same = and_(t.sessions.c.chain == t.outbox.c.chain, t.sessions.c.ordinal == t.outbox.c.ordinal)
        by_itself = t.sessions.c.flow_run_id == t.outbox.c.flow_run_id
        at_once = and_(t.outbox.c.chain == chain, by_itself, t.outbox.c.not_before.is_(None))
        came_at = t.sessions.c.started_at - func.coalesce(t.sessions.c.waited, 0.0)
        rows = select(came_at - t.outbox.c.created_at).join(t.sessions, same).where(at_once)
        with reading(self._engine) as connection:
            latest = rows.order_by(t.outbox.c.ordinal.desc()).limit(LATEST_START_UPS)
            return [float(seconds) for seconds in connection.execute(latest).scalars()]

    def pending_follow_ons(self, chain: str | None = None) -> list[FollowOn]:
        # Those of a chain that a person holds stay where they are until it is resumed.
        waits = and_(t.chains.c.name == t.outbox.c.chain, t.chains.c.status == ChainStatus.WAITING)
        rows = (
            select(t.outbox)
            .join(t.chains, waits)
            .where(t.outbox.c.created_at.is_(None), t.outbox.c.ordinal == t.chains.c.ordinal + 1)
            .order_by(t.outbox.c.recorded_at)
        )
        if chain is not None:
            rows = rows.where(t.outbox.c.chain == chain)
        with reading(self._engine) as connection:
            return [follow_on_of(row) for row in connection.execute(rows).mappings()]

    def chain_of_run(self, flow_run_id: str) -> str | None:
        with reading(self._engine) as connection:
            for table in (t.sessions, t.outbox):
                found = connection.execute(select(table.c.chain).where(table.c.flow_run_id == flow_run_id)).scalar()
                if found is not None:
                    return str(found)
            return None

    def waiting_follow_ons(self) -> list[FollowOn]:
        waits = and_(t.chains.c.name == t.outbox.c.chain, t.chains.c.status == ChainStatus.WAITING)
        with reading(self._engine) as connection:
            rows = (
                select(t.outbox)
                .join(t.chains, waits)
                .where(
                    t.outbox.c.created_at.is_not(None),
                    t.outbox.c.not_before > self._now(connection),
                    t.outbox.c.ordinal == t.chains.c.ordinal + 1,
                )
            )
            return [follow_on_of(row) for row in connection.execute(rows).mappings()]

    # What was spent, and what was learned from it ------------------------------------------------------------------

    def spends(self, chain: str, resource: str, since: float) -> list[Spend]:
        mine = and_(t.usage.c.chain == chain, t.usage.c.resource == resource, t.usage.c.at >= since)
        rows = select(t.usage.c.at, t.usage.c.amount).where(mine).order_by(t.usage.c.at)
        with reading(self._engine) as connection:
            return [Spend(at, amount) for at, amount in connection.execute(rows)]

    def forecasts(self, chain: str) -> tuple[dict[str, Any], int]:
        with reading(self._engine) as connection:
            row = connection.execute(select(t.forecasts).where(t.forecasts.c.chain == chain)).mappings().first()
            return (row["state"], row["session"]) if row else ({}, 0)

    def forecasts_of(self, agent: str) -> dict[str, Any]:
        rows = (
            select(t.forecasts.c.state)
            .join(t.chains, t.chains.c.name == t.forecasts.c.chain)
            .where(t.chains.c.agent == agent)
            .order_by(t.chains.c.updated_at.desc())
            .limit(1)
        )
        with reading(self._engine) as connection:
            return connection.execute(rows).scalar() or {}

    def unit_costs(self, chain: str, after: int) -> list[UnitCost]:
        later = and_(t.sessions.c.chain == chain, t.sessions.c.ordinal > after)
        units: dict[tuple[str, int, int], UnitCost] = {}
        with reading(self._engine) as connection:
            # From an index over resource and time: there are as many rows as the chain has finished units.
            since = connection.execute(select(func.min(t.sessions.c.started_at)).where(later)).scalar()
            if since is None:
                return []
            used = connection.execute(select(t.sessions.c.usage).where(later)).scalars()
            resources = sorted({*RESOURCES, *(name for usage in used for name in usage)})
            of_item = and_(t.items.c.chain == queue_of(connection, chain), t.items.c.id == t.usage.c.item)
            rows = (
                select(t.usage, t.items.c.kind, t.items.c.estimate, t.items.c.bound, t.items.c.complexity)
                .join(t.items, of_item)
                .where(t.usage.c.chain == chain, t.usage.c.resource.in_(resources), t.usage.c.at >= since)
                .where(t.usage.c.session > after)
                .order_by(t.usage.c.at.desc(), t.usage.c.item, t.usage.c.unit, t.usage.c.failure)
                .limit(LEARNED_ROWS)
            )
            for row in connection.execute(rows).mappings():
                said = Expectation(row["kind"], row["estimate"], row["bound"], row["complexity"])
                key = (row["item"], row["unit"], row["failure"])
                unit = units.setdefault(key, UnitCost(said, {}, finished=row["failure"] == 0))
                unit.usage[row["resource"]] = row["amount"]
        return list(reversed(units.values()))

    def pool_spends(self, limit: Limit, since: float) -> list[Spend]:
        with reading(self._engine) as connection:
            return pools.spends(connection, pool_key(limit), limit.resource, since)

    def pool_level(self, limit: Limit) -> tuple[float, float]:
        with reading(self._engine, snapshot=True) as connection:
            now = self._now(connection)
            since = limit.window.since(now) if limit.window else None
            return pools.level(connection, pool_key(limit), limit.resource, since, now)


def _share(connection: Connection, chain: str, *, taken: bool) -> tuple[str, Selector]:
    """The queue that a chain works on, and what is to be seen of it: all, or what the chain takes."""
    found = find_chain(connection, chain) if taken else None
    return (found.queue, found.selector) if found is not None else (queue_of(connection, chain), EVERYTHING)
