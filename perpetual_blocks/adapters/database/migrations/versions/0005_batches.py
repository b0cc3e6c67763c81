"""Batches: for what an item was claimed, so that an outcome that was persisted with others is found."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("items", sa.Column("claims", sa.Text(), nullable=True))
    begun = sa.text("claims IS NOT NULL")
    op.create_index("ix_items_begun", "items", ["chain"], sqlite_where=begun, postgresql_where=begun)
