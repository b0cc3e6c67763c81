"""What several transactions do with a chain's rows: lock it, find its sessions, bury a dead one, record a follow-on."""

import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, bindparam, delete, insert, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.queues import held_by
from perpetual_blocks.adapters.database.rows import FOLLOW_ON_COLUMNS, chain_of, session_of
from perpetual_blocks.session.attempts import back_off
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, invitation
from perpetual_blocks.session.ledger import Fence, FollowOn
from perpetual_blocks.work import Item, ItemStatus

OVER = (ChainStatus.FINISHED, ChainStatus.STALLED)
"""How a chain stands that had nothing left to do; new work opens it again."""

MOST_CRASHES = 5  # processes that may die in a row while they work on one item

UPDATE_SESSION = update(t.sessions).where(
    t.sessions.c.chain == bindparam("of_chain"), t.sessions.c.ordinal == bindparam("of_ordinal")
)
"""Of the session that `of_session` names; it sets the other names that it is executed with."""


def lock_chain(connection: Connection, name: str) -> Chain | None:
    """The chain, which nobody else changes until this transaction ends; rows that refer to it may be added."""
    rows = select(t.chains).where(t.chains.c.name == name).with_for_update(key_share=True)
    row = connection.execute(rows).mappings().first()
    return chain_of(row) if row else None


def new_chain(now: float, settings: dict[str, Any]) -> dict[str, Any]:
    """The columns of a chain that has had no session yet."""
    return {
        "uid": secrets.token_hex(8),
        "agent": "",
        "status": ChainStatus.WAITING,
        "reason": "new",
        "ordinal": 0,
        "epoch": 0,
        "holder": None,
        "lease_until": 0.0,
        "context": {},
        "settings": settings,
        "quotas": {},
        "created_at": now,
        "updated_at": now,
    }


def session(connection: Connection, chain: str, ordinal: int) -> SessionRecord:
    row = select(t.sessions).where(t.sessions.c.chain == chain, t.sessions.c.ordinal == ordinal)
    return session_of(connection.execute(row).mappings().one())


def latest_session(connection: Connection, chain: str) -> SessionRecord | None:
    rows = select(t.sessions).where(t.sessions.c.chain == chain).order_by(t.sessions.c.ordinal.desc()).limit(1)
    row = connection.execute(rows).mappings().first()
    return session_of(row) if row else None


def bury(connection: Connection, chain: Chain, ordinal: int, now: float, why: str) -> None:
    """Ends a session whose process died, and gives back what it had claimed.

    An item during whose units process after process has died is discarded: what kills them may well be the item.
    """
    connection.execute(
        update(t.sessions)
        .where(t.sessions.c.chain == chain.name, t.sessions.c.ordinal == ordinal)
        .values(state=SessionState.CRASHED, ended_at=now, stop_reason="crashed", stop_message=why, graceful=False)
    )
    claimed = held_by(chain.queue, chain.name, ordinal)
    for item, before in connection.execute(select(t.items.c.id, t.items.c.crashes).where(claimed)).all():
        crashes = before + 1
        values: dict[str, Any] = {"crashes": crashes, "updated_at": now}
        if crashes >= MOST_CRASHES:
            values |= {"status": ItemStatus.DISCARDED, "claimant": None, "claimed_by": None}
            values["error"] = f"quarantined: {crashes} processes in a row died while they worked on it; the last: {why}"
            values["interruptions"] = t.items.c.interruptions + 1
        elif crashes > 1:  # once is bad luck; then others go first
            values["retry_at"] = now + back_off(crashes - 1)
        connection.execute(update(t.items).where(claimed, t.items.c.id == item).values(**values))
    give_back(connection, claimed, now)


def give_back(connection: Connection, rows: ColumnElement[bool], now: float, only: Item | None = None) -> None:
    """Makes items that a session held available again: an interruption, not a failure, so no attempt is counted."""
    if only is not None:
        # Of the claim that is given back, and no later one.
        rows = and_(rows, t.items.c.id == only.id, t.items.c.interruptions == only.interruptions)
    connection.execute(
        update(t.items)
        .where(rows)
        .values(
            status=ItemStatus.AVAILABLE,
            claimed_by=None,  # the claimant stays: what it had begun is its own to find
            interruptions=t.items.c.interruptions + 1,
            updated_at=now,
        )
    )


# The outbox ---------------------------------------------------------------------------------------------------------


def entry(chain: str, ordinal: int) -> ColumnElement[bool]:
    """The outbox's row of the follow-on that is to be that session."""
    return and_(t.outbox.c.chain == chain, t.outbox.c.ordinal == ordinal)


def find_entry(connection: Connection, chain: str, ordinal: int) -> RowMapping | None:
    return connection.execute(select(t.outbox).where(entry(chain, ordinal))).mappings().first()


def record_follow_on(connection: Connection, follow_on: FollowOn, now: float) -> None:
    """Puts a follow-on into the outbox."""
    names = (*FOLLOW_ON_COLUMNS, "chain", "ordinal", "idempotency_key", "deployment_id")
    row = {name: getattr(follow_on, name) for name in names}
    connection.execute(insert(t.outbox).values(**{**row, "tags": list(row["tags"]), "recorded_at": now}))


def renew_entry(connection: Connection, chain: Chain, ordinal: int, not_before: float | None) -> None:
    """Lets a follow-on be created again, as another run; the one before is not invited any more."""
    connection.execute(
        update(t.outbox)
        .where(entry(chain.name, ordinal))
        .values(
            idempotency_key=invitation(chain.uid, ordinal, secrets.token_hex(4)),
            created_at=None,
            flow_run_id=None,
            not_before=not_before,
            waits_until=None,
            renewals=t.outbox.c.renewals + 1,
        )
    )


def settle_follow_on(
    connection: Connection, chain: Chain, follow_on: FollowOn | None, status: ChainStatus, now: float
) -> None:
    """Says what follows a session that ends and leaves its chain like this; None for nothing.

    What was announced is kept where the chain goes on at once: its run may be waiting at the fence already.
    """
    announced = find_entry(connection, chain.name, chain.ordinal + 1) is not None
    if follow_on is None:
        connection.execute(delete(t.outbox).where(entry(chain.name, chain.ordinal + 1)))
    elif not announced:
        record_follow_on(connection, follow_on, now)
    elif status is not ChainStatus.WAITING or follow_on.not_before is not None:
        renew_entry(connection, chain, chain.ordinal + 1, follow_on.not_before)


def of_session(fence: Fence) -> dict[str, Any]:
    """What `UPDATE_SESSION` is executed with."""
    return {"of_chain": fence.chain, "of_ordinal": fence.ordinal}


def reopen(connection: Connection, chain: str, now: float) -> None:
    """A chain that was over has work again; a cancelled one stays so, but somebody wants something of it."""
    connection.execute(
        update(t.chains)
        .where(t.chains.c.name == chain, t.chains.c.status.in_(OVER))
        .values(status=ChainStatus.WAITING, reason="it has new work; start a run to go on", updated_at=now)
    )
    connection.execute(
        update(t.chains)
        .where(t.chains.c.name == chain, t.chains.c.status == ChainStatus.CANCELLED)
        .values(updated_at=now)
    )
