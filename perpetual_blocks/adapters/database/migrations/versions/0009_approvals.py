"""Approvals: what a person decides about a chain whose total is gone."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("chains", sa.Column("approvals", sa.JSON(), nullable=True))
    op.add_column("chains", sa.Column("asks_until", sa.Float(), nullable=True))
