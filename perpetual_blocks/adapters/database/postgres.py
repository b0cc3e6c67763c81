"""PostgreSQL, as the ledger uses it.

There is no write lock of the whole database: a transaction that decides on a chain's rows locks the chain's own row
first; what chains of one queue share has locks of its own (see `queues`). Every statement sees what others had
committed before it (READ COMMITTED), so what is read after a lock cannot change before the commit. Commits are synced
to disk, unless the server's administrator has set `synchronous_commit = off`; those that must be synced say so.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from hashlib import sha256
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, bindparam, create_engine, func, select, text
from sqlalchemy.engine import URL

from perpetual_blocks.adapters.database.json_text import read_json
from perpetual_blocks.errors import InvalidInput

_MIGRATIONS = 0x7065727065747561  # any number that no other program locks: "perpetua"


SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_REFUSAL = re.compile(
    r"FATAL: +(password authentication failed|no pg_hba\.conf entry|(role|database) \".*\" does not exist)"
)

_SSL_OPTIONS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslcertmode",
    "sslnegotiation",
    "sslcompression",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)


def check_options(options: Mapping[str, object]) -> None:
    """Refuses an address whose options for TLS are misspelt, before somebody relies on them.

    Raises:
        InvalidInput: names the option.
    """
    for name, value in options.items():
        is_like_one = name.lower().startswith("ssl") or get_close_matches(name.lower(), ("sslmode", "sslrootcert"))
        if is_like_one and name not in _SSL_OPTIONS:
            raise InvalidInput.of("ledger", f"?{name}=…", f"one of PostgreSQL's options: {', '.join(_SSL_OPTIONS)}")
        if name == "sslmode" and value not in SSL_MODES:
            raise InvalidInput.of("ledger", f"?sslmode={value}", f"one of {', '.join(SSL_MODES)}")


_NETWORK: dict[str, Any] = {
    # A network that drops packets is noticed within the lease, and not after the two hours that TCP takes by itself.
    "connect_timeout": 10,
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


def make_engine(url: URL) -> Engine:
    """An engine on a PostgreSQL database. What its address says of connecting goes before what we say.

    Raises:
        InvalidInput: its driver is not installed.
    """
    try:
        options = {name: value for name, value in _NETWORK.items() if name not in url.query}
        return create_engine(
            url, pool_pre_ping=True, hide_parameters=True, json_deserializer=read_json, connect_args=options
        )
    except ImportError:
        raise InvalidInput.of(
            "ledger", "postgresql://…", "psycopg, PostgreSQL's driver: pip install perpetual-blocks[postgres]"
        ) from None


def refuses(said: str) -> bool:
    """Whether a server that was reached refuses the address for good: its user, password or database.

    The driver does not tell it by a code from a server that is just starting. One that speaks another language than
    English is not understood, and tried again.
    """
    return _REFUSAL.search(said) is not None


def time_of(connection: Connection) -> float:
    """The server's clock, in seconds since the Unix epoch."""
    return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


def lock_name(connection: Connection, name: str, *, shared: bool = False) -> None:
    """Waits until no other transaction has the lock of this name, or until all that have it share it; lasts until this
    one ends."""
    number = int.from_bytes(sha256(name.encode()).digest()[:8], signed=True)
    function = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
    connection.execute(select(function(bindparam("number", number, BigInteger))))


def lock_migrations(connection: Connection) -> None:
    """Waits until no other transaction migrates this database; lasts until this one ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATIONS})


def set_synced(connection: Connection) -> None:
    """Says that this transaction is on the disk when it has been committed, whatever the server's setting."""
    connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
