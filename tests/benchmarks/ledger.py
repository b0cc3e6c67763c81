"""What the ledger costs without Prefect: a claim and a commit on an SQLite file."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import Result, side_by_side, timed
from sqlalchemy import Engine, event

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.session.chain import SessionRequest
from perpetual_blocks.session.ledger import Fence, Finished
from perpetual_blocks.work import Outcome, WorkItem

CHAIN = "bench"

Statements = list[tuple[str, Any]]


def measure_commit(quick: bool) -> list[Result]:
    """A claim and a commit, two transactions, against their own statements given to sqlite3 in one transaction.

    The statements are recorded from a ledger, and played back to a copy of its file.
    """
    rounds, units = (3, 50) if quick else (9, 150)
    with TemporaryDirectory(prefix="perpetual-bench-") as folder:
        base, ours, other = (Path(folder) / f"{name}.db" for name in ("base", "ours", "other"))
        needed = units * (rounds + 1)
        fence = _prepare(base, needed)
        shutil.copy(base, ours)
        shutil.copy(base, other)
        groups = iter(_record(base, fence, needed))
        with closing(SqlLedger(str(ours))) as ledger, closing(_connect(other)) as raw:
            compared = side_by_side(
                lambda: timed(lambda: finish_next(ledger, fence), units),
                lambda: timed(lambda: _play(raw, groups), units),
                rounds,
            )
    detail = {"ours_ms": compared.ours_ms, "raw_ms": compared.other_ms, "units_a_round": units, **compared.spread()}
    return [
        Result("ledger_commit_ms", compared.ours_ms, "ms", "nothing", detail),
        Result(
            "ledger_vs_raw", compared.ratio, "ratio", "the same statements through sqlite3, one transaction", detail
        ),
    ]


def finish_next(ledger: SqlLedger, fence: Fence) -> None:
    """Claims the next item and commits its only unit."""
    item = ledger.claim(fence, lambda _estimate: None).item
    assert item is not None, "the queue is too short for the rounds"
    usage = {"tokens": 100.0, "seconds": 0.001}
    key = f"perpetual/{CHAIN}/units/{item.id}/1"
    ledger.commit_units(fence, [Finished(item, Outcome(done=True, usage=usage), key)], usage)


def _prepare(path: Path, items: int) -> Fence:
    """A ledger's file with an open session and this many items in its queue."""
    request = SessionRequest(
        chain=CHAIN,
        agent="Bench",
        holder="bench",
        host="here",
        pid=1,
        process_started=1.0,
        settings={"kinds": ["default"], "budget": []},
    )
    with closing(SqlLedger(str(path))) as ledger:
        fence = ledger.open_session(request).fence
        ledger.add_items(CHAIN, (WorkItem(id=f"item-{n:06}") for n in range(items)))
    return fence


def _record(path: Path, fence: Fence, units: int) -> Iterator[Statements]:
    """The statements of each unit, with their values, as SQLAlchemy gives them to sqlite3."""
    groups: list[Statements] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, executemany: bool) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            groups[-1].extend((statement, row) for row in (values if executemany else [values]))

    with closing(SqlLedger(str(path))) as ledger:
        event.listen(Engine, "before_cursor_execute", note)
        try:
            for _ in range(units):
                groups.append([])
                finish_next(ledger, fence)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    return iter(groups)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _play(connection: sqlite3.Connection, groups: Iterator[Statements]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement, values in next(groups):
        connection.execute(statement, values).fetchall()
    connection.execute("COMMIT")
