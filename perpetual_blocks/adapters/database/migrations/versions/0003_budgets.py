"""Budgets with windows and totals: forecasts, quotas, bounds, cut-offs, what was passed over, follow-ons that wait."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "forecasts",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_forecasts_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_forecasts")),
    )
    _add("chains", sa.Column("quotas", sa.JSON(), nullable=False, server_default="{}"))
    _add("chains", sa.Column("resume_at", sa.Float(), nullable=True))
    _add("sessions", sa.Column("passed_over", sa.JSON(), nullable=False, server_default="{}"))
    _add("sessions", sa.Column("choices", sa.JSON(), nullable=False, server_default="[]"))
    _add("items", sa.Column("bound", sa.JSON(), nullable=False, server_default="{}"))
    _add("items", sa.Column("complexity", sa.String(length=16), nullable=False, server_default="normal"))
    _add("items", sa.Column("cut_offs", sa.Integer(), nullable=False, server_default="0"))
    _add("items", sa.Column("passed_over", sa.Integer(), nullable=False, server_default="0"))
    _add("items", sa.Column("passed_over_in", sa.Integer(), nullable=True))
    _add("outbox", sa.Column("not_before", sa.Float(), nullable=True))


def _add(table: str, column: "sa.Column[Any]") -> None:
    """Adds a column; what is there gets the default, and new rows say the value themselves."""
    op.add_column(table, column)
