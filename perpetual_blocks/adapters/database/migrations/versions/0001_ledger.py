"""The ledger: chains, sessions, items, dependencies, usage, documents, outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chains",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.Column("planned", sa.Boolean(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chains")),
        sa.UniqueConstraint("uid", name=op.f("uq_chains_uid")),
    )
    op.create_table(
        "documents",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_documents_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "kind", "ordinal", name=op.f("pk_documents")),
        sa.UniqueConstraint("key", name=op.f("uq_documents_key")),
    )
    op.create_table(
        "items",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=512), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("estimate", sa.JSON(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("blockers", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("cursor", sa.JSON(), nullable=True),
        sa.Column("next_action", sa.Text(), nullable=True),
        sa.Column("result_key", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("claimed_by", sa.Integer(), nullable=True),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_items_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "id", name=op.f("pk_items")),
        sa.UniqueConstraint("chain", "position", name=op.f("uq_items_chain_position")),
    )
    op.create_index(
        "ix_items_queue",
        "items",
        ["chain", "status", sa.literal_column("priority DESC"), "attempts", "position"],
        unique=False,
    )
    op.create_table(
        "outbox",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("run_name", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("job_variables", sa.JSON(), nullable=False),
        sa.Column("work_queue", sa.Text(), nullable=True),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=True),
        sa.Column("flow_run_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_outbox_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "ordinal", name=op.f("pk_outbox")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_outbox_idempotency_key")),
    )
    op.create_table(
        "sessions",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("flow_run_id", sa.String(length=64), nullable=True),
        sa.Column("deployment_id", sa.String(length=64), nullable=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_started", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("stop_message", sa.Text(), nullable=True),
        sa.Column("graceful", sa.Boolean(), nullable=False),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("resume_seconds", sa.Float(), nullable=True),
        sa.Column("verified", sa.JSON(), nullable=True),
        sa.Column("steps", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_sessions_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "ordinal", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_chain_flow_run_id"), "sessions", ["chain", "flow_run_id"], unique=False)
    op.create_table(
        "usage",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=512), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("failure", sa.Integer(), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.name"], name=op.f("fk_usage_chain"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chain", "item", "unit", "failure", "resource", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_chain_resource_at"), "usage", ["chain", "resource", "at"], unique=False)
    op.create_table(
        "dependencies",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=512), nullable=False),
        sa.Column("depends_on", sa.String(length=512), nullable=False),
        sa.ForeignKeyConstraint(
            ["chain", "item"],
            ["items.chain", "items.id"],
            name=op.f("fk_dependencies_chain"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("chain", "item", "depends_on", name=op.f("pk_dependencies")),
    )
    op.create_index(op.f("ix_dependencies_chain_depends_on"), "dependencies", ["chain", "depends_on"], unique=False)
