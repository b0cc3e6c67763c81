"""Warm successors: when a session will end, who waits at the fence, and how long it did."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("ends_at", sa.Float(), nullable=True))
    op.add_column("sessions", sa.Column("waited", sa.Float(), nullable=True))
    op.add_column("outbox", sa.Column("waits_until", sa.Float(), nullable=True))
