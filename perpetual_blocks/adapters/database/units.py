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
from perpetual_blocks.adapters.database.items import MOVE, insert_items, move
from perpetual_blocks.adapters.database.patient import DoneBefore, patient, patiently
from perpetual_blocks.adapters.database.queues import (
    candidates,
    held_by,
    is_elsewhere,
    lock_queue,
    names_on,
    next_retry,
)
from perpetual_blocks.adapters.database.rows import find_chain, item_of
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.attempts import back_off, quarantine
from perpetual_blocks.session.ledger import Claim, Fence, Misfit, Reserve
from perpetual_blocks.work import Item, ItemStatus, Outcome, Selector

PAGE = 64
PASSED_OVER_SHOWN = 10
MOST_LOOKED_AT = 1000  # items, at each claim
PATIENCE = 3  # sessions in which something else is taken in an item's place
MOST_CUT_OFFS = 2  # whole sessions that a unit may use up in vain

# Built once (see `writer`): each UPDATE sets the other names that it is executed with.
_COUNT_ATTEMPT = UPDATE_SESSION.values(attempts=t.sessions.c.attempts + 1, usage=bindparam("usage"))
_COUNT_UNIT = UPDATE_SESSION.values(units=t.sessions.c.units + 1, usage=bindparam("usage"))
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
_COUNT_USAGE = insert(t.usage)
_DEPENDENTS = (
    select(t.dependencies.c.item)
    .where(t.dependencies.c.chain == bindparam("of_queue"), t.dependencies.c.depends_on == bindparam("of_item"))
    .order_by(t.dependencies.c.item)
)


@patient(but=["claim"])
class UnitWriter(LedgerWriter):
    """The transactions of units."""

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = lambda item: [],
    ) -> Claim:
        return self._claim(fence, misfit, reserves, _Claiming())

    @patiently
    def _claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]],
        claiming: _Claiming,
    ) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            selector = self._shared(connection, fence).selector
            if (mine := claiming.done_before(connection, fence)) is not None:
                return Claim(mine)
            passed_over: dict[str, str] = {}
            never: dict[str, str] = {}
            others = 0
            contended = False
            for row in _queue(connection, fence.queue, selector, now):
                item = item_of(row)
                reason = misfit(item)
                wanted = reserves(item) if reason is None else []
                if wanted and (refused := self._reserve(connection, fence, item, wanted, now)) is not None:
                    reason = Misfit(refused.reason)
                    contended = contended or refused.contended
                if reason is None:
                    move(
                        connection,
                        fence.queue,
                        item.id,
                        ItemStatus.CLAIMED,
                        now,
                        claimant=fence.chain,
                        claimed_by=fence.ordinal,
                        claim=claiming.token,
                        passed_over=0,
                    )
                    for hopeless, why in never.items():
                        move(connection, fence.queue, hopeless, ItemStatus.DISCARDED, now, error=why)
                        passed_over.pop(hopeless, None)
                    if passed_over:
                        self._count_passed_over(connection, fence, list(passed_over), now)
                    return Claim(item, passed_over, others, discarded=never)
                if len(passed_over) < PASSED_OVER_SHOWN:
                    passed_over[item.id] = reason.why
                else:
                    others += 1
                waited_long = item.passed_over >= PATIENCE and item.id not in self._counted(fence)
                if waited_long and reason.never is not None:
                    never[item.id] = reason.never
                elif (waited_long and reason.patient) or len(passed_over) + others >= MOST_LOOKED_AT:
                    break
            left_alone = {"of_queue": fence.queue, "now": now}
            retry_at: float | None = connection.execute(next_retry(selector), left_alone).scalar()
            chain = find_chain(connection, fence.chain)
            assert chain is not None
            elsewhere = is_elsewhere(connection, chain)
            return Claim(None, passed_over, others, contended, retry_at, elsewhere=elsewhere)

    def extend(self, fence: Fence, item: Item, reserves: Sequence[Reserve]) -> str | None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            refused = self._reserve(connection, fence, item, reserves, now)
            return None if refused is None else refused.reason

    def commit_unit(
        self, fence: Fence, item: Item, outcome: Outcome, result_key: str, spent: Mapping[str, float]
    ) -> None:
        reached("unit.committing")
        with suppress(DoneBefore), self._writing() as connection:
            changes: dict[str, Any] = {} if outcome.context is None else {"context": outcome.context}
            if outcome.quotas:
                quotas = connection.execute(
                    select(t.chains.c.quotas).where(t.chains.c.name == fence.chain)
                ).scalar_one()
                changes["quotas"] = {**quotas, **{name: list(quota) for name, quota in outcome.quotas.items()}}
            now = self._pass_fence(connection, fence, **changes)
            if outcome.done or outcome.added:
                lock_queue(connection, fence.queue, shared=not outcome.added)
            target = ItemStatus.COMPLETED if outcome.done else ItemStatus.AVAILABLE
            _end_unit(
                connection,
                fence,
                item,
                target,
                now,
                units=item.units + 1,
                attempts=0,
                cut_offs=0,
                crashes=0,
                retry_at=None,
                error=None,
                progress=list(outcome.progress) if outcome.progress else None,
                cursor=outcome.cursor,
                next_action=outcome.next_action,
                result_key=result_key,
            )
            _count_usage(connection, fence, item, 0, outcome.usage, now)
            self._settle(connection, fence, item, 0, outcome.usage, now)
            connection.execute(_COUNT_UNIT, {**of_session(fence), "usage": dict(spent)})
            if outcome.done:
                _unblock(connection, fence.queue, item.id, now)
            if outcome.added:
                chain = find_chain(connection, fence.chain)
                assert chain is not None
                insert_items(connection, chain, outcome.added, now)
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

    def release(self, fence: Fence, item: Item) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            give_back(connection, held_by(fence.queue, fence.chain, fence.ordinal), now, only=item)
            self._give_back_reserved(connection, fence)

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
class _Claiming:
    """One claim, however often it is tried.

    Attributes:
        token: Tells it from the session's other claims.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    tried: bool = False

    def done_before(self, connection: Connection, fence: Fence) -> Item | None:
        """What it has claimed already, if it is tried again; as it was found."""
        if not self.tried:
            self.tried = True
            return None
        held = held_by(fence.queue, fence.chain, fence.ordinal)
        rows = select(t.items).where(held, t.items.c.claim == self.token)
        row = connection.execute(rows).mappings().first()
        return replace(item_of(row), status=ItemStatus.AVAILABLE) if row else None


def _queue(connection: Connection, queue: str, selector: Selector, now: float) -> Iterator[RowMapping]:
    """Available items in the order of claiming, page by page: usually the first row is the one."""
    offset, limit = 0, 1
    while True:
        these = {"of_queue": queue, "now": now, "many": limit, "after": offset}
        page = connection.execute(candidates(selector), these).mappings().all()
        yield from page
        if len(page) < limit:
            return
        offset, limit = offset + limit, PAGE


def _end_unit(connection: Connection, fence: Fence, item: Item, target: ItemStatus, now: float, **values: Any) -> None:
    """Moves an item whose running unit is over.

    Raises:
        DoneBefore: it was finished in this way already.
    """
    held = {"of_claimant": fence.chain, "of_session": fence.ordinal}
    unit = {"of_units": item.units, "of_failures": item.failures}
    of_item = {"of_queue": fence.queue, "of_item": item.id, **held, **unit}
    changes = {"status": target, "updated_at": now, "claimant": None, "claimed_by": None, **values}
    if connection.execute(_END_UNIT[target], {**of_item, **changes}).rowcount == 1:
        return
    rows = select(t.items).where(t.items.c.chain == fence.queue, t.items.c.id == item.id)
    row = connection.execute(rows).mappings().first()
    if row is not None and "result_key" in values:
        # It was this session's until it was finished; since then others may have taken it on.
        here, after = row["units"] == values["units"], row["units"] > values["units"]
        if after or (here and row["result_key"] == values["result_key"]):
            raise DoneBefore
    raise LedgerError(f"item {item.id} of {fence.queue} cannot become {target}")


def _ended_before(connection: Connection, fence: Fence, item: Item) -> ItemStatus | None:
    """What became of an item whose failed unit has been counted already; None if it has not."""
    columns = select(t.items.c.status, t.items.c.failures)
    row = connection.execute(columns.where(t.items.c.chain == fence.queue, t.items.c.id == item.id)).first()
    return ItemStatus(row[0]) if row is not None and row[1] > item.failures else None


def _unblock(connection: Connection, queue: str, completed: str, now: float) -> None:
    dependents = connection.execute(_DEPENDENTS, {"of_queue": queue, "of_item": completed}).scalars()
    waiting = list(dependents)
    if not waiting:
        return
    connection.execute(
        update(t.items)
        .where(t.items.c.chain == bindparam("of"), t.items.c.id == bindparam("item"))
        .values(blockers=t.items.c.blockers - 1, updated_at=now),
        [{"of": queue, "item": item} for item in waiting],
    )
    connection.execute(
        update(t.items)
        .where(
            t.items.c.chain == queue,
            t.items.c.status == ItemStatus.BLOCKED,
            t.items.c.blockers == 0,
            t.items.c.id.in_(waiting),
        )
        .values(status=ItemStatus.AVAILABLE, updated_at=now)
    )


def _count_usage(
    connection: Connection, fence: Fence, item: Item, failure: int, usage: Mapping[str, float], now: float
) -> None:
    rows = [
        {
            "chain": fence.chain,
            "item": item.id,
            "unit": item.units,
            "failure": failure,
            "resource": resource,
            "session": fence.ordinal,
            "amount": amount,
            "at": now,
        }
        for resource, amount in usage.items()
    ]
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
    _count_usage(connection, fence, item, failure, usage, now)


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
