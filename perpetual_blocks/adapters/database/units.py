"""The units of a session: an item is claimed for one, and given back when it is over, however that came."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, bindparam, func, insert, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import UPDATE_SESSION, give_back, of_session
from perpetual_blocks.adapters.database.items import MOVE, VARIABLES, insert_items, move
from perpetual_blocks.adapters.database.patient import DoneBefore, patient, patiently
from perpetual_blocks.adapters.database.queues import (
    candidates,
    held_by,
    is_elsewhere,
    lock_queue,
    names_on,
    next_retry,
)
from perpetual_blocks.adapters.database.rows import CLAIM_ORDER, find_chain, item_of
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.attempts import back_off, quarantine
from perpetual_blocks.session.ledger import Claim, Fence, Finished, Misfit, Reserve
from perpetual_blocks.work import Item, ItemStatus, Selector
from perpetual_blocks.work.item import UNIT

PASSED_OVER_SHOWN = 10
MOST_LOOKED_AT = 1000  # items, at each claim
PATIENCE = 3  # sessions in which something else is taken in an item's place
MOST_CUT_OFFS = 2  # whole sessions that a unit may use up in vain

# Built once (see `writer`): each UPDATE sets the other names that it is executed with.
_COUNT_ATTEMPT = UPDATE_SESSION.values(attempts=t.sessions.c.attempts + 1, usage=bindparam("usage"))
_COUNT_UNITS = UPDATE_SESSION.values(units=t.sessions.c.units + bindparam("count"), usage=bindparam("usage"))
# Of the unit that the item was claimed for, and no later one.
_END_UNIT = {
    target: statement.where(
        t.items.c.claimant == bindparam("of_claimant"),
        t.items.c.claimed_by == bindparam("of_session"),
        t.items.c.units == bindparam("of_units"),
        t.items.c.failures == bindparam("of_failures"),
    )
    for target, statement in MOVE.items()
}
_BEGUN = (
    select(t.items)
    .where(
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
_COUNT_USAGE = insert(t.usage)
_PUT_BACK = (
    update(t.items)
    .where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.id == bindparam("of_item"),
        t.items.c.status == ItemStatus.CLAIMED,
        t.items.c.claimant == bindparam("of_claimant"),
        t.items.c.claimed_by == bindparam("of_session"),
    )
    .values(
        status=ItemStatus.AVAILABLE,
        claimant=bindparam("claimant_before"),
        claimed_by=None,
        claims=bindparam("claims_before"),
    )
)
_DEPENDENTS = (
    select(t.dependencies.c.item.label("of_item"), func.count().label("completed"))
    .where(
        t.dependencies.c.chain == bindparam("of_queue"),
        t.dependencies.c.depends_on.in_(bindparam("of_items", expanding=True)),
    )
    .group_by(t.dependencies.c.item)
    .order_by(t.dependencies.c.item)
)
_UNBLOCK = (
    update(t.items)
    .where(t.items.c.chain == bindparam("of_queue"), t.items.c.id == bindparam("of_item"))
    .values(blockers=t.items.c.blockers - bindparam("completed"))
)
_FREE = (
    update(t.items)
    .where(
        t.items.c.chain == bindparam("of_queue"),
        t.items.c.status == ItemStatus.BLOCKED,
        t.items.c.blockers == 0,
        t.items.c.id.in_(bindparam("of_items", expanding=True)),
    )
    .values(status=ItemStatus.AVAILABLE)
)


@patient(but=["claim", "claim_begun"])
class UnitWriter(LedgerWriter):
    """The transactions of units."""

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = lambda item: [],
        more: Callable[[Item, Item], bool] = lambda last, item: False,
    ) -> Claim:
        return self._claim(fence, misfit, reserves, more, _Claiming())

    @patiently
    def _claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]],
        more: Callable[[Item, Item], bool],
        claiming: _Claiming,
    ) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if mine := claiming.done_before(connection, fence):
                return Claim(mine, claiming.token)
            found = self._select(connection, fence, misfit, reserves, more, now)
            if not found.items:
                return self._nothing(connection, fence, found, claiming.token, now)
            mark = UNIT if len(found.items) == 1 else claiming.token
            _take(connection, fence, found.items, claiming.token, now, mark=mark)
            for hopeless, why in found.never.items():
                move(connection, fence.queue, hopeless, ItemStatus.DISCARDED, now, error=why)
                found.passed_over.pop(hopeless, None)
            if found.passed_over:
                self._count_passed_over(connection, fence, list(found.passed_over), now)
            return Claim(tuple(found.items), claiming.token, found.passed_over, found.others, discarded=found.never)

    def _nothing(self, connection: Connection, fence: Fence, found: _Selected, token: str, now: float) -> Claim:
        """The answer to a claim that found nothing: until when, or whether others have what may lead to more."""
        chain = find_chain(connection, fence.chain)
        assert chain is not None
        left_alone = {"of_queue": fence.queue, "now": now}
        retry_at: float | None = connection.execute(next_retry(chain.selector), left_alone).scalar()
        elsewhere = is_elsewhere(connection, chain)
        return Claim((), token, found.passed_over, found.others, found.contended, retry_at, elsewhere=elsewhere)

    def _select(
        self,
        connection: Connection,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]],
        more: Callable[[Item, Item], bool],
        now: float,
    ) -> _Selected:
        found = _Selected()
        for row in _queue(connection, fence.queue, self._shared(connection, fence).selector, now):
            item = item_of(row)
            if found.items and not more(found.items[-1], item):
                break
            reason = misfit(item)
            wanted = reserves(item) if reason is None else []
            if wanted and (refused := self._reserve(connection, fence, item, wanted, now)) is not None:
                reason = Misfit(refused.reason)
                found.contended = found.contended or refused.contended
            if reason is None:
                found.items.append(item)
            elif found.items or not found.pass_over(item, reason, once=item.id in self._counted(fence)):
                break
        return found

    def claim_begun(self, fence: Fence) -> Claim:
        return self._claim_begun(fence, _Claiming())

    @patiently
    def _claim_begun(self, fence: Fence, claiming: _Claiming) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            items = claiming.done_before(connection, fence, marked=False)
            if not items:
                rows = connection.execute(_BEGUN, {"of_queue": fence.queue, "of_claimant": fence.chain}).mappings()
                items = tuple(map(item_of, rows))
                if items:
                    _take(connection, fence, items, claiming.token, now, mark=None)
            return Claim(items, claiming.token)

    def extend(self, fence: Fence, item: Item, reserves: Sequence[Reserve]) -> str | None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            refused = self._reserve(connection, fence, item, reserves, now)
            return None if refused is None else refused.reason

    def commit_units(
        self,
        fence: Fence,
        finished: Sequence[Finished],
        spent: Mapping[str, float],
        *,
        context: Mapping[str, Any] | None = None,
        unbegun: Sequence[Item] = (),
    ) -> None:
        reached("unit.committing")
        with suppress(DoneBefore), self._writing() as connection:
            changes: dict[str, Any] = {} if context is None else {"context": dict(context)}
            reported = {name: list(quota) for one in finished for name, quota in one.outcome.quotas.items()}
            if reported:
                of_chain = select(t.chains.c.quotas).where(t.chains.c.name == fence.chain)
                changes["quotas"] = {**connection.execute(of_chain).scalar_one(), **reported}
            now = self._pass_fence(connection, fence, **changes)
            added = [item for one in finished for item in one.outcome.added]
            if added or any(one.outcome.done for one in finished):
                lock_queue(connection, fence.queue, shared=not added)
            _end_units(connection, fence, finished, now)
            usage = [_usage(fence, one.item, 0, one.outcome.usage, now) for one in finished]
            _count_usage(connection, [row for rows in usage for row in rows])
            for one in finished:
                self._settle(connection, fence, one.item, 0, one.outcome.usage, now)
            count = {"count": len(finished), "usage": dict(spent)}
            connection.execute(_COUNT_UNITS, {**of_session(fence), **count})
            _unblock(connection, fence.queue, [one.item.id for one in finished if one.outcome.done], now)
            if added:
                chain = find_chain(connection, fence.chain)
                assert chain is not None
                insert_items(connection, chain, added, now)
            self._put_back(connection, fence, unbegun, now)
        reached("unit.committed")

    def fail_unit(
        self, fence: Fence, item: Item, error: str, usage: Mapping[str, float], spent: Mapping[str, float]
    ) -> ItemStatus:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (before := _ended_before(connection, fence, item)) is not None:
                return before
            attempts, failures = item.attempts + 1, item.failures + 1
            _count_failure(connection, fence, item, error, usage, now, cut_off=False)
            too_dear = quarantine(_wasted(connection, fence.queue, item.id, attempts), _budget(connection, fence))
            given_up = too_dear is not None or attempts >= item.max_attempts
            target = ItemStatus.DISCARDED if given_up else ItemStatus.AVAILABLE
            text = error if too_dear is None else f"{too_dear}: {error}"
            retry_at = None if given_up else now + back_off(attempts)
            counted = {"attempts": attempts, "failures": failures, "retry_at": retry_at}
            _end_unit(connection, fence, item, target, now, error=text, **counted)
            self._settle(connection, fence, item, failures, usage, now)
            connection.execute(_COUNT_ATTEMPT, {**of_session(fence), "usage": dict(spent)})
            return target

    def cut_off(
        self, fence: Fence, item: Item, why: str, usage: Mapping[str, float], spent: Mapping[str, float], *, fresh: bool
    ) -> ItemStatus:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (before := _ended_before(connection, fence, item)) is not None:
                return before
            cut_offs, failures = item.cut_offs + fresh, item.failures + 1
            hopeless = cut_offs >= MOST_CUT_OFFS
            target = ItemStatus.DISCARDED if hopeless else ItemStatus.AVAILABLE
            error = f"it had a whole session {cut_offs} times and could not finish: {why}" if hopeless else None
            counted = {"cut_offs": cut_offs, "failures": failures, "interruptions": item.interruptions + 1}
            _end_unit(connection, fence, item, target, now, error=error, **counted)
            _count_failure(connection, fence, item, why, usage, now, cut_off=True)
            self._settle(connection, fence, item, failures, usage, now)
            connection.execute(_COUNT_ATTEMPT, {**of_session(fence), "usage": dict(spent)})
            return target

    def release(self, fence: Fence, items: Sequence[Item], *, begun: bool) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if begun:
                for item in items:
                    give_back(connection, held_by(fence.queue, fence.chain, fence.ordinal), now, only=item)
                self._give_back_reserved(connection, fence, items)
            else:
                self._put_back(connection, fence, items, now)

    def _put_back(self, connection: Connection, fence: Fence, items: Sequence[Item], now: float) -> None:
        """Makes claimed items what they were before: nothing was done for them, and there is nothing to find."""
        if not items:
            return
        held = {"of_queue": fence.queue, "of_claimant": fence.chain, "of_session": fence.ordinal}
        before = [
            {**held, "of_item": item.id, "claimant_before": item.claimant, "claims_before": item.claims}
            for item in items
        ]
        connection.execute(_PUT_BACK, [{**row, "updated_at": now} for row in before])
        self._give_back_reserved(connection, fence, items)

    def _counted(self, fence: Fence) -> set[str]:
        """Items of which this session has counted that something was taken in their place."""
        return self._passed_over.setdefault((fence.chain, fence.epoch), set())

    def _count_passed_over(self, connection: Connection, fence: Fence, ids: Sequence[str], now: float) -> None:
        """Counts once a session that something was taken in place of these."""
        counted = self._counted(fence)
        if not (new := [item for item in ids if item not in counted]):
            return
        counted.update(new)
        connection.execute(
            update(t.items)
            .where(t.items.c.chain == fence.queue, t.items.c.id.in_(new))
            .values(passed_over=t.items.c.passed_over + 1, updated_at=now)
        )


@dataclass(slots=True)
class _Selected:
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
class _Claiming:
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
        rows = select(t.items).where(held, t.items.c.claim == self.token)
        found = connection.execute(rows.order_by(*CLAIM_ORDER)).mappings()
        return tuple(_as_found(item_of(row), marked=marked) for row in found)


def _as_found(item: Item, *, marked: bool) -> Item:
    claims = (item.claims or "").rpartition(" ")[0] if marked else item.claims
    return replace(item, status=ItemStatus.AVAILABLE, claims=claims or None)


def _take(
    connection: Connection, fence: Fence, items: Sequence[Item], token: str, now: float, *, mark: str | None
) -> None:
    rows = [
        {
            "of_queue": fence.queue,
            "of_item": item.id,
            "status": ItemStatus.CLAIMED,
            "updated_at": now,
            "claimant": fence.chain,
            "claimed_by": fence.ordinal,
            "claim": token,
            "claims": item.claims if mark is None else _claims(item, mark),
            "passed_over": 0,
        }
        for item in items
    ]
    if connection.execute(MOVE[ItemStatus.CLAIMED], rows).rowcount != len(rows):
        raise LedgerError(f"{len(rows)} items of {fence.queue}, {items[0].id} the first of them, cannot become claimed")


def _claims(item: Item, mark: str) -> str:
    """The item's claims with one more, in words."""
    return " ".join([*(claim for claim in item.earlier_claims if claim != mark), mark])


def _queue(connection: Connection, queue: str, selector: Selector, now: float) -> Iterator[RowMapping]:
    """Available items in the order of claiming, page by page: usually the first row is the one, and others
    find it locked while it is looked at."""
    offset, limit = 0, 1
    seen: set[str] = set()
    while True:
        these = {"of_queue": queue, "now": now, "many": limit, "after": offset}
        page = connection.execute(candidates(selector), these).mappings().all()
        # Where others have given back what lies before, a page begins with what was on the one before.
        yield from (row for row in page if row["id"] not in seen)
        seen.update(row["id"] for row in page)
        if len(page) < limit:
            return
        offset, limit = offset + limit, min(MOST_LOOKED_AT, 4 * limit)


def _end_units(connection: Connection, fence: Fence, finished: Sequence[Finished], now: float) -> None:
    """Moves items whose running units are finished.

    Raises:
        DoneBefore: they were finished in this way already.
    """
    for target in (ItemStatus.COMPLETED, ItemStatus.AVAILABLE):
        rows = [
            {
                **_of_unit(fence, one.item, target, now),
                "units": one.item.units + 1,
                "attempts": 0,
                "cut_offs": 0,
                "crashes": 0,
                "retry_at": None,
                "error": None,
                "progress": list(one.outcome.progress) if one.outcome.progress else None,
                "cursor": one.outcome.cursor,
                "next_action": one.outcome.next_action,
                "result_key": one.result_key,
            }
            for one in finished
            if one.outcome.done == (target is ItemStatus.COMPLETED)
        ]
        if rows and connection.execute(_END_UNIT[target], rows).rowcount != len(rows):
            if all(_finished_before(connection, fence, one) for one in finished):
                raise DoneBefore
            raise LedgerError(f"items of {fence.queue}, one of which is {rows[0]['of_item']}, cannot become {target}")


def _finished_before(connection: Connection, fence: Fence, one: Finished) -> bool:
    rows = select(t.items.c.units, t.items.c.result_key)
    row = connection.execute(rows.where(t.items.c.chain == fence.queue, t.items.c.id == one.item.id)).first()
    if row is None:
        return False
    # It was this session's until it was finished; since then others may have taken it on.
    units = one.item.units + 1
    return bool(row.units > units or (row.units == units and row.result_key == one.result_key))


def _end_unit(connection: Connection, fence: Fence, item: Item, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item whose running unit came to nothing."""
    if connection.execute(_END_UNIT[target], {**_of_unit(fence, item, target, now), **values}).rowcount != 1:
        raise LedgerError(f"item {item.id} of {fence.queue} cannot become {target}")


def _of_unit(fence: Fence, item: Item, target: ItemStatus, now: float) -> dict[str, Any]:
    held = {"of_claimant": fence.chain, "of_session": fence.ordinal}
    unit = {"of_units": item.units, "of_failures": item.failures}
    moved = {"status": target, "updated_at": now, "claimant": None, "claimed_by": None, "claims": None}
    return {"of_queue": fence.queue, "of_item": item.id, **held, **unit, **moved}


def _ended_before(connection: Connection, fence: Fence, item: Item) -> ItemStatus | None:
    """What became of an item whose failed unit has been counted already; None if it has not."""
    columns = select(t.items.c.status, t.items.c.failures)
    row = connection.execute(columns.where(t.items.c.chain == fence.queue, t.items.c.id == item.id)).first()
    return ItemStatus(row[0]) if row is not None and row[1] > item.failures else None


def _unblock(connection: Connection, queue: str, completed: Sequence[str], now: float) -> None:
    for start in range(0, len(completed), VARIABLES):
        some = {"of_queue": queue, "of_items": completed[start : start + VARIABLES]}
        waiting = [dict(row) for row in connection.execute(_DEPENDENTS, some).mappings()]
        if waiting:
            connection.execute(_UNBLOCK, [{"of_queue": queue, "updated_at": now, **row} for row in waiting])
            for later in range(0, len(waiting), VARIABLES):
                ids = [row["of_item"] for row in waiting[later : later + VARIABLES]]
                connection.execute(_FREE, {"of_queue": queue, "of_items": ids, "updated_at": now})


def _usage(fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float) -> list[dict[str, Any]]:
    unit = {"chain": fence.chain, "item": item.id, "unit": item.units, "failure": failure}
    return [
        {**unit, "resource": resource, "session": fence.ordinal, "amount": amount, "at": now}
        for resource, amount in usage.items()
    ]


def _count_usage(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(_COUNT_USAGE, rows)


def _count_failure(
    connection: Connection,
    fence: Fence,
    item: Item,
    error: str,
    usage: Mapping[str, float],
    now: float,
    *,
    cut_off: bool,
) -> None:
    """Writes down an attempt that came to nothing, and what it spent."""
    failure = item.failures + 1
    row = {"item": item.id, "failure": failure, "unit": item.units, "error": error, "cut_off": cut_off}
    connection.execute(insert(t.failures).values(chain=fence.chain, session=fence.ordinal, at=now, **row))
    _count_usage(connection, _usage(fence, item, failure, usage, now))


def _wasted(connection: Connection, queue: str, item: str, attempts: int) -> dict[str, float]:
    """What an item's last failed attempts have used together: as many as its next unit has had since it was retried."""
    by_any = t.failures.c.chain.in_(names_on(queue))
    of_item = and_(by_any, t.failures.c.item == item, t.failures.c.cut_off.is_(False))
    last = select(t.failures.c.failure).where(of_item).order_by(t.failures.c.failure.desc()).limit(attempts)
    used = (
        select(t.usage.c.resource, func.sum(t.usage.c.amount))
        .where(t.usage.c.chain.in_(names_on(queue)), t.usage.c.item == item, t.usage.c.failure.in_(last))
        .group_by(t.usage.c.resource)
    )
    return {resource: amount for resource, amount in connection.execute(used)}


def _budget(connection: Connection, fence: Fence) -> Budget:
    chain = find_chain(connection, fence.chain)
    return Budget.from_json(chain.settings.get("budget") or []) if chain else Budget()
