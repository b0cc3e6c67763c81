"""Fixtures that all tests share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

from support import LEASE, FakeClock

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger

settings.register_profile("perpetual", deadline=None)
settings.load_profile("perpetual")

LedgerFactory = Callable[..., SqlLedger]


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when the test says so."""
    return FakeClock()


@pytest.fixture
def make_ledger(tmp_path: Path, clock: FakeClock) -> Iterator[LedgerFactory]:
    """Makes ledgers on the fake clock, in a file of the test's folder unless told otherwise, and closes them."""
    made: list[SqlLedger] = []

    def make(address: str | None = None, **options: Any) -> SqlLedger:
        ledger = SqlLedger(
            address or str(tmp_path / "ledger.db"), **{"clock": clock, "lease_seconds": LEASE, **options}
        )
        made.append(ledger)
        return ledger

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    """No fault of one test is there in the next."""
    yield
    faults.install(None)
