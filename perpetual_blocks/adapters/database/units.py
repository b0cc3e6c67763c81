"""The units of a session: an item is claimed for one, and given back when it is over, however that came."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import JSON, Connection, bindparam, case, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import UPDATE_SESSION, give_back, of_session
from perpetual_blocks.adapters.database.claiming import BEGUN, Claiming, Selected, in_claim_order, take
from perpetual_blocks.adapters.database.endings import (
    COUNT_USAGE,
    count_failure,
    end_unit,
    end_units,
    ended_before,
    unblock,
    usage_rows,
    wasted,
)
from perpetual_blocks.adapters.database.items import insert_items, move
from perpetual_blocks.adapters.database.patient import DoneBefore, patient, patiently
from perpetual_blocks.adapters.database.queues import held_by, is_elsewhere, lock_queue, next_retry
from perpetual_blocks.adapters.database.rows import find_chain, item_of
from perpetual_blocks.adapters.database.tallies import tally
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.budget import Budget, Quota, latest_quota
from perpetual_blocks.faults import reached
from perpetual_blocks.session.attempts import back_off, quarantine
from perpetual_blocks.session.ledger import Claim, Fence, Finished, Misfit, Reserve
from perpetual_blocks.work import Item, ItemStatus
from perpetual_blocks.work.item import UNIT

MOST_CUT_OFFS = 2  # whole sessions that a unit may use up in vain

# Built once (see `writer`): each UPDATE sets the other names that it is executed with.
_COUNT_ATTEMPT = UPDATE_SESSION.values(attempts=t.sessions.c.attempts + 1, usage=bindparam("usage"))
_COUNT_UNITS = UPDATE_SESSION.values(
    units=t.sessions.c.units + bindparam("count"),
    usage=bindparam("usage"),
    first_usage=case((t.sessions.c.units == 0, bindparam("first", type_=JSON)), else_=t.sessions.c.first_usage),
)
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


@patient(but=["claim", "claim_begun"])
class UnitWriter(LedgerWriter):
    """The transactions of units."""

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = lambda item: [],
        more: Callable[[Item, Item], bool] = lambda last, item: False,
        *,
        expected: int = 1,
    ) -> Claim:
        return self._claim(fence, misfit, reserves, more, expected, Claiming())

    @patiently
    def _claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]],
        more: Callable[[Item, Item], bool],
        expected: int,
        claiming: Claiming,
    ) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if mine := claiming.done_before(connection, fence):
                return Claim(mine, claiming.token)
            found = self._select(connection, fence, misfit, reserves, more, expected, now)
            if not found.items:
                return self._nothing(connection, fence, found, claiming.token, now)
            mark = UNIT if len(found.items) == 1 else claiming.token
            take(connection, fence, found.items, claiming.token, now, mark=mark)
            for hopeless, why in found.never.items():
                move(connection, fence.queue, hopeless, ItemStatus.DISCARDED, now, error=why)
                found.passed_over.pop(hopeless, None)
            if found.passed_over:
                self._count_passed_over(connection, fence, list(found.passed_over), now)
            return Claim(tuple(found.items), claiming.token, found.passed_over, found.others, discarded=found.never)

    def _nothing(self, connection: Connection, fence: Fence, found: Selected, token: str, now: float) -> Claim:
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
        expected: int,
        now: float,
    ) -> Selected:
        found = Selected()
        selector = self._shared(connection, fence).selector
        for item in in_claim_order(connection, fence.queue, selector, now, expected=expected):
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
        return self._claim_begun(fence, Claiming())

    @patiently
    def _claim_begun(self, fence: Fence, claiming: Claiming) -> Claim:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            items = claiming.done_before(connection, fence, marked=False)
            if not items:
                rows = connection.execute(BEGUN, {"of_queue": fence.queue, "of_claimant": fence.chain})
                items = tuple(map(item_of, rows))
                if items:
                    take(connection, fence, items, claiming.token, now, mark=None)
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
            reported = [said for one in finished for said in one.outcome.quotas.items()]
            if reported:
                of_chain = select(t.chains.c.quotas).where(t.chains.c.name == fence.chain)
                quotas = {name: Quota(*said) for name, said in connection.execute(of_chain).scalar_one().items()}
                for name, said in reported:
                    quotas[name] = latest_quota(quotas.get(name), said)
                changes["quotas"] = {name: list(quota) for name, quota in quotas.items()}
            now = self._pass_fence(connection, fence, **changes)
            added = [item for one in finished for item in one.outcome.added]
            if added or any(one.outcome.done for one in finished):
                lock_queue(connection, fence.queue, shared=not added)
            end_units(connection, fence, finished, now)
            done = [one.item for one in finished if one.outcome.done]
            tally(connection, fence.queue, fence.chain, completed=(item.kind for item in done))
            usage = [usage_rows(fence, one.item, 0, one.outcome.usage, now) for one in finished]
            COUNT_USAGE(connection, [row for rows in usage for row in rows])
            for one in finished:
                self._settle(connection, fence, one.item, 0, one.outcome.usage, now)
            count = {"count": len(finished), "usage": dict(spent), "first": dict(finished[0].outcome.usage)}
            connection.execute(_COUNT_UNITS, {**of_session(fence), **count})
            unblock(connection, fence.queue, [item.id for item in done], now)
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
            if (before := ended_before(connection, fence, item)) is not None:
                return before
            attempts, failures = item.attempts + 1, item.failures + 1
            count_failure(connection, fence, item, error, usage, now, cut_off=False)
            too_dear = quarantine(wasted(connection, fence.queue, item.id, attempts), _budget(connection, fence))
            given_up = too_dear is not None or attempts >= item.max_attempts
            target = ItemStatus.DISCARDED if given_up else ItemStatus.AVAILABLE
            text = error if too_dear is None else f"{too_dear}: {error}"
            retry_at = None if given_up else now + back_off(attempts)
            counted = {"attempts": attempts, "failures": failures, "retry_at": retry_at}
            end_unit(connection, fence, item, target, now, error=text, **counted)
            self._settle(connection, fence, item, failures, usage, now)
            connection.execute(_COUNT_ATTEMPT, {**of_session(fence), "usage": dict(spent)})
            return target

    def cut_off(
        self, fence: Fence, item: Item, why: str, usage: Mapping[str, float], spent: Mapping[str, float], *, fresh: bool
    ) -> ItemStatus:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if (before := ended_before(connection, fence, item)) is not None:
                return before
            cut_offs, failures = item.cut_offs + fresh, item.failures + 1
            hopeless = cut_offs >= MOST_CUT_OFFS
            target = ItemStatus.DISCARDED if hopeless else ItemStatus.AVAILABLE
            error = f"it had a whole session {cut_offs} times and could not finish: {why}" if hopeless else None
            counted = {"cut_offs": cut_offs, "failures": failures, "interruptions": item.interruptions + 1}
            end_unit(connection, fence, item, target, now, error=error, **counted)
            count_failure(connection, fence, item, why, usage, now, cut_off=True)
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


def _budget(connection: Connection, fence: Fence) -> Budget:
    chain = find_chain(connection, fence.chain)
    return chain.budget if chain else Budget()
