"""Backup and restore on every database: what comes back is the chain that was saved, or nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres_server import address_of
from sqlalchemy import select
from support import KINDS, LEASE, FakeClock, LedgerFactory, claim, close, commit_unit, item_in, one_line, open_session

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.adapters.database.export import OVERLAP_SECONDS, TABLES
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import DamagedDocument, Fenced, InvalidInput, StorageError, Superseded
from perpetual_blocks.session import backup
from perpetual_blocks.session.backup import BackupIndex, Indexes, back_up, index_keys, rebuild
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.consistency import find_wrong_rows
from perpetual_blocks.session.ledger import Document, Fence, FollowOn, Misfit, Reserve
from perpetual_blocks.testing import MemoryDocuments
from perpetual_blocks.work import ItemStatus, Outcome, WorkItem

DATABASES = ("sqlite-file", "postgres")

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=DATABASES)
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


@pytest.fixture
def storage() -> MemoryDocuments:
    """The backup storage."""
    return MemoryDocuments()


@pytest.fixture
def other(make_ledger: LedgerFactory, tmp_path: Path) -> SqlLedger:
    """An empty ledger to restore into."""
    return make_ledger(str(tmp_path / "other.db"))


def rows_of(ledger: SqlLedger, chain: str = "mine") -> Rows:
    """All rows of a chain that a backup has, in order."""
    found: Rows = {}
    with ledger._engine.connect() as connection:
        uid = connection.execute(select(schema.chains.c.uid).where(schema.chains.c.name == chain)).scalar_one()
        for name, table in TABLES.items():
            owner = {"chains": "name", "pool_spending": "holder"}.get(name, "chain")
            of_chain = table.c[owner] == (uid if owner == "holder" else chain)
            rows = connection.execute(select(table).where(of_chain).order_by(*table.primary_key)).mappings()
            found[name] = [dict(row) for row in rows]
    found["documents"] = [row for row in found["documents"] if row["kind"] != "backup"]
    return found


def as_restored(saved: Rows) -> Rows:
    """What saved rows must be after a restore but for what says that they were restored."""
    [chain] = saved["chains"]
    for name in ("status", "reason", "holder", "lease_until", "resume_at", "updated_at"):
        del chain[name]
    latest = next(row for row in saved["sessions"] if row["ordinal"] == chain["ordinal"])
    for name in ("state", "ended_at", "stop_reason", "stop_message", "graceful"):
        del latest[name]
    saved["items"] = items_as_restored(saved)
    saved["outbox"] = [row for row in saved["outbox"] if row["created_at"] and row["ordinal"] <= chain["ordinal"]]
    return saved


def items_as_restored(saved: Rows) -> list[dict[str, Any]]:
    """The items of saved rows: whether one was begun after the backup is not known, so its outcome is looked for."""
    claims = [item["claims"] or (None if item["status"] == "completed" else "unit") for item in saved["items"]]
    return [{**item, "claims": claim} for item, claim in zip(saved["items"], claims, strict=True)]


def work(ledger: SqlLedger, fence: Fence, units: int = 1, **usage: float) -> None:
    """Finishes that many items."""
    spent: dict[str, float] = dict(ledger.sessions(fence.chain)[-1].usage)
    for _ in range(units):
        item = claim(ledger, fence)
        cost = {"tokens": 10.0, **usage}
        spent = {name: spent.get(name, 0.0) + amount for name, amount in cost.items()}
        commit_unit(ledger, fence, item, Outcome(done=True, usage=cost), f"key/{item.id}/{item.units + 1}", spent)


def add(ledger: SqlLedger, *ids: str, **fields: Any) -> None:
    ledger.add_items("mine", [WorkItem(id=item, **fields) for item in ids])


def sessions(ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, count: int) -> list[Rows]:
    """A chain of that many sessions, of which each finishes an item and backs up; the rows at each backup."""
    saved = []
    for ordinal in range(1, count + 1):
        fence = open_session(ledger, holder=f"holder-{ordinal}").fence
        if ordinal == 1:
            add(ledger, *(f"item-{n}" for n in range(10)))
        clock.advance(2 * OVERLAP_SECONDS)
        work(ledger, fence)
        back_up(ledger, storage, fence)
        saved.append(rows_of(ledger))
        close(ledger, fence)
    return saved


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", DATABASES)
def test_a_chain_moves_from_one_ledger_to_another(
    ledger: SqlLedger,
    storage: MemoryDocuments,
    clock: FakeClock,
    make_ledger: LedgerFactory,
    target: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Backup and restore move a chain between ledgers of any database, and it goes on there with its next session."""
    saved = sessions(ledger, storage, clock, 3)
    address = str(tmp_path / "target.db") if target == "sqlite-file" else address_of(target, request)
    there = make_ledger(address)

    rebuilt = rebuild(there, storage, "mine")

    assert (rebuilt.index.last.ordinal, len(rebuilt.index.segments), rebuilt.notes) == (3, 3, ())
    assert rebuilt.items[ItemStatus.COMPLETED] == 3
    assert as_restored(rows_of(there)) == as_restored(saved[-1])
    chain = there.chain("mine")
    assert chain.status is ChainStatus.PAUSED
    assert chain.reason.startswith("restored from the backup of session 3, made at 2023-11-14T22:")
    assert chain.reason.endswith("`perpetual resume mine` goes on")
    last = there.sessions("mine")[-1]
    assert (last.state, last.graceful, last.ended_at) == (SessionState.WRAPPED, True, clock.now())
    with pytest.raises(Superseded, match="paused"):
        open_session(there, holder="uninvited")
    with there._writing() as connection:  # as `perpetual resume` does
        connection.execute(schema.chains.update().values(status=ChainStatus.WAITING))
    opened = open_session(there, holder="next")
    assert (opened.fence.ordinal, opened.took_over) == (4, False)
    work(there, opened.fence, 7)


def test_what_was_at_work_is_free_again(ledger: SqlLedger, storage: MemoryDocuments, other: SqlLedger) -> None:
    """A backup that was made in the middle of work comes back without claims, owner, wishes and unsent follow-ons."""
    fence = open_session(ledger).fence
    add(ledger, "one", "two")
    claim(ledger, fence)
    with ledger._writing() as connection:
        connection.execute(schema.chains.update().values(wanted="pause", wanted_why="lunch"))
        for ordinal, created in ((1, 1.0), (2, None), (3, 1.0)):
            run = FollowOn(
                chain="mine",
                ordinal=ordinal,
                idempotency_key=f"key-{ordinal}",
                deployment_id="deployment",
                parameters={},
                run_name="run",
                tags=(),
            )
            row = {name: getattr(run, name) for name in FollowOn.__slots__}
            connection.execute(
                schema.outbox.insert().values({**row, "tags": [], "recorded_at": 1.0, "created_at": created})
            )

    back_up(ledger, storage, fence)
    rebuild(other, storage, "mine")

    assert [(item.status, item.interruptions) for item in other.items("mine")] == [
        (ItemStatus.AVAILABLE, 1),
        (ItemStatus.AVAILABLE, 0),
    ]
    with pytest.raises(Fenced):
        other.heartbeat(fence)
    [chain] = rows_of(other)["chains"]
    assert (chain["holder"], chain["lease_until"], chain["wanted"], chain["wanted_why"]) == (None, 0.0, None, None)
    assert [row["ordinal"] for row in rows_of(other)["outbox"]] == [1]


def test_a_pool_knows_what_a_restored_chain_had_spent(
    ledger: SqlLedger, storage: MemoryDocuments, other: SqlLedger, clock: FakeClock
) -> None:
    """What the chain had spent of a shared budget counts in the new ledger, once, and others are held to the rest."""
    limit = Limit("calls", 100, scope="window", window="1d", pool="api")
    shared = {"kinds": list(KINDS), "budget": Budget(limit).to_json()}
    fence = open_session(ledger, settings=shared).fence
    add(ledger, "one")
    work(ledger, fence, calls=70.0)
    back_up(ledger, storage, fence)

    rebuild(other, storage, "mine")

    assert [spend.amount for spend in other.pool_spends(limit, clock.now() - 60)] == [70.0]
    theirs = open_session(other, "theirs", settings=shared).fence
    other.add_items("theirs", [WorkItem(id="a")])
    assert other.claim(theirs, lambda item: None, lambda item: [Reserve(limit, 40.0)]).item is None
    assert other.claim(theirs, lambda item: None, lambda item: [Reserve(limit, 30.0)]).item is not None


ACTIONS = ("add", "finish", "advance", "fail", "cut off", "discard", "retry", "pass over", "wait", "checkpoint")


@dataclass
class Chain:
    """A chain that does what it is told at random."""

    ledger: SqlLedger
    clock: FakeClock
    storage: MemoryDocuments = field(default_factory=MemoryDocuments)
    started: int = 0
    added: int = 0
    saved: Rows | None = None

    def session(self, actions: list[tuple[str, int]], *, saves: bool, behind: float) -> None:
        """One session, on a machine whose clock may be behind."""
        self.clock.advance(-behind)
        self.started += 1
        fence = open_session(self.ledger, holder=f"holder-{self.started}").fence
        spent: dict[str, float] = {}
        for action, number in actions:
            self.clock.advance(7.0)
            self.act(fence, action, number, spent)
        if saves:
            back_up(self.ledger, self.storage, fence)
            self.saved = rows_of(self.ledger)
        document = Document("handoff", fence.ordinal, f"handoff-{fence.ordinal}", "0" * 64, 1)
        self.ledger.record_document(fence, document)
        close(self.ledger, fence, forecasts={"tokens": fence.ordinal})

    def act(self, fence: Fence, action: str, number: int, spent: dict[str, float]) -> None:
        ledger = self.ledger
        ids = [item.id for item in ledger.items("mine", limit=1000)]
        match action:
            case "add":
                needs = tuple(ids[: number % 3])
                add(ledger, f"item-{self.added}", depends_on=needs, priority=number % 2, payload={"n": number})
                self.added += 1
            case "discard":
                ledger.discard_items("mine", ids[:1], "not wanted")
            case "retry":
                ledger.retry_items("mine", ids)
            case "pass over":
                found = ledger.claim(fence, lambda item: Misfit("too big") if item.id in ids[:1] else None)
                if found.item:
                    ledger.release(fence, [found.item], begun=True)
            case "wait":
                self.clock.advance(100.0 * number)
            case "checkpoint":
                key = f"checkpoint-{fence.ordinal}"
                if not any(one.key == key for one in ledger.documents("mine", "checkpoint")):
                    ledger.record_document(fence, Document("checkpoint", fence.ordinal, key, "1" * 64, number))
                ledger.forget_checkpoints(fence, 2)
            case _:
                self.run_unit(fence, action, number, spent)

    def run_unit(self, fence: Fence, action: str, number: int, spent: dict[str, float]) -> None:
        item = self.ledger.claim(fence, lambda item: None).item
        if item is None:
            return
        usage = {"tokens": 1.5 * number, "seconds": 0.1}
        for name, amount in usage.items():
            spent[name] = spent.get(name, 0.0) + amount
        if action == "fail":
            self.ledger.fail_unit(fence, item, "it broke", usage, spent)
        elif action == "cut off":
            self.ledger.cut_off(fence, item, "no room", usage, spent, fresh=number % 2 == 0)
        else:
            outcome = Outcome(done=action == "finish", usage=usage, cursor=number)
            commit_unit(
                self.ledger, fence, item, outcome, f"key/{item.id}/{item.units}/{fence.ordinal}", spent, {"n": number}
            )


SESSIONS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=12),
        st.sampled_from([True, True, False]),
        st.sampled_from([0.0, 0.0, 30.0, 1000.0]),
    ),
    min_size=1,
    max_size=6,
)


def check_random_work(chain: Chain, told: list[tuple[list[tuple[str, int]], bool, float]], target: SqlLedger) -> None:
    for actions, saves, behind in told:
        chain.session(actions, saves=saves, behind=behind)
    if chain.saved is None:
        with pytest.raises(StorageError, match="no index of chain mine"):
            rebuild(target, chain.storage, "mine")
        return
    rebuild(target, chain.storage, "mine")
    assert as_restored(rows_of(target)) == as_restored(chain.saved)
    for one in (chain.ledger, target):
        with one.facts("mine") as facts:
            assert list(find_wrong_rows(facts)) == []


@settings(max_examples=60)
@given(told=SESSIONS)
def test_what_was_saved_comes_back(told: list[tuple[list[tuple[str, int]], bool, float]]) -> None:
    """After any work in any number of sessions, of which some were not backed up and some ran on a machine whose clock
    was behind, a restore gives back every row of the last backup as it was then."""
    clock = FakeClock()
    source, target = (SqlLedger("sqlite://", clock=clock, lease_seconds=LEASE) for _ in range(2))
    try:
        check_random_work(Chain(source, clock), told, target)
    finally:
        source.close()
        target.close()


def test_what_was_saved_comes_back_on_every_database(ledger: SqlLedger, clock: FakeClock, other: SqlLedger) -> None:
    """The same for one long story on each database."""
    actions = [(action, number) for number in range(6) for action in ("add", "add", *ACTIONS)]
    told = [(actions, True, 0.0), (actions[3:], False, 1000.0), (actions[5:], True, 0.0), (actions, True, 30.0)]

    check_random_work(Chain(ledger, clock), told, other)


# What is written ------------------------------------------------------------------------------------------------------


def test_a_segment_has_what_changed(ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock) -> None:
    """The base has all items; a later segment those that the session touched, however long the queue is."""
    fence = open_session(ledger).fence
    add(ledger, *(f"item-{n:04d}" for n in range(2000)))
    clock.advance(2 * OVERLAP_SECONDS)
    base = back_up(ledger, storage, fence)
    close(ledger, fence)
    clock.advance(2 * OVERLAP_SECONDS)
    fence = open_session(ledger, holder="second").fence
    work(ledger, fence, 3)

    second = back_up(ledger, storage, fence)

    assert [part.rows for part in base.parts()] == [1 + 1 + 2000]
    assert second.segments[0] == base.segments[0]
    # The chain, two sessions (the first one was open before), three items, and the usage of three units.
    assert [part.rows for part in second.segments[1].parts] == [1 + 2 + 3 + 3]


def test_what_became_less_blocked_is_saved(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """An item that still waits, for fewer others than before, has changed; so has one in whose place another went."""
    fence = open_session(ledger).fence
    add(ledger, "first", "second")
    add(ledger, "last", depends_on=("first", "second"))
    clock.advance(2 * OVERLAP_SECONDS)
    back_up(ledger, storage, fence)
    clock.advance(2 * OVERLAP_SECONDS)
    taken = ledger.claim(fence, lambda item: Misfit("too big") if item.id == "first" else None).item
    assert taken is not None
    commit_unit(ledger, fence, taken, Outcome(done=True), "key", {})

    back_up(ledger, storage, fence)
    rebuild(other, storage, "mine")

    assert item_in(other, "first").passed_over == 1
    assert rows_of(other)["items"] == items_as_restored(rows_of(ledger))
    assert [row["blockers"] for row in rows_of(other)["items"]] == [0, 1, 0]


def test_a_large_segment_has_several_parts(
    ledger: SqlLedger, storage: MemoryDocuments, other: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more rows, and no more characters, than a part may have are ever in memory at once."""
    monkeypatch.setattr(backup, "PART_ROWS", 10)
    monkeypatch.setattr(backup, "PART_CHARACTERS", 10_000)
    fence = open_session(ledger).fence
    add(ledger, *(f"item-{n}" for n in range(25)))
    add(ledger, "large-1", "large-2", payload={"text": "x" * 20_000})

    index = back_up(ledger, storage, fence)
    rebuild(other, storage, "mine")

    assert [part.rows for part in index.parts()] == [10, 10, 8, 1]
    assert rows_of(other)["items"] == items_as_restored(rows_of(ledger))


def test_a_new_base_after_many_segments(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of segments is bounded; what neither index needs any more is deleted, and never before."""
    monkeypatch.setattr(backup, "MOST_SEGMENTS", 3)
    lengths = []
    for ordinal in range(1, 9):
        fence = open_session(ledger, holder=f"holder-{ordinal}").fence
        add(ledger, f"item-{ordinal}")
        clock.advance(2 * OVERLAP_SECONDS)
        lengths.append(len(back_up(ledger, storage, fence).segments))
        close(ledger, fence)
        indexes = Indexes.of(storage, "mine")
        named = {part.key for index in indexes.found.values() for part in index.parts()}
        assert named | set(indexes.found) == set(storage.content)

    assert lengths == [1, 2, 3, 1, 2, 3, 1, 2]
    rebuild(other, storage, "mine")
    assert rows_of(other)["items"] == items_as_restored(rows_of(ledger))


# What goes wrong ------------------------------------------------------------------------------------------------------


def tear(storage: MemoryDocuments, key: str) -> None:
    """Half of a document, as a process leaves it that is killed while it writes."""
    storage.content[key] = storage.content[key][: len(storage.content[key]) // 2]


def test_a_torn_index_leaves_the_other(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """With its newest index torn the chain comes back as of the session before, and the report says so."""
    saved = sessions(ledger, storage, clock, 3)
    newest = next(iter(Indexes.of(storage, "mine").found))
    tear(storage, newest)

    rebuilt = rebuild(other, storage, "mine")

    [note] = rebuilt.notes
    assert newest in note
    assert "session 2" in note
    assert as_restored(rows_of(other)) == as_restored(saved[1])


def test_both_indexes_torn(ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger) -> None:
    """Without an index nothing is restored, and the error says what was found."""
    sessions(ledger, storage, clock, 2)
    for key in index_keys("mine"):
        tear(storage, key)

    with pytest.raises(StorageError) as refused:
        rebuild(other, storage, "mine")

    one_line(refused.value, "no index of chain mine", "backup index", "expected one")
    assert not other.has_chain("mine")


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_damaged_segment_is_named(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger, harm: str
) -> None:
    """A damaged part stops the restore before the first row; the error names the session to go back to."""
    saved = sessions(ledger, storage, clock, 3)
    damaged = Indexes.of(storage, "mine").newest.segments[1].parts[0].key  # type: ignore[union-attr]
    if harm == "missing":
        storage.delete(damaged)
    else:
        storage.write(damaged, "A" + storage.read(damaged)[1:-1] + "A")

    with pytest.raises(DamagedDocument) as refused:
        rebuild(other, storage, "mine")
    one_line(refused.value, "segment of session 2", damaged, "--until 1")
    assert not other.has_chain("mine")

    rebuild(other, storage, "mine", until=1)
    assert as_restored(rows_of(other)) == as_restored(saved[0])


def test_a_damaged_base_cannot_be_restored(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """Without the base the other segments say nothing."""
    sessions(ledger, storage, clock, 2)
    storage.delete(Indexes.of(storage, "mine").newest.segments[0].parts[0].key)  # type: ignore[union-attr]

    with pytest.raises(DamagedDocument) as refused:
        rebuild(other, storage, "mine")

    one_line(refused.value, "segment of session 1", "it is the base")


def test_until_before_the_beginning(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """A session before the base is refused with the first one that there is."""
    sessions(ledger, storage, clock, 2)

    with pytest.raises(InvalidInput) as refused:
        rebuild(other, storage, "mine", until=0)

    one_line(refused.value, "--until", "at least 1")


def test_a_chain_that_is_there_is_not_replaced(ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock) -> None:
    """A restore never touches a chain that the ledger has."""
    sessions(ledger, storage, clock, 1)
    before = rows_of(ledger)

    with pytest.raises(InvalidInput) as refused:
        rebuild(ledger, storage, "mine")
    one_line(refused.value, "mine", "--ledger", "perpetual verify mine --repair")
    with pytest.raises(InvalidInput):
        ledger.rebuild("mine", [], "somebody else was faster")

    assert rows_of(ledger) == before


def test_rows_of_a_newer_version(ledger: SqlLedger) -> None:
    """Columns and tables that this version does not know are refused, and nothing is written."""
    for rows in ([("chains", {"name": "mine", "flavour": 1})], [("flavours", {"name": "mine"})]):
        with pytest.raises(DamagedDocument, match="newer perpetual-blocks"):
            ledger.rebuild("mine", [rows], "")
    assert not ledger.has_chain("mine")


def test_the_backup_of_a_lost_chain_is_not_overwritten(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """A new chain of the same name, begun because the ledger was lost, leaves the old one's backup alone."""
    sessions(ledger, storage, clock, 2)
    before = dict(storage.content)
    fence = open_session(other).fence

    with pytest.raises(StorageError) as refused:
        back_up(other, storage, fence)

    one_line(refused.value, "another chain mine", "restore it", index_keys("mine")[0])
    assert storage.content == before


def test_a_crash_before_the_row_costs_a_base(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """An index that was written and not yet pointed at is good for a restore; the next backup begins anew."""
    sessions(ledger, storage, clock, 2)
    fence = open_session(ledger, holder="unlucky").fence
    work(ledger, fence)

    def crash(point: str) -> None:
        if point == "backup.written":
            raise RuntimeError("the power is gone")

    faults.install(crash)
    with pytest.raises(RuntimeError):
        back_up(ledger, storage, fence)
    faults.install(None)

    assert rebuild(other, storage, "mine").index.last.ordinal == 3
    assert len(back_up(ledger, storage, fence).segments) == 1


def test_a_backup_that_comes_too_late_names_nothing(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, other: SqlLedger
) -> None:
    """A backup that was left behind, and is done when the chain has gone on, does not become the newest one."""
    sessions(ledger, storage, clock, 1)
    late = open_session(ledger, holder="late").fence
    close(ledger, late)
    before = Indexes.of(storage, "mine")

    with pytest.raises(Fenced):
        back_up(ledger, storage, late)

    assert Indexes.of(storage, "mine").found == before.found


def test_a_restored_chain_is_backed_up_anew(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, make_ledger: LedgerFactory, tmp_path: Path
) -> None:
    """After a restore to an earlier session the next backup is a base, which a second restore finds."""
    sessions(ledger, storage, clock, 3)
    second, third = (make_ledger(str(tmp_path / name)) for name in ("second.db", "third.db"))
    rebuild(second, storage, "mine", until=1)
    with second._writing() as connection:
        connection.execute(schema.chains.update().values(status=ChainStatus.WAITING))
    fence = open_session(second, holder="again").fence
    work(second, fence, 4)

    index = back_up(second, storage, fence)
    rebuild(third, storage, "mine")

    assert (fence.ordinal, [segment.mark.ordinal for segment in index.segments]) == (2, [2])
    assert item_in(third, "item-4").status is ItemStatus.COMPLETED
    assert rows_of(third)["items"] == rows_of(second)["items"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:50], "expected an index and its digest"),
        (lambda text: text.replace('\\"uid\\":\\"', '\\"uid\\":\\"0'), "got SHA-256"),
        (lambda text: "[]", "expected an index and its digest"),
    ],
)
def test_an_index_is_checked(
    ledger: SqlLedger, storage: MemoryDocuments, clock: FakeClock, change: Callable[[str], str], said: str
) -> None:
    """An index that is not what was written is not used."""
    sessions(ledger, storage, clock, 1)
    text = storage.read(index_keys("mine")[0])

    with pytest.raises(DamagedDocument) as refused:
        BackupIndex.read(change(text))

    one_line(refused.value, said)


def test_every_flipped_bit_of_an_index_is_seen(storage: MemoryDocuments, clock: FakeClock) -> None:
    """No single bit of an index can change without being noticed."""
    ledger = SqlLedger("sqlite://", clock=clock)
    sessions(ledger, storage, clock, 1)
    content = storage.content[index_keys("mine")[0]]
    whole = BackupIndex.read(content.decode())

    for place, bit in bits(content):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        try:
            read = BackupIndex.read(changed.decode())
        except (DamagedDocument, UnicodeDecodeError):
            continue
        pytest.fail(f"bit {bit} of byte {place} was changed and {read == whole=}")
    ledger.close()


def bits(content: bytes) -> Iterator[tuple[int, int]]:
    return ((place, bit) for place in range(len(content)) for bit in range(8))
