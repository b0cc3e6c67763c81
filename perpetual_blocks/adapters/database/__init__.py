"""The ledger in a database, through SQLAlchemy Core."""

from perpetual_blocks.adapters.database.ledger import SqlLedger

__all__ = ["SqlLedger"]
