"""Connecting to the ledger's database, transactions, and bringing its tables to this version."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import Connection, Engine, Insert, Table, inspect, text
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, TimeoutError

from perpetual_blocks.adapters.database import postgres, sqlite
from perpetual_blocks.clock import Clock, SystemClock
from perpetual_blocks.errors import InvalidInput, LedgerError, LedgerUnavailable
from perpetual_blocks.redaction import url_passwords

HEAD = "0009"
"""The newest migration. Kept here so that the usual start, at head, need not import Alembic; a test compares."""

EXPECTED = "an SQLite file's path, sqlite:///path or postgresql://user@host/database"


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
    # Nothing of a refused address but its scheme is shown: a password may be anywhere in it.
    refused = InvalidInput.of("ledger", f"{scheme}://…", EXPECTED)
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise refused from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url
    if url.drivername in ("postgresql", "postgresql+psycopg") and url.database:
        postgres.check_options({**_blank_options(address), **url.query})
        return url.set(drivername="postgresql+psycopg")
    raise refused


def _blank_options(address: str) -> dict[str, str]:
    """The options without a value, which SQLAlchemy drops."""
    return {name: value for name, value in parse_qsl(address.partition("?")[2], keep_blank_values=True) if not value}


def address_secrets(address: str) -> Iterator[str]:
    """The passwords of an address, wherever in it they are."""
    yield from url_passwords(address)
    if "://" in address:
        with suppress(InvalidInput):
            url = parse_address(address)
            yield str(url.password or "")
            for name in ("password", "sslpassword"):
                value = url.query.get(name, "")
                yield from (value,) if isinstance(value, str) else value


def shown(url: URL) -> str:
    """The address for people: neither its password nor its options, where a password may be too."""
    return url.set(query={}).render_as_string(hide_password=True)


def connect(address: str) -> Engine:
    """An engine whose database has this version's tables; they are made or migrated when needed.

    Raises:
        InvalidInput: not an address, or of a database whose driver is not installed.
        LedgerUnavailable: the database cannot be reached or written now.
        LedgerError: it never can, or was made by a newer version.
    """
    url = parse_address(address)
    try:
        engine = sqlite.make_engine(url) if url.get_backend_name() == "sqlite" else postgres.make_engine(url)
        _migrate(engine)
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error)
        expected = "expected a database that can be written"
        raise _kind(error)(f"ledger: cannot use {shown(url)}: {reason}; {expected}") from error
    return engine


@contextmanager
def writing(engine: Engine, *, synced: bool = False) -> Iterator[Connection]:
    """One transaction that writes; on SQLite it has the database's write lock.

    Args:
        synced: Whether it is on the disk when this returns.

    Raises:
        LedgerUnavailable: it could not be reached; nothing was written, unless the connection was lost at the commit.
        LedgerError: it refused something; nothing was written.
    """
    on_sqlite = engine.dialect.name == "sqlite"
    with _errors(engine), engine.connect() as connection:
        if on_sqlite:
            sqlite.set_synced(connection, synced)
        with connection.begin():
            if synced and not on_sqlite:
                postgres.set_synced(connection)
            yield connection


@contextmanager
def reading(engine: Engine, *, snapshot: bool = False) -> Iterator[Connection]:
    """One transaction that only reads.

    Args:
        snapshot: Whether several statements must see the same moment. On SQLite they do in any case.

    Raises:
        LedgerUnavailable: the database could not be reached.
    """
    options: dict[str, Any] = {"sqlite_begin": "BEGIN"}
    if snapshot and engine.dialect.name != "sqlite":
        options["isolation_level"] = "REPEATABLE READ"
    with (
        _errors(engine),
        engine.connect().execution_options(**options) as connection,
        connection.begin(),
    ):
        yield connection


def insert_if_new(connection: Connection, table: Table, **values: Any) -> bool:
    """Adds a row, or does nothing where one with its key is there; whether it was added."""
    return connection.execute(_insert_if_new(connection.dialect.name, table), values).rowcount == 1


def insert_all_if_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds those of the rows, which all have the same columns, that are new by their keys."""
    connection.execute(_insert_if_new(connection.dialect.name, table), list(rows))


@cache
def _insert_if_new(dialect: str, table: Table) -> Insert:
    insert = sqlite_dialect.insert if dialect == "sqlite" else postgresql_dialect.insert
    # SQLAlchemy remembers the count of an INSERT only when it is asked to.
    return insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)


@contextmanager
def _errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise _kind(error)(f"ledger: {shown(engine.url)}: {getattr(error, 'orig', None) or error}") from error


def _kind(error: Exception) -> type[LedgerError]:
    """Whether what a database, or the way to it, said may pass."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        passes = sqlite.may_pass(original)
    else:
        passes = isinstance(error, OperationalError | InterfaceError | TimeoutError)
        passes = passes and not postgres.refuses(str(original))
        passes = passes or (isinstance(error, DBAPIError) and error.connection_invalidated)
    return LedgerUnavailable if passes else LedgerError


def time_of(connection: Connection, clock: Clock | None) -> float:
    """The time by which the database's users agree: PostgreSQL's own; a clock that was handed in goes before."""
    if clock is None and connection.dialect.name == "postgresql":
        return postgres.time_of(connection)
    return (clock or SystemClock()).now()


def schema_version(engine: Engine) -> str | None:
    """The migration that the database is at; None for a database without our tables."""
    with engine.connect().execution_options(sqlite_begin="BEGIN") as connection:
        return _version(connection)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: Engine) -> None:
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
            if engine.dialect.name == "postgresql":
                postgres.lock_migrations(connection)
            version = _version(connection)
            if version == HEAD:
                return
            if version is not None and version not in known:
                raise LedgerError(
                    f"ledger: {shown(engine.url)} has schema {version}; expected at most {HEAD}: "
                    "it was made by a newer perpetual-blocks, upgrade this one"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
