"""Many rows in a ledger's file, made of a few that the ledger itself has written."""

import sqlite3
from contextlib import closing
from pathlib import Path

SPREAD_SECONDS = 0.001
"""So far apart were the units that are made up."""


def multiply_rows(path: Path, chain: str, items: int) -> None:
    """Fills a chain's queue up to so many items, one half of them completed, with their usage.

    Args:
        path: Of a ledger whose chain has a completed item and an available one.
    """
    with closing(sqlite3.connect(path)) as ledger:
        for status in ("completed", "available"):
            (template,) = ledger.execute(
                "SELECT id FROM items WHERE chain = ? AND status = ? LIMIT 1", (chain, status)
            ).fetchone()
            (there,) = ledger.execute(
                "SELECT count(*) FROM items WHERE chain = ? AND (status = 'completed') = (? = 'completed')",
                (chain, status),
            ).fetchone()
            many = {"chain": chain, "template": template, "many": items // 2 - there, "prefix": f"{status}-"}
            (many["last"],) = ledger.execute("SELECT max(position) FROM items WHERE chain = ?", (chain,)).fetchone()
            own = {"id": ":prefix || printf('%07d', n)", "position": ":last + n"}
            _multiply(ledger, "items", "id", own, many)
            spread = f"at - (:many - n) * {SPREAD_SECONDS}"
            _multiply(ledger, "usage", "item", {"item": own["id"], "at": spread}, many)
        ledger.execute("DELETE FROM tallies")
        ledger.execute(
            "INSERT INTO tallies (queue, chain, kind, added, completed) "
            "SELECT chain, chain, kind, count(*), sum(status = 'completed') FROM items GROUP BY chain, kind"
        )
        ledger.commit()
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _multiply(
    ledger: sqlite3.Connection, table: str, key: str, own: dict[str, str], many: dict[str, int | str]
) -> None:
    """Copies the rows of the template so many times; `own` are the columns that differ, as SQL."""
    columns = [row[1] for row in ledger.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(own.get(column, f'"{column}"') for column in columns)
    ledger.execute(
        f"WITH RECURSIVE copies(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE n < :many) "
        f"INSERT INTO {table} SELECT {values} FROM copies, "
        f"(SELECT * FROM {table} WHERE chain = :chain AND {key} = :template)",
        many,
    )
