"""Forgetting chains on both databases: all of a chain's rows go, nobody else's, and pools count what they counted."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from postgres_server import address_of
from sqlalchemy import Connection, Table, func, select
from support import LEASE, FakeClock, LedgerFactory, close, commit_unit, finish_next, open_session

from perpetual_blocks.adapters.database import SqlLedger, pools
from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.engine import reading, writing
from perpetual_blocks.adapters.database.export import TABLES
from perpetual_blocks.adapters.database.pool import Pool
from perpetual_blocks.adapters.database.queues import lock_queue
from perpetual_blocks.adapters.database.rows import pool_key, window_of
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.backup import back_up, rebuild
from perpetual_blocks.session.chain import ChainStatus, SessionState, Wanted
from perpetual_blocks.session.documents import document_folders
from perpetual_blocks.session.ledger import Document, Fence, Reserve
from perpetual_blocks.session.retention import Pruned, prune
from perpetual_blocks.testing import MemoryDocuments
from perpetual_blocks.work import Outcome, WorkItem

DAY = 86400.0
TOTAL = Limit("tokens", 1000.0, pool="team", scope="total", share=0.5, priority=2)
MONTH = Limit("tokens", 500.0, pool="team", scope="window", window="month")
HOUR = Limit("tokens", 500.0, pool="team", scope="window", window="1h")
FINISHED = {"state": SessionState.FINISHED, "status": ChainStatus.FINISHED}


class Folders:
    """A storage that has one document of a byte in each folder, until that is deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def measure(self, folder: str) -> tuple[int, int]:
        return (0, 0) if folder in self.deleted else (1, 1)

    def delete_folder(self, folder: str) -> None:
        self.deleted.append(folder)


@pytest.fixture(params=["sqlite-file", "postgres"])
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


def run(ledger: SqlLedger, chain: str, *limits: Limit, tokens: float = 10.0, reserve: bool = True) -> Fence:
    """A session of a chain that finishes two items, of which one has failed before, and is not closed yet."""
    settings = {"kinds": ["default"], "budget": Budget(*limits).to_json()}
    fence = open_session(ledger, chain, f"holder of {chain}", settings=settings).fence
    ledger.add_items(chain, [WorkItem(id="a"), WorkItem(id="b", depends_on=("a",))], planned_by=fence)
    for failed in (True, False, False):
        item = ledger.claim(fence, lambda _item: None, lambda _item: [Reserve(limit, tokens) for limit in limits]).item
        assert item is not None
        usage = {"tokens": tokens}
        if failed:
            ledger.cut_off(fence, item, "no room", usage, usage, fresh=False)
        else:
            commit_unit(ledger, fence, item, Outcome(done=True, usage=usage), f"key/{chain}/{item.id}", usage)
    for kind in ("checkpoint", "handoff"):
        document = Document(kind, fence.ordinal, f"perpetual/{chain}/{kind}", "0" * 64, 2)  # type: ignore[arg-type]
        ledger.record_document(fence, document)
    return fence


def finish(ledger: SqlLedger, chain: str, *limits: Limit, **options: Any) -> None:
    close(ledger, run(ledger, chain, *limits, **options), **FINISHED, forecasts={"tokens": {}})


def forget(ledger: SqlLedger, days: float = 30.0, *, dry_run: bool = False, storage: Folders | None = None) -> Pruned:
    return prune(ledger, storage or Folders(), ledger.now() - days * DAY, dry_run=dry_run)


def rows_of(ledger: SqlLedger, *tables: Table) -> dict[str, int]:
    """How many rows each table has, of those with some."""
    with reading(ledger._engine) as connection:
        counts = {table.name: select(func.count()).select_from(table) for table in tables or t.metadata.sorted_tables}
        found = {name: connection.execute(count).scalar_one() for name, count in counts.items()}
    return {name: count for name, count in found.items() if count}


def contents(ledger: SqlLedger) -> dict[str, list[Any]]:
    with reading(ledger._engine) as connection:
        return {table.name: sorted(map(repr, connection.execute(select(table)))) for table in t.metadata.sorted_tables}


def names(ledger: SqlLedger) -> set[str]:
    return {chain.name for chain in ledger.chains()}


def level(ledger: SqlLedger, limit: Limit) -> tuple[float, float, float]:
    """What a pool says is used, what is reserved, and the sum of the spends that it tells."""
    now = ledger.now()
    since = limit.window.since(now) if limit.window else None
    with writing(ledger._engine) as connection:
        used, reserved = pools.level(connection, pool_key(limit), limit.resource, since, now)
    return used, reserved, sum(spend.amount for spend in ledger.pool_spends(limit, since or 0.0))


def members(ledger: SqlLedger) -> dict[tuple[str, str], tuple[float, int, float]]:
    with reading(ledger._engine) as connection:
        rows = connection.execute(select(t.pool_members)).mappings().all()
    return {(row["pool"], row["holder"]): (row["share"], row["priority"], row["used"]) for row in rows}


# Chains ---------------------------------------------------------------------------------------------------------------


def test_a_forgotten_chain_leaves_nothing(ledger: SqlLedger, clock: FakeClock) -> None:
    """No row of it in any table; a chain that was finished later keeps all of its own."""
    finish(ledger, "spring")
    clock.advance(31 * DAY)
    finish(ledger, "autumn")
    alone, storage = contents(ledger), Folders()
    uid = ledger.chain("spring").uid

    pruned = forget(ledger, storage=storage)

    [gone] = pruned.forgotten
    assert (gone.chain.name, gone.chain.ordinal, gone.items, gone.documents, gone.size) == ("spring", 1, 2, 4, 4)
    assert (pruned.kept, pruned.failed, pruned.pool_rows) == ({}, {}, 0)
    assert storage.deleted == document_folders("spring", uid)
    assert names(ledger) == {"autumn"}
    left = contents(ledger)
    assert all(set(rows) <= set(alone[table]) for table, rows in left.items())
    assert not [row for rows in left.values() for row in rows if "spring" in row or uid in row]
    assert {table: len(rows) for table, rows in left.items() if table in TABLES and rows} == {
        table: len(rows) // 2 for table, rows in alone.items() if table in TABLES and rows
    }
    assert forget(ledger).forgotten == []


def test_a_dry_run_changes_nothing(ledger: SqlLedger, clock: FakeClock) -> None:
    """It says the same as the run after it, which does it."""
    for chain in ("a", "b"):
        finish(ledger, chain, TOTAL, HOUR)
    clock.advance(31 * DAY)
    before, storage = contents(ledger), Folders()

    said = forget(ledger, dry_run=True, storage=storage)

    assert (contents(ledger), storage.deleted) == (before, [])
    assert [one.chain.name for one in said.forgotten] == ["a", "b"]
    assert said.pool_rows == 6
    assert forget(ledger) == said


HOW_IT_STANDS: dict[str, Callable[[SqlLedger, Fence], Any]] = {
    "running": lambda ledger, fence: None,
    "waiting": close,
    "paused": lambda ledger, fence: (close(ledger, fence), ledger.want("mine", Wanted.PAUSE, "")),
    "stalled": lambda ledger, fence: close(ledger, fence, ChainStatus.STALLED),
    "exhausted": lambda ledger, fence: close(ledger, fence, ChainStatus.EXHAUSTED),
    "pinned": lambda ledger, fence: (
        close(ledger, fence, ChainStatus.FINISHED),
        ledger.pin_checkpoint("mine", 1, pinned=True),
    ),
}


@pytest.mark.parametrize("how", HOW_IT_STANDS)
def test_what_may_go_on_is_never_touched(ledger: SqlLedger, clock: FakeClock, how: str) -> None:
    """Nor is what a person has pinned; the transactions look again, whoever asks for them."""
    HOW_IT_STANDS[how](ledger, run(ledger, "mine"))
    clock.advance(1000 * DAY)
    before = contents(ledger)

    assert forget(ledger).forgotten == []
    assert not ledger.retire("mine", ledger.now())
    assert not ledger.forget("mine", ledger.now())
    assert contents(ledger) == before


def test_a_cancelled_chain_goes_too(ledger: SqlLedger, clock: FakeClock) -> None:
    """Also one that never had a session."""
    close(ledger, run(ledger, "mine"))
    ledger.add_chain("never-run")
    for chain in ("mine", "never-run"):
        ledger.want(chain, Wanted.CANCEL, "not needed any more")
    clock.advance(31 * DAY)

    assert {one.chain.name: one.documents for one in forget(ledger).forgotten} == {"mine": 4, "never-run": 0}
    assert names(ledger) == set()


def test_new_items_touch_a_cancelled_chain(ledger: SqlLedger, clock: FakeClock) -> None:
    """It stays cancelled, but somebody wants something of it."""
    close(ledger, run(ledger, "mine"))
    ledger.want("mine", Wanted.CANCEL, "for now")
    clock.advance(31 * DAY)
    ledger.add_items("mine", [WorkItem(id="new")])

    assert forget(ledger).forgotten == []
    assert ledger.chain("mine").status is ChainStatus.CANCELLED


def test_a_queue_goes_as_a_whole(ledger: SqlLedger, clock: FakeClock) -> None:
    """While one of its chains is not over, or was touched, all of them stay."""
    finish(ledger, "mine")
    ledger.add_chain("second", queue="mine")
    clock.advance(31 * DAY)
    assert forget(ledger).kept.keys() == {"mine"}
    ledger.want("second", Wanted.CANCEL, "")
    assert forget(ledger).kept.keys() == {"mine"}
    assert names(ledger) == {"mine", "second"}
    clock.advance(31 * DAY)

    assert [one.chain.name for one in forget(ledger).forgotten] == ["mine", "second"]
    assert names(ledger) == set()


def test_a_forgotten_chain_may_begin_anew(ledger: SqlLedger, clock: FakeClock) -> None:
    """Under its name there is another chain then, which finds nothing of the first one."""
    finish(ledger, "mine")
    uid = ledger.chain("mine").uid
    clock.advance(31 * DAY)
    forget(ledger)
    with pytest.raises(UnknownChain):
        ledger.chain("mine")

    opened = open_session(ledger, "mine")

    assert (opened.fence.ordinal, opened.chain.uid != uid, opened.previous) == (1, True, None)


# What happens meanwhile -----------------------------------------------------------------------------------------------


def test_what_was_interrupted_is_done_again(ledger: SqlLedger, clock: FakeClock) -> None:
    """Documents that are gone while the rows are left: no run opens the chain, and the next time it goes."""
    finish(ledger, "mine")
    clock.advance(31 * DAY)

    class Dying(Folders):
        def delete_folder(self, folder: str) -> None:
            super().delete_folder(folder)
            if len(self.deleted) == 3:
                raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        forget(ledger, storage=Dying())

    half = ledger.chain("mine")
    assert (half.status, half.reason[:17]) == (ChainStatus.CANCELLED, "`perpetual prune`")
    assert [one.chain.name for one in forget(ledger).forgotten] == ["mine"]
    assert names(ledger) == set()


def test_forgotten_twice_is_forgotten(ledger: SqlLedger, clock: FakeClock) -> None:
    """Two people at once, or an answer that was lost: what is gone is gone."""
    finish(ledger, "mine")
    clock.advance(31 * DAY)

    assert [ledger.forget("mine", ledger.now()) for _ in range(2)] == [True, True]


def test_a_run_that_comes_first_keeps_its_chain(ledger: SqlLedger, clock: FakeClock) -> None:
    """Whatever happens between the look and the lock: new items, another run, a pin, another chain on the queue."""
    touches: dict[str, Callable[[str], Any]] = {
        "items": lambda chain: ledger.add_items(chain, [WorkItem(id="new")]),
        "run": lambda chain: open_session(ledger, chain, "another"),
        "pin": lambda chain: ledger.pin_checkpoint(chain, 1, pinned=True),
        "chain": lambda chain: ledger.add_chain("helper", queue=chain),
    }
    for chain in touches:
        finish(ledger, chain)
    clock.advance(31 * DAY)

    class Touching(Folders):
        def measure(self, folder: str) -> tuple[int, int]:
            for chain, touch in touches.items():
                if folder.startswith(f"perpetual/{chain}-") and folder.endswith("/batches"):
                    touch(chain)
            return super().measure(folder)

    storage = Touching()
    pruned = forget(ledger, storage=storage)

    assert (pruned.forgotten, storage.deleted) == ([], [])
    assert set(pruned.kept) == set(touches)
    assert names(ledger) == {*touches, "helper"}


def test_nobody_is_waited_for_who_has_the_chain(
    request: pytest.FixtureRequest, make_ledger: LedgerFactory, clock: FakeClock
) -> None:
    """A chain's row that somebody has just locked means that it is touched: no two wait for each other."""
    ledger = make_ledger(address_of("postgres", request))
    finish(ledger, "mine")
    clock.advance(31 * DAY)
    with writing(ledger._engine) as connection:
        connection.execute(select(t.chains).where(t.chains.c.name == "mine").with_for_update(key_share=True)).all()
        assert not ledger.retire("mine", ledger.now())
        assert not ledger.forget("mine", ledger.now())
    assert ledger.retire("mine", ledger.now())


def test_a_chain_that_joins_a_queue_that_goes_is_refused(
    request: pytest.FixtureRequest, make_ledger: LedgerFactory, clock: FakeClock
) -> None:
    """It waits for the queue's lock, and then looks whether the queue is still there."""
    address = address_of("postgres", request)
    ledger, other = make_ledger(address), make_ledger(address)
    finish(ledger, "mine")
    with ThreadPoolExecutor(1) as pool:
        with writing(ledger._engine) as connection:
            lock_queue(connection, "mine")
            connection.execute(t.chains.delete().where(t.chains.c.name == "mine"))
            joining = pool.submit(other.add_chain, "second", queue="mine")
            _wait_until_somebody_waits(connection)
        with pytest.raises(UnknownChain):
            joining.result()
    assert names(ledger) == set()


def _wait_until_somebody_waits(connection: Connection) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    for _ in range(100_000):
        if connection.exec_driver_sql(waiting).scalar_one():
            return
    raise AssertionError("nobody waits for the lock")


# Pools ----------------------------------------------------------------------------------------------------------------


def test_a_total_still_counts_what_forgotten_chains_have_spent(ledger: SqlLedger, clock: FakeClock) -> None:
    """In its running total and in the spends that it tells, in one row for each chain; their guarantees are free."""
    for chain, tokens in (("a", 100.0), ("b", 50.0)):
        finish(ledger, chain, TOTAL, tokens=tokens)
        clock.advance(DAY)
        with writing(ledger._engine) as connection:
            pools.join(connection, pool_key(TOTAL), "tokens", ledger.chain(chain).uid, share=0.0, priority=0)
    clock.advance(31 * DAY)
    fence = run(ledger, "c", TOTAL, tokens=10.0)
    before = level(ledger, TOTAL)
    assert before == (480.0, 0.0, 480.0)

    assert [one.chain.name for one in forget(ledger).forgotten] == ["a", "b"]

    assert level(ledger, TOTAL) == before
    uid = ledger.chain("c").uid
    assert members(ledger) == {
        ("team/total", pools.FORGOTTEN): (0.0, 0, 450.0),
        ("team/total", uid): (0.5, 2, 30.0),
    }
    assert rows_of(ledger, t.pool_spending) == {"pool_spending": 5}
    ledger.add_items("c", [WorkItem(id="large")])
    refused = ledger.claim(fence, lambda _item: None, lambda _item: [Reserve(TOTAL, 521.0)])
    assert refused.item is None
    assert ledger.claim(fence, lambda _item: None, lambda _item: [Reserve(TOTAL, 520.0)]).item is not None


def test_the_guarantee_of_a_forgotten_chain_is_free(ledger: SqlLedger, clock: FakeClock) -> None:
    """What was kept for it may be reserved by all."""
    finish(ledger, "old", TOTAL)
    clock.advance(31 * DAY)
    half = Limit("tokens", 1000.0, pool="team", scope="total", share=0.5)
    fence = open_session(ledger, "new", settings={"kinds": ["default"], "budget": Budget(half).to_json()}).fence
    ledger.add_items("new", [WorkItem(id="large")])

    def all_of_it(_item: object) -> list[Reserve]:
        return [Reserve(half, 970.0)]

    assert ledger.claim(fence, lambda _item: None, all_of_it).item is None
    forget(ledger)

    assert ledger.claim(fence, lambda _item: None, all_of_it).item is not None


def test_a_window_counts_each_spend_until_it_is_out(ledger: SqlLedger, clock: FakeClock) -> None:
    """Of a chain that is forgotten while its month still runs, too; then the spends go, the member and the pool."""
    finish(ledger, "mine", MONTH)
    clock.advance(2 * DAY)

    pruned = forget(ledger, days=1)

    assert ([one.chain.name for one in pruned.forgotten], pruned.pool_rows) == (["mine"], 0)
    assert level(ledger, MONTH) == (30.0, 0.0, 30.0)
    clock.advance(40 * DAY)
    assert forget(ledger, days=1).pool_rows == 3
    assert rows_of(ledger) == {}


def test_a_pool_in_use_gets_rid_of_what_is_out(ledger: SqlLedger, clock: FakeClock) -> None:
    """Of chains that go on; what it counts, and what it has reserved, stays as it was."""
    run(ledger, "mine", HOUR, TOTAL)
    clock.advance(40 * DAY)
    ledger.add_items("mine", [WorkItem(id="c"), WorkItem(id="d")])
    settings = {"kinds": ["default"], "budget": Budget(HOUR, TOTAL).to_json()}
    fence = open_session(ledger, "mine", "next", settings=settings).fence
    finish_next(ledger, fence)
    item = ledger.claim(fence, lambda _item: None, lambda _item: [Reserve(HOUR, 7.0)]).item
    assert item is not None
    before = level(ledger, HOUR), level(ledger, TOTAL)
    assert before == ((10.0, 7.0, 10.0), (40.0, 0.0, 40.0))

    assert forget(ledger).pool_rows == 3

    assert (level(ledger, HOUR), level(ledger, TOTAL)) == before
    assert names(ledger) == {"mine"}
    usage = {"tokens": 5.0}
    commit_unit(ledger, fence, item, Outcome(done=True, usage=usage), "key/d", usage)
    assert level(ledger, HOUR) == (15.0, 0.0, 15.0)


def test_what_a_clock_that_is_set_back_counts_again_is_there(ledger: SqlLedger, clock: FakeClock) -> None:
    """A spend that the window has just let go is kept as long as it is not old."""
    finish(ledger, "mine", HOUR)
    clock.advance(2 * 3600)
    assert level(ledger, HOUR) == (0.0, 0.0, 0.0)

    assert forget(ledger, days=1).pool_rows == 0

    clock.advance(-2 * 3600)
    assert level(ledger, HOUR) == (30.0, 0.0, 30.0)


def test_reservations_that_ran_out_go(ledger: SqlLedger, clock: FakeClock) -> None:
    """Those of a session that is at work stay."""
    for chain in ("dead", "live"):
        settings = {"kinds": ["default"], "budget": Budget(HOUR).to_json()}
        fence = open_session(ledger, chain, chain, settings=settings).fence
        ledger.add_items(chain, [WorkItem(id="a")])
        ledger.claim(fence, lambda _item: None, lambda _item: [Reserve(HOUR, 10.0)])
        clock.advance(LEASE / 2)
    ledger.heartbeat(fence)
    clock.advance(LEASE / 2)
    assert rows_of(ledger, t.pool_reservations) == {"pool_reservations": 2}

    assert forget(ledger, dry_run=True).pool_rows == forget(ledger).pool_rows == 1

    assert level(ledger, HOUR)[1] == 10.0


def test_the_members_of_programs_stay_members(
    request: pytest.FixtureRequest, make_ledger: LedgerFactory, clock: FakeClock
) -> None:
    """A program's holder is no chain, and is not taken for a forgotten one: its guarantee and its spends are kept."""
    address = address_of("sqlite-file", request)
    ledger = make_ledger(address)
    pool = Pool(address, "own", resource="tokens", amount=100, window_since=lambda now: now - 3600, clock=clock)
    everything = Pool(address, "all", resource="tokens", amount=100, clock=clock)
    pool.join("program", share=0.25)
    for one in (pool, everything):
        with one.reserve("program", 10.0) as reservation:
            reservation.settle(10.0)
    clock.advance(40 * DAY)

    assert forget(ledger).pool_rows == 0, "nothing says that its window has gone on, until it is used again"
    assert (pool.level(), everything.level()) == ((0.0, 0.0), (10.0, 0.0))
    with pool.reserve("program", 1.0):
        pass  # and spends nothing
    assert forget(ledger).pool_rows == 1

    assert members(ledger) == {("own", "program"): (0.25, 0, 0.0), ("all", "program"): (0.0, 0, 10.0)}
    pool.close()
    everything.close()


def test_a_restored_chain_is_counted_once(ledger: SqlLedger, clock: FakeClock) -> None:
    """Its backup tells anew what stood for it; forgotten again, it stands there again."""
    storage = MemoryDocuments()
    fence = run(ledger, "mine", TOTAL)
    back_up(ledger, storage, fence)
    close(ledger, fence, **FINISHED)
    finish(ledger, "other", TOTAL)
    clock.advance(31 * DAY)
    for _ in range(2):
        assert forget(ledger).kept == {}
        assert level(ledger, TOTAL) == (60.0, 0.0, 60.0)

        rebuild(ledger, storage, "mine")
        assert level(ledger, TOTAL) == (60.0, 0.0, 60.0)
        ledger.want("mine", Wanted.CANCEL, "")
        clock.advance(31 * DAY)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("team/5h", "5h"),
        ("team/month Europe/Berlin", "month Europe/Berlin"),
        ("a/day/total", None),
        ("a/day/7d", "7d"),
        ("team/total", None),
        ("team", None),
        ("5h", None),
    ],
)
def test_the_window_of_a_pool_is_in_its_name(name: str, window: str | None) -> None:
    """As `pool_key` puts it there; a program's own pool has none."""
    found = window_of(name)
    assert (str(found) if found else None) == window
