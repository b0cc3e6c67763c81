"""What a session has committed, committed once more by sqlite3 alone: the same rows, as many to a transaction.

python raw_commits.py FOLDER   # with the session's `ledger.db` and `results`; prints what it did as JSON

Before each transaction a file is written with as many bytes of outcomes as the session wrote for these units.
"""

import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Rows = Sequence[tuple[Any, ...]]

COMPLETED = (
    "SELECT status, units, result_key, updated_at, chain, id FROM items WHERE status = 'completed' ORDER BY position"
)
COMPLETE = "UPDATE items SET status = ?, units = ?, result_key = ?, updated_at = ? WHERE chain = ? AND id = ?"
FORGET = (
    "UPDATE items SET status = 'available', units = 0, result_key = NULL WHERE status = 'completed'",
    "DELETE FROM usage",
)


def main(folder: Path) -> None:
    """Copies the session's ledger, undoes its units there, and does them once more."""
    with TemporaryDirectory(prefix="perpetual-bench-") as own, closing(_copy(folder, Path(own))) as ledger:
        items = ledger.execute(COMPLETED).fetchall()
        spent = ledger.execute("SELECT * FROM usage ORDER BY at").fetchall()
        commits = len({updated_at for *_, updated_at, _chain, _id in items})  # all rows of a commit are of one moment
        outcomes = _outcomes(folder / "results")
        for statement in (*FORGET, "PRAGMA wal_checkpoint(TRUNCATE)"):
            ledger.execute(statement).fetchall()
        started = time.perf_counter()
        for number in range(commits):
            (Path(own) / f"{number}.json").write_bytes(_part(outcomes, number, commits))
            _commit(ledger, _part(items, number, commits), _part(spent, number, commits))
        seconds = time.perf_counter() - started
    print(json.dumps({"units": len(items), "seconds": seconds, "commits": commits, "outcome_bytes": len(outcomes)}))


def _copy(folder: Path, own: Path) -> sqlite3.Connection:
    """A copy of the ledger, which syncs as little as ours does."""
    ledger = sqlite3.connect(own / "raw.db", isolation_level=None)
    with closing(sqlite3.connect(folder / "ledger.db")) as original:
        original.backup(ledger)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        ledger.execute(f"PRAGMA {pragma}").fetchall()
    return ledger


def _outcomes(results: Path) -> bytes:
    documents = (path for path in sorted(results.rglob("*")) if path.is_file())
    return b"".join(path.read_bytes() for path in documents if path.parent.name not in ("checkpoints", "handoffs"))


def _part(whole: Any, number: int, count: int) -> Any:
    """One of so many equal parts of a sequence."""
    return whole[len(whole) * number // count : len(whole) * (number + 1) // count]


def _commit(ledger: sqlite3.Connection, items: Rows, spent: Rows) -> None:
    ledger.execute("BEGIN IMMEDIATE")
    ledger.executemany(COMPLETE, items)
    if spent:
        ledger.executemany(f"INSERT INTO usage VALUES ({', '.join('?' * len(spent[0]))})", spent)
    ledger.execute("COMMIT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
