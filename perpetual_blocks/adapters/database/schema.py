"""The ledger's tables.

Times are seconds since the Unix epoch, JSON columns hold what pydantic or our own codec has checked, and every row
belongs to a chain or to a pool. `migrations/` makes these tables; a test compares the two.
"""

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    desc,
    false,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

_CHAIN = 64
_ITEM = 512
_POOL = 64
_RESOURCE = 64
_HOLDER = 128

chains = Table(
    "chains",
    metadata,
    Column("name", String(_CHAIN), primary_key=True),
    Column("uid", String(32), nullable=False, unique=True),
    Column("agent", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("holder", Text),
    Column("lease_until", Float, nullable=False),
    Column("planned", Boolean, nullable=False),
    Column("context", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    # JSON columns that came later: never null, but SQLite cannot be told so of a table that has rows.
    Column("quotas", JSON),
    Column("resume_at", Float),
    # What a person wants of it: pause, cancel or stop-all; a session at work stops for it, and none starts.
    Column("wanted", String(16)),
    Column("wanted_why", Text),
    # The latest session that a person has started, or resumed the chain after.
    Column("attended", Integer, nullable=False, server_default="0"),
    # The program that its latest session ran, as a digest; null where any is welcome.
    Column("code", Text),
    # The version of the agent's context, as the agent counts it.
    Column("context_version", Integer, nullable=False, server_default="1"),
    # The chain whose items it works on, and which of them it takes; null for its own, and for all.
    Column("queue", String(_CHAIN)),
    Column("selector", JSON),
    # What was decided when a total of it was gone; until when a run of it waits for that.
    Column("approvals", JSON),
    Column("asks_until", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index(None, "queue"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("flow_run_id", String(64)),
    Column("deployment_id", String(64)),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("stop_reason", Text),
    Column("stop_message", Text),
    Column("graceful", Boolean, nullable=False),
    Column("units", Integer, nullable=False),
    Column("usage", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("resume_seconds", Float),
    Column("verified", JSON),
    Column("steps", JSON, nullable=False),
    Column("passed_over", JSON),
    Column("choices", JSON),
    # Where its process number means this process: the boot and the name space of processes.
    Column("machine", Text),
    # What a run that goes on from here is made of; null without a deployment.
    Column("template", JSON),
    # Attempts that failed or were cut off: with the units, what came of it.
    Column("attempts", Integer, nullable=False, server_default="0"),
    # When it will end, as it said when its end was near; how long its process had waited at the fence.
    Column("ends_at", Float),
    Column("waited", Float),
    # What the first unit that it finished used: with a resume's price in it.
    Column("first_usage", JSON),
    Index(None, "chain", "flow_run_id"),
    Index(None, "flow_run_id"),
)

items = Table(
    "items",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("id", String(_ITEM), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("estimate", JSON, nullable=False),
    Column("bound", JSON),
    Column("complexity", String(16), nullable=False, server_default="normal"),
    Column("max_attempts", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("blockers", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    # Processes that died, one after the other, while they worked on it.
    Column("crashes", Integer, nullable=False, server_default="0"),
    # Sessions with a whole budget that its next unit has used up in vain, one after the other.
    Column("cut_offs", Integer, nullable=False, server_default="0"),
    # Sessions in which something behind it was taken.
    Column("passed_over", Integer, nullable=False, server_default="0"),
    Column("passed_over_in", Integer),  # of older versions; backups of theirs have it
    Column("units", Integer, nullable=False),
    Column("progress", JSON),
    Column("cursor", JSON),
    Column("next_action", Text),
    Column("result_key", Text),
    Column("error", Text),
    # Until when it is left alone after a failed attempt.
    Column("retry_at", Float),
    # The session that holds it: its chain, which may be another than the queue's, and its ordinal. The chain stays
    # where its unit was interrupted.
    Column("claimant", String(_CHAIN)),
    Column("claimed_by", Integer),
    # Tells the claim from others of its session, should it be repeated.
    Column("claim", String(16)),
    # Where the outcome of its next unit may lie already: the claims since it became the next, in words.
    Column("claims", Text),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("chain", "position"),
)
# The order of claiming, so that the first row of the index is the first candidate.
Index(
    "ix_items_queue",
    items.c.chain,
    items.c.status,
    desc(items.c.priority),
    items.c.attempts,
    items.c.position,
)

# Those that have been claimed for their next unit: few.
Index(
    "ix_items_begun",
    items.c.chain,
    sqlite_where=items.c.claims.is_not(None),
    postgresql_where=items.c.claims.is_not(None),
)

# Those that are left alone for a while: few.
Index(
    "ix_items_retry",
    items.c.chain,
    items.c.retry_at,
    sqlite_where=items.c.retry_at.is_not(None),
    postgresql_where=items.c.retry_at.is_not(None),
)

# How many items have come into a queue, and how many of them are completed, as each chain has counted; see `tallies`.
tallies = Table(
    "tallies",
    metadata,
    Column("queue", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    # No foreign key: what it has counted stays when the chain is forgotten.
    Column("chain", String(_CHAIN), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("added", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
)

dependencies = Table(
    "dependencies",
    metadata,
    Column("chain", String(_CHAIN), primary_key=True),
    Column("item", String(_ITEM), primary_key=True),
    Column("depends_on", String(_ITEM), primary_key=True),
    ForeignKeyConstraint(["chain", "item"], ["items.chain", "items.id"], ondelete="CASCADE"),
    Index(None, "chain", "depends_on"),
)

usage = Table(
    "usage",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("item", String(_ITEM), primary_key=True),
    Column("unit", Integer, primary_key=True),
    # 0 for the attempt that finished the unit, so that it is counted once; failed attempts are numbered from 1.
    Column("failure", Integer, primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("session", Integer, nullable=False),
    Column("amount", Float, nullable=False),
    Column("at", Float, nullable=False),
    Index(None, "chain", "resource", "at"),
)

# The story of a unit's attempts; what they spent is in `usage` under the same numbers.
failures = Table(
    "failures",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("item", String(_ITEM), primary_key=True),
    Column("failure", Integer, primary_key=True),
    Column("unit", Integer, nullable=False),
    Column("session", Integer, nullable=False),
    Column("error", Text, nullable=False),
    # Whether it had no room to finish: then it was no failed attempt.
    Column("cut_off", Boolean, nullable=False),
    Column("at", Float, nullable=False),
)

documents = Table(
    "documents",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("key", Text, nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("size", Integer, nullable=False),
    # Kept however many newer ones there are.
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("at", Float, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("idempotency_key", Text, nullable=False, unique=True),
    Column("deployment_id", String(64), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("run_name", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("job_variables", JSON, nullable=False),
    Column("work_queue", Text),
    Column("not_before", Float),
    Column("recorded_at", Float, nullable=False),
    Column("created_at", Float),
    Column("flow_run_id", String(64)),
    # How often its run was created anew, because the one before came to nothing.
    Column("renewals", Integer, nullable=False, server_default="0"),
    # Until when its run is known to wait at the fence; null for one that has not come there ahead of its time.
    Column("waits_until", Float),
)

# What holds for all chains of the ledger: a row is there while its switch is on.
switches = Table(
    "switches",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", Float, nullable=False),
)

forecasts = Table(
    "forecasts",
    metadata,
    Column("chain", String(_CHAIN), ForeignKey("chains.name", ondelete="CASCADE"), primary_key=True),
    # The session that saved it; what later ones had committed when they died is learned from their usage.
    Column("session", Integer, nullable=False),
    Column("state", JSON, nullable=False),
)

# A pool's row is what its writers lock. `since` is from when on its members' `used` counts their spending.
pools = Table(
    "pools",
    metadata,
    Column("name", String(_POOL), primary_key=True),
    Column("resource", String(_RESOURCE), primary_key=True),
    Column("since", Float, nullable=False),
)

pool_members = Table(
    "pool_members",
    metadata,
    Column("pool", String(_POOL), primary_key=True),
    Column("resource", String(_RESOURCE), primary_key=True),
    Column("holder", String(_HOLDER), primary_key=True),
    Column("share", Float, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("used", Float, nullable=False),
    ForeignKeyConstraint(["pool", "resource"], ["pools.name", "pools.resource"], ondelete="CASCADE"),
)

pool_reservations = Table(
    "pool_reservations",
    metadata,
    Column("pool", String(_POOL), primary_key=True),
    Column("resource", String(_RESOURCE), primary_key=True),
    Column("holder", String(_HOLDER), primary_key=True),
    Column("item", String(_ITEM), primary_key=True),
    Column("unit", Integer, primary_key=True),
    Column("amount", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    ForeignKeyConstraint(["pool", "resource"], ["pools.name", "pools.resource"], ondelete="CASCADE"),
    Index(None, "holder"),
)

pool_spending = Table(
    "pool_spending",
    metadata,
    Column("pool", String(_POOL), primary_key=True),
    Column("resource", String(_RESOURCE), primary_key=True),
    Column("holder", String(_HOLDER), primary_key=True),
    Column("item", String(_ITEM), primary_key=True),
    Column("unit", Integer, primary_key=True),
    # As in `usage`: 0 for the attempt that finished the unit, failed attempts from 1.
    Column("failure", Integer, primary_key=True),
    Column("amount", Float, nullable=False),
    Column("at", Float, nullable=False),
    ForeignKeyConstraint(["pool", "resource"], ["pools.name", "pools.resource"], ondelete="CASCADE"),
    Index(None, "pool", "resource", "at"),
)
