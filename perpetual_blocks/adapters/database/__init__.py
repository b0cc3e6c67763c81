"""The ledger in a database, through SQLAlchemy Core."""

from perpetual_blocks.adapters.database.ledger import DEFAULT_LEASE_SECONDS, SqlLedger

__all__ = ["DEFAULT_LEASE_SECONDS", "SqlLedger"]
