"""SQLite, as the ledger uses it: write lock first, write-ahead log, and a level of syncing for each transaction."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from perpetual_blocks.adapters.database.json_text import read_json

WAIT_SECONDS = 30


_MAY_PASS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
}


def may_pass(error: sqlite3.Error) -> bool:
    """Whether it is about the file's surroundings (locks, space, the disk), and not about what is in it."""
    # The upper bits of an extended code say more about the same.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _MAY_PASS


def is_in_memory(url: URL) -> bool:
    """Whether the database ends with its process."""
    return url.database in (None, "", ":memory:")


def make_engine(url: URL) -> Engine:
    """An engine on an SQLite file, whose folder is made where it is missing, or in memory.

    Raises:
        OSError: the folder cannot be made.
    """
    options: dict[str, Any] = {"connect_args": {"timeout": WAIT_SECONDS}}
    if is_in_memory(url):
        # The database is its connection: threads use it one after the other.
        one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": WAIT_SECONDS}
        options = {"poolclass": QueuePool, **one, "connect_args": {"check_same_thread": False}}
    else:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, hide_parameters=True, json_deserializer=read_json, **options)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Transactions are begun by us, below: the driver's own would begin too late, at the first write.
        connection.isolation_level = None
        _use_write_ahead_log(connection)
        # NORMAL survives the death of the process at any instruction; what must survive a loss of power asks for FULL.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # Readers see one snapshot. Writers take the write lock at once: a lock that is upgraded later cannot wait.
        mode = connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE")
        connection.exec_driver_sql(mode)

    return engine


def set_synced(connection: Connection, synced: bool) -> None:
    """Says whether the next transaction is on the disk when it has been committed."""
    # The pragma is the connection's, which the pool keeps, and works only outside a transaction.
    level = "FULL" if synced else "NORMAL"
    if connection.info.get("synchronous") != level:
        connection.connection.cursor().execute(f"PRAGMA synchronous={level}")
        connection.info["synchronous"] = level


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for others when it changes the journal's mode, so a file that another process is just making
    # into a ledger would be reported as locked.
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
