"""Fixtures of the conformance tests: both databases, and a check that the table and the tests agree."""

import pytest
from postgres_server import address_of
from rig import MakeRig, Rig
from rules import RULES
from support import FakeClock, LedgerFactory

from perpetual_blocks.adapters.database import SqlLedger


@pytest.fixture(params=("sqlite-file", "postgres"))
def address(request: pytest.FixtureRequest) -> str:
    """The address of an empty ledger that several processes can open."""
    return address_of(request.param, request)


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
