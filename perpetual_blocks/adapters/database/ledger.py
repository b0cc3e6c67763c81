"""The ledger: every promise that is a transaction is a method of one of the classes that it is composed of.

Each writing method takes a lock first and then looks, so what it decides on cannot change before it commits: SQLite's
write lock, or the lock of the chain's row, which every writer of that chain takes. A session's own commits begin with
the fence: one UPDATE of the chain's row that matches only while the epoch and holder are the session's own, and that
moves the lease on. Where it matches nothing, another session owns the chain, and the transaction is rolled back.

A transaction that was lost on the way is tried again (see `patient`), though it may have been committed: each method
finds out what it has done already, and leaves it at that.
"""

from typing import Literal

from perpetual_blocks.adapters.database.approvals import ChainApproval
from perpetual_blocks.adapters.database.documents import DocumentWriter
from perpetual_blocks.adapters.database.items import ItemWriter
from perpetual_blocks.adapters.database.repair import ChainRepair
from perpetual_blocks.adapters.database.retention import ChainRetention
from perpetual_blocks.adapters.database.sessions import SessionWriter
from perpetual_blocks.adapters.database.units import UnitWriter
from perpetual_blocks.clock import Clock, SystemClock
from perpetual_blocks.patience import Patience

DEFAULT_LEASE_SECONDS = 60.0


class SqlLedger(SessionWriter, UnitWriter, ItemWriter, DocumentWriter, ChainApproval, ChainRepair, ChainRetention):
    """The ledger in an SQLite file (or in memory, `sqlite://`), or in a PostgreSQL database.

    Args:
        address: A path, or a database URL: `sqlite:///path`, `postgresql://user@host/database`.
        clock: Tells the time of leases and records; by default the database's own where it has one (PostgreSQL), so
            that machines with wrong clocks agree, else this machine's.
        lease_seconds: How long a session owns its chain without a heartbeat.
        durability: `normal`: commits survive the death of the process, and closing a session is synced to disk.
            `full`: every commit is synced, for machines that lose power. PostgreSQL syncs every commit as it is.
        patience_seconds: For how long each transaction is tried again while the database is away; at most until the
            session's lease has run out, if that is shorter.

    Raises:
        InvalidInput: not an address, or of a database whose driver is not installed.
        LedgerUnavailable: the database cannot be reached now.
        LedgerError: the database cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        clock: Clock | None = None,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        durability: Literal["normal", "full"] = "normal",
        patience_seconds: float = 0.0,
    ) -> None:
        patience = Patience(patience_seconds, clock or SystemClock())
        super().__init__(address, clock, patience, synced=durability == "full", lease_seconds=lease_seconds)
