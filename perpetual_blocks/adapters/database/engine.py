"""Connecting to the ledger's database, and bringing its tables to this version."""

import sqlite3
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from perpetual_blocks.errors import InvalidInput, LedgerError

HEAD = "0001"
"""The newest migration. Kept here so that the usual start, at head, need not import Alembic; a test compares."""

SQLITE_WAIT_SECONDS = 30


def parse_address(address: str) -> URL:
    """The address as a database URL. A plain path is an SQLite file.

    Raises:
        InvalidInput: it is not an address of a database that the ledger can be in. The text holds no password.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        try:
            return URL.create("sqlite", database=str(Path(address).expanduser().absolute()))
        except RuntimeError as error:
            raise InvalidInput.of("ledger", address, f"a path ({error})") from None
    try:
        url = make_url(address)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        backend = ""
    if backend != "sqlite":
        # Nothing of the address but its scheme is shown: a password may be anywhere in it.
        raise InvalidInput.of("ledger", f"{scheme}://…", "an SQLite file's path or sqlite:///path")
    return url


def connect(address: str) -> Engine:
    """An engine whose database has this version's tables; they are made or migrated when needed.

    Raises:
        InvalidInput: not an address.
        LedgerError: the database cannot be reached or written, or was made by a newer version.
    """
    url = parse_address(address)
    shown = url.render_as_string(hide_password=True)
    options: dict[str, Any] = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}}
    if url.database in (None, "", ":memory:"):
        options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    try:
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, **options)
        _configure_sqlite(engine)
        _migrate(engine, shown)
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error)
        raise LedgerError(f"ledger: cannot use {shown}: {reason}; expected a database that can be written") from error
    return engine


def _configure_sqlite(engine: Engine) -> None:
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


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for others when it changes the journal's mode, so a file that another process is just making
    # into a ledger would be reported as locked.
    deadline = time.monotonic() + SQLITE_WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def schema_version(engine: Engine) -> str | None:
    """The migration that the database is at; None for a database without our tables."""
    with engine.connect().execution_options(sqlite_begin="BEGIN") as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine, shown: str) -> None:
    if schema_version(engine) == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    with as_file(files("perpetual_blocks.adapters.database") / "migrations") as scripts:
        config = Config()
        config.set_main_option("script_location", str(scripts))
        known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
        with engine.begin() as connection:
            # Within the write lock: of two processes that start at once, the second finds the work done.
            present = inspect(connection).has_table("alembic_version")
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if present else None
            if version == HEAD:
                return
            if version is not None and version not in known:
                raise LedgerError(
                    f"ledger: {shown} has schema {version}; expected at most {HEAD}: "
                    "it was made by a newer perpetual-blocks, upgrade this one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
