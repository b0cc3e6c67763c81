"""Costs that do not grow with a chain: tallies of a queue's items, and what each session's first unit used."""

import json
from itertools import groupby

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

PAGE = 1000


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["queue"], ["chains.name"], name=op.f("fk_tallies_queue"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("queue", "chain", "kind", name=op.f("pk_tallies")),
    )
    op.execute(
        "INSERT INTO tallies (queue, chain, kind, added, completed) "
        "SELECT chain, chain, kind, count(*), sum(CASE WHEN status = 'completed' THEN 1 ELSE 0 END) "
        "FROM items GROUP BY chain, kind"
    )
    waits = sa.text("retry_at IS NOT NULL")
    op.create_index("ix_items_retry", "items", ["chain", "retry_at"], sqlite_where=waits, postgresql_where=waits)
    op.add_column("sessions", sa.Column("first_usage", sa.JSON(), nullable=True))
    _fill_first_usage(op.get_bind())


def _fill_first_usage(connection: sa.Connection) -> None:
    rows = connection.execute(
        sa.text(
            "SELECT chain, session, item, unit, resource, amount FROM usage WHERE failure = 0 "
            "ORDER BY chain, session, at, item, unit"
        )
    )
    firsts = []
    for (chain, session), of_session in groupby(rows, key=lambda row: (row.chain, row.session)):
        _, unit = next(groupby(of_session, key=lambda row: (row.item, row.unit)))
        usage = {row.resource: row.amount for row in unit}
        firsts.append({"chain": chain, "ordinal": session, "usage": json.dumps(usage)})
    update = sa.text("UPDATE sessions SET first_usage = :usage WHERE chain = :chain AND ordinal = :ordinal")
    if connection.dialect.name == "postgresql":
        update = sa.text(
            "UPDATE sessions SET first_usage = CAST(:usage AS JSON) WHERE chain = :chain AND ordinal = :ordinal"
        )
    for start in range(0, len(firsts), PAGE):
        connection.execute(update, firsts[start : start + PAGE])
