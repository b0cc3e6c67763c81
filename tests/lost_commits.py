"""Connections that are lost while a transaction commits: the database has committed, and nobody is told."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from sqlalchemy import make_url

from perpetual_blocks.adapters.database import SqlLedger


class CuttingProxy:
    """Stands between clients and a PostgreSQL server, and can cut a connection in place of a commit's answer.

    Attributes:
        port: Where it listens on the loopback address.
        to_lose: How many commits it will still cut.
        lost: How many it has.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.to_lose = self.lost = 0
        Thread(target=self._accept, daemon=True).start()

    def address(self, direct: str) -> str:
        """The address of a database by way of this proxy."""
        url = make_url(direct).set(host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                link = _Link(self, client, server)
                Thread(target=link.forth, daemon=True).start()
                Thread(target=link.back, daemon=True).start()


class _Link:
    """One connection."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._losing = False

    def forth(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(65536):
                if b"COMMIT" in data and self._proxy.to_lose:
                    self._proxy.to_lose -= 1
                    self._losing = True
                self._server.sendall(data)
        self._cut()

    def back(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(65536):
                if self._losing:
                    self._proxy.lost += 1
                    break  # it has committed: this is the answer
                self._client.sendall(data)
        self._cut()

    def _cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Losing:
    """Loses commits of a ledger in SQLite, as a disk does that fails when all is written.

    Attributes:
        to_lose: How many commits it will still lose.
        lost: How many it has.
    """

    def __init__(self, ledger: SqlLedger) -> None:
        self.to_lose = self.lost = 0
        dialect: Any = ledger._engine.dialect
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            commit(connection)
            if self.to_lose:
                self.to_lose -= 1
                self.lost += 1
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR  # type: ignore[misc]
                raise error

        dialect.do_commit = do_commit


@contextmanager
def proxied(direct: str) -> Iterator[CuttingProxy]:
    """A proxy before the server of a database's address."""
    proxy = CuttingProxy(Path(str(make_url(direct).query["host"])) / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        proxy.close()
