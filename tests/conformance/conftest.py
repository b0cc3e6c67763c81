"""Fixtures of the conformance tests: both databases, and a check that the table and the tests agree."""

from contextlib import closing
from pathlib import Path

import pytest
from postgres_server import TEMPLATE, PostgresServer
from rig import MakeRig, Rig
from rules import RULES
from sqlalchemy import delete
from support import FakeClock, LedgerFactory

from perpetual_blocks.adapters.database import SqlLedger, schema


@pytest.fixture(scope="session")
def database(postgres: PostgresServer) -> str:
    """The address of a PostgreSQL database for all of these tests: one for each would take longer than the tests."""
    return postgres.make_database(TEMPLATE)


@pytest.fixture(params=("sqlite-file", "postgres"))
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty ledger that several processes can open."""
    if request.param == "sqlite-file":
        return str(tmp_path / "ledger.db")
    address: str = request.getfixturevalue("database")
    with closing(SqlLedger(address)) as ledger, ledger._writing() as connection:
        connection.execute(delete(schema.chains))  # and with them all that belongs to them
    return address


@pytest.fixture
def ledger(address: str, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address)


@pytest.fixture
def make_rig(ledger: SqlLedger, clock: FakeClock) -> MakeRig:
    """Makes the chain of a test."""
    return lambda items, work: Rig(ledger, clock, items, work)


@pytest.fixture(autouse=True)
def rule(request: pytest.FixtureRequest) -> str | None:
    """The id of the rule that a test proves; the table must say so, too."""
    id: str | None = getattr(request, "param", None)
    if id is not None:
        path = request.node.nodeid.partition("[")[0]
        (row,) = [row for row in RULES if row.id == id]
        assert path in row.proof, f"the table does not name this test as a proof of {id}"
    return id
