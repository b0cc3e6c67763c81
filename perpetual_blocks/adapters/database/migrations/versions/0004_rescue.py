"""Rescue: what a person wants of a chain, where a session runs, what follows from it; failed attempts; the switch."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "failures",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=512), nullable=False),
        sa.Column("failure", sa.Integer(), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("cut_off", sa.Boolean(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_failures_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "item", "failure", name=op.f("pk_failures")),
    )
    op.create_table(
        "switches",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_switches")),
    )
    op.add_column("chains", sa.Column("wanted", sa.String(length=16), nullable=True))
    op.add_column("chains", sa.Column("wanted_why", sa.Text(), nullable=True))
    op.add_column("chains", sa.Column("attended", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("chains", sa.Column("code", sa.Text(), nullable=True))
    op.add_column("chains", sa.Column("context_version", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("sessions", sa.Column("machine", sa.Text(), nullable=True))
    op.add_column("sessions", sa.Column("template", sa.JSON(), nullable=True))
    op.add_column("sessions", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_sessions_flow_run_id"), "sessions", ["flow_run_id"])
    op.add_column("items", sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("items", sa.Column("retry_at", sa.Float(), nullable=True))
    op.add_column("items", sa.Column("claim", sa.String(length=16), nullable=True))
    op.add_column("documents", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("outbox", sa.Column("renewals", sa.Integer(), nullable=False, server_default="0"))
