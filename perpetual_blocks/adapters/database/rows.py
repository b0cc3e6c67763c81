"""The ledger's rows as the core knows them."""

from typing import Any

from sqlalchemy import Connection, Row, RowMapping, select

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.budget import Limit, Window
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.approval import Approval
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, Wanted
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.work import Item, ItemStatus, Selector

FOLLOW_ON_COLUMNS = ("parameters", "run_name", "tags", "job_variables", "work_queue", "not_before")
CLAIM_ORDER = (t.items.c.priority.desc(), t.items.c.attempts, t.items.c.position)
ITEMS = select(*(t.items.c[name] for name in Item.__slots__))
_STATUSES = {status.value: status for status in ItemStatus}
_SET_FIELDS = [getattr(Item, name).__set__ for name in Item.__slots__]
_SET_STATUS, _SET_PROGRESS = (_SET_FIELDS[Item.__slots__.index(name)] for name in ("status", "progress"))


def item_of(row: Row[Any]) -> Item:
    """A row of `ITEMS` as the core knows it.

    There are thousands in a batch: to fill the slots takes a third of the time of a frozen class's `__init__`.
    """
    item = object.__new__(Item)
    for set_field, value in zip(_SET_FIELDS, row, strict=True):
        set_field(item, value)
    _SET_STATUS(item, _STATUSES[item.status])
    if item.progress:
        _SET_PROGRESS(item, tuple(item.progress))
    return item


def chain_of(row: RowMapping) -> Chain:
    fields = {name: row[name] for name in Chain.__slots__}
    return Chain(
        **{
            **fields,
            "status": ChainStatus(row["status"]),
            "wanted": Wanted(row["wanted"]) if row["wanted"] else None,
            "queue": row["queue"] or row["name"],
            "selector": Selector.from_json(row["selector"]),
            "approvals": tuple(map(Approval.from_json, row["approvals"] or ())),
        }
    )


def follow_on_of(row: RowMapping) -> FollowOn:
    return FollowOn(
        chain=row["chain"],
        ordinal=row["ordinal"],
        idempotency_key=row["idempotency_key"],
        deployment_id=row["deployment_id"],
        flow_run_id=row["flow_run_id"],
        waits_until=row["waits_until"],
        **{**{name: row[name] for name in FOLLOW_ON_COLUMNS}, "tags": tuple(row["tags"])},
    )


def session_of(row: RowMapping) -> SessionRecord:
    fields = {name: row[name] for name in SessionRecord.__slots__}
    verified = tuple(row["verified"]) if row["verified"] else None
    return SessionRecord(**{**fields, "state": SessionState(row["state"]), "verified": verified})


def pool_key(limit: Limit) -> str:
    """The pool of a limit by its full name: those of one name with different windows are different accounts."""
    return f"{limit.pool}/{limit.window or limit.scope}"


def window_of(pool: str) -> Window | None:
    """The window that a pool's full name tells; None for one in total, and for a program's own, which tells nothing."""
    # A pool's name may hold a slash, and so does a time zone's.
    _, *ends = pool.split("/")
    for start in range(len(ends)):
        try:
            return Window.parse("/".join(ends[start:]))
        except InvalidInput:
            continue
    return None


def find_chain(connection: Connection, name: str) -> Chain | None:
    row = connection.execute(select(t.chains).where(t.chains.c.name == name)).mappings().first()
    return chain_of(row) if row else None
