"""Pools: limits that several chains share, their members, reservations and spending."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "resource", name=op.f("pk_pools")),
    )
    op.create_table(
        "pool_members",
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("used", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pool", "resource"],
            ["pools.name", "pools.resource"],
            name=op.f("fk_pool_members_pool"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pool", "resource", "holder", name=op.f("pk_pool_members")),
    )
    op.create_table(
        "pool_reservations",
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("item", sa.String(length=512), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pool", "resource"],
            ["pools.name", "pools.resource"],
            name=op.f("fk_pool_reservations_pool"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pool", "resource", "holder", "item", "unit", name=op.f("pk_pool_reservations")),
    )
    op.create_index(op.f("ix_pool_reservations_holder"), "pool_reservations", ["holder"], unique=False)
    op.create_table(
        "pool_spending",
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("item", sa.String(length=512), nullable=False),
        sa.Column("unit", sa.Integer(), nullable=False),
        sa.Column("failure", sa.Integer(), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pool", "resource"],
            ["pools.name", "pools.resource"],
            name=op.f("fk_pool_spending_pool"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("pool", "resource", "holder", "item", "unit", "failure", name=op.f("pk_pool_spending")),
    )
    op.create_index(
        op.f("ix_pool_spending_pool_resource_at"), "pool_spending", ["pool", "resource", "at"], unique=False
    )
