"""PostgreSQL over TLS: what the ledger's address asks for is what the connection has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import address_of
from pydantic import ValidationError
from sqlalchemy.engine import make_url
from support import one_line
from tls_front import Authority, TlsFront

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.database.engine import reading
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.errors import LedgerError

PASSWORD = "canary-of-the-password"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the server's certificate, which is for localhost only."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another one."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    return address_of("postgres", request)


@pytest.fixture
def front(database: str, authority: Authority) -> Iterator[TlsFront]:
    """The server, reached by TCP and TLS."""
    with TlsFront(socket_of(database), authority.server_context("localhost")) as front:
        yield front


@pytest.fixture
def plain_front(database: str) -> Iterator[TlsFront]:
    """The server, reached by TCP without TLS."""
    with TlsFront(socket_of(database), None) as front:
        yield front


def socket_of(database: str) -> str:
    """The path of the server's socket."""
    query = make_url(database).query
    return f"{query['host']}/.s.PGSQL.{query.get('port', 5432)}"


def address(database: str, front: TlsFront, host: str = "localhost", **options: Any) -> str:
    """The database's address through that front."""
    name = make_url(database).database
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return f"postgresql://postgres:{PASSWORD}@{host}:{front.port}/{name}?{query}"


def is_encrypted(ledger: SqlLedger) -> bool:
    """Whether libpq says so of the ledger's connection."""
    with reading(ledger._engine) as connection:
        driver: Any = connection.connection.dbapi_connection
        return bool(driver.pgconn.ssl_in_use)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_the_connection_is_encrypted_as_the_address_says(
    mode: str, database: str, front: TlsFront, authority: Authority
) -> None:
    """With each of the modes that ask for it; the ledger works over it."""
    options = {} if mode == "require" else {"sslrootcert": authority.certificate}
    ledger = SqlLedger(address(database, front, sslmode=mode, **options))

    assert is_encrypted(ledger)
    assert ledger.chains() == []
    assert front.encrypted == front.connections > 0
    ledger.close()


def test_without_tls_the_connection_is_not_encrypted(database: str, front: TlsFront) -> None:
    """So that the tests above can tell one from the other."""
    ledger = SqlLedger(address(database, front, sslmode="disable"))

    assert not is_encrypted(ledger)
    ledger.close()


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_certificate_of_a_stranger_is_refused(mode: str, database: str, front: TlsFront, stranger: Authority) -> None:
    """In one line that says why, and without the password."""
    with pytest.raises(LedgerError) as refused:
        SqlLedger(address(database, front, sslmode=mode, sslrootcert=stranger.certificate))

    one_line(
        refused.value, "ledger: cannot use postgresql+psycopg://postgres:***@localhost", "certificate verify failed"
    )
    assert PASSWORD not in str(refused.value)


def test_verify_full_refuses_a_certificate_for_another_host(
    database: str, front: TlsFront, authority: Authority
) -> None:
    """`verify-ca` trusts whoever was signed; `verify-full` asks for the very host."""
    trusting = SqlLedger(address(database, front, "127.0.0.1", sslmode="verify-ca", sslrootcert=authority.certificate))
    trusting.close()
    with pytest.raises(LedgerError) as refused:
        SqlLedger(address(database, front, "127.0.0.1", sslmode="verify-full", sslrootcert=authority.certificate))

    one_line(refused.value, "does not match host name")


def test_a_server_without_tls_is_refused_where_the_address_requires_it(database: str, plain_front: TlsFront) -> None:
    """`prefer`, PostgreSQL's default, goes on without."""
    SqlLedger(address(database, plain_front, sslmode="prefer")).close()
    with pytest.raises(LedgerError) as refused:
        SqlLedger(address(database, plain_front, sslmode="require"))

    one_line(refused.value, "server does not support SSL, but SSL was required")
    assert PASSWORD not in str(refused.value)


def test_a_certificate_that_is_not_there_is_named(database: str, front: TlsFront, tmp_path: Path) -> None:
    """The path of `sslrootcert` is in the error."""
    with pytest.raises(LedgerError) as refused:
        SqlLedger(address(database, front, sslmode="verify-full", sslrootcert=tmp_path / "none.pem"))

    one_line(refused.value, "none.pem", "does not exist")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("sslmode=requires", "?sslmode=requires"),
        ("sslmode=", "?sslmode="),
        ("sslmode=verify_full", "expected one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmod=require", "?sslmod=…"),
        ("ssl_mode=require", "?ssl_mode=…"),
        ("SSLMODE=require", "?SSLMODE=…"),
        ("sslrootcrt=ca.pem", "?sslrootcrt=…"),
        ("ssmode=require", "?ssmode=…"),
    ],
)
def test_misspelt_options_for_tls_are_refused_when_the_block_is_saved(options: str, says: str) -> None:
    """Not when the first session starts, and never taken for no wish at all."""
    with pytest.raises(ValidationError) as refused:
        StatePersistence(ledger=f"postgresql://me:{PASSWORD}@db/agents?{options}")

    assert says in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_other_options_are_left_to_postgresql() -> None:
    """As a time-out for connecting, or a socket's folder."""
    StatePersistence(ledger="postgresql://db/agents?connect_timeout=3&host=/tmp&application_name=x&sslmode=require")
