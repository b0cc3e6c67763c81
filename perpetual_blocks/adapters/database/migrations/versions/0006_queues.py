"""Queues that several chains work on: whose items a chain takes, which of them, and which chain has claimed one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chains", sa.Column("queue", sa.String(length=64), nullable=True))
    op.add_column("chains", sa.Column("selector", sa.JSON(), nullable=True))
    op.create_index(op.f("ix_chains_queue"), "chains", ["queue"])
    op.add_column("items", sa.Column("claimant", sa.String(length=64), nullable=True))
    op.execute("UPDATE items SET claimant = chain WHERE claimed_by IS NOT NULL")
