"""Alembic's entry: runs migrations on the connection that the ledger hands over."""

from alembic import context

from perpetual_blocks.adapters.database.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
context.run_migrations()
