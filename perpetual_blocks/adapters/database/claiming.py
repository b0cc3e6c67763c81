"""A claim: which items it looks at, those that it takes, and how one that was tried before is found again."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, bindparam, func, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.items import VARIABLES
from perpetual_blocks.adapters.database.queues import candidates, held_by
from perpetual_blocks.adapters.database.rows import CLAIM_ORDER, ITEMS, item_of
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.session.ledger import Fence, Misfit
from perpetual_blocks.work import Item, ItemStatus, Selector, sources

PASSED_OVER_SHOWN = 10
MOST_LOOKED_AT = 1000  # items, at each claim
PATIENCE = 3  # sessions in which something else is taken in an item's place

BEGUN = (
    ITEMS.where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.claims.is_not(None),
        t.items.c.status == ItemStatus.AVAILABLE,
        t.items.c.interruptions > 0,
        # What another chain had begun is found by whoever claims it: it was made with that one's context.
        func.coalesce(t.items.c.claimant, t.items.c.chain) == bindparam("of_claimant"),
    )
    .order_by(*CLAIM_ORDER)
    .with_for_update(skip_locked=True)
)
_TAKE = (
    update(t.items)
    .where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.id.in_(bindparam("of_items", expanding=True)),
        t.items.c.status.in_(sources(ItemStatus.CLAIMED)),
    )
    .values(status=ItemStatus.CLAIMED, passed_over=0)
)


@dataclass(slots=True)
class Selected:
    """What is claimed, and what is not; see `Claim`."""

    items: list[Item] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    never: dict[str, str] = field(default_factory=dict)
    others: int = 0
    contended: bool = False

    def pass_over(self, item: Item, reason: Misfit, *, once: bool) -> bool:
        """Does not take an item; whether those behind it may be looked at.

        Args:
            once: Whether it was passed over in this session already.
        """
        if len(self.passed_over) < PASSED_OVER_SHOWN:
            self.passed_over[item.id] = reason.why
        else:
            self.others += 1
        waited_long = item.passed_over >= PATIENCE and not once
        if waited_long and reason.never is not None:
            self.never[item.id] = reason.never
            return True
        return not (waited_long and reason.patient) and len(self.passed_over) + self.others < MOST_LOOKED_AT


@dataclass(slots=True)
class Claiming:
    """One claim, however often it is tried.

    Attributes:
        token: Tells it from the session's other claims.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    tried: bool = False

    def done_before(self, connection: Connection, fence: Fence, *, marked: bool = True) -> tuple[Item, ...]:
        """What it has claimed already, if it is tried again; as it was found.

        Args:
            marked: Whether the claim is one of those that the items remember.
        """
        if not self.tried:
            self.tried = True
            return ()
        held = held_by(fence.queue, fence.chain, fence.ordinal)
        rows = ITEMS.where(held, t.items.c.claim == self.token)
        found = connection.execute(rows.order_by(*CLAIM_ORDER))
        return tuple(_as_found(item_of(row), marked=marked) for row in found)


def _as_found(item: Item, *, marked: bool) -> Item:
    claims = (item.claims or "").rpartition(" ")[0] if marked else item.claims
    return replace(item, status=ItemStatus.AVAILABLE, claims=claims or None)


def take(
    connection: Connection, fence: Fence, items: Sequence[Item], token: str, now: float, *, mark: str | None
) -> None:
    """Makes available items those of a session.

    Args:
        token: The claim's.
        mark: The word by which the items remember it; None for a claim that is not to be remembered.
    """
    by_claims: dict[str | None, list[str]] = {}  # nearly always the same for all: no statement for each
    for item in items:
        by_claims.setdefault(item.claims if mark is None else _claims(item, mark), []).append(item.id)
    taken = {"of_queue": fence.queue, "updated_at": now, "claimant": fence.chain, "claimed_by": fence.ordinal}
    count = 0
    for claims, ids in by_claims.items():
        for start in range(0, len(ids), VARIABLES):
            these = {"of_items": ids[start : start + VARIABLES], "claim": token, "claims": claims}
            count += connection.execute(_TAKE, {**taken, **these}).rowcount
    if count != len(items):
        raise LedgerError(
            f"{len(items)} items of {fence.queue}, {items[0].id} the first of them, cannot become claimed"
        )


def _claims(item: Item, mark: str) -> str:
    """The item's claims with one more, in words."""
    return " ".join([*(claim for claim in item.earlier_claims if claim != mark), mark])


def in_claim_order(
    connection: Connection, queue: str, selector: Selector, now: float, *, expected: int
) -> Iterator[Item]:
    """Available items in the order of claiming, page by page; others find locked what is looked at.

    Args:
        expected: How many will probably be taken: usually the first page has all of them.
    """
    offset, limit = 0, min(MOST_LOOKED_AT, expected)
    seen: set[str] = set()
    while True:
        these = {"of_queue": queue, "now": now, "many": limit, "after": offset}
        page = list(map(item_of, connection.execute(candidates(selector), these).all()))
        # Where others have given back what lies before, a page begins with what was on the one before.
        yield from (item for item in page if item.id not in seen)
        seen.update(item.id for item in page)
        if len(page) < limit:
            return
        offset, limit = offset + limit, min(MOST_LOOKED_AT, 4 * limit)
