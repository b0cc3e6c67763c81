"""Budgets with windows and totals: forecasts, quotas, bounds, cut-offs, what was passed over, follow-ons that wait."""

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
    _add_json("chains", "quotas", "{}")
    op.add_column("chains", sa.Column("resume_at", sa.Float(), nullable=True))
    _add_json("sessions", "passed_over", "{}")
    _add_json("sessions", "choices", "[]")
    _add_json("items", "bound", "{}")
    op.add_column("items", sa.Column("complexity", sa.String(length=16), nullable=False, server_default="normal"))
    op.add_column("items", sa.Column("cut_offs", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("items", sa.Column("passed_over", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("items", sa.Column("passed_over_in", sa.Integer(), nullable=True))
    op.add_column("outbox", sa.Column("not_before", sa.Float(), nullable=True))


def _add_json(table: str, name: str, value: str) -> None:
    op.add_column(table, sa.Column(name, sa.JSON(), nullable=True))
    op.execute(f"UPDATE {table} SET {name} = '{value}'")
