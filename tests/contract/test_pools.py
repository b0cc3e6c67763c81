"""Pools in the database: reservations, settlements, guarantees, and many spenders at once."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from pool_spenders import run_spenders, spend_reserving
from postgres_server import address_of
from sqlalchemy import Engine
from support import FakeClock, one_line

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database.engine import connect, writing
from perpetual_blocks.adapters.database.pool import Pool
from perpetual_blocks.adapters.database.pools import Grant, PoolRequest, PoolUnit
from perpetual_blocks.budget.pool import Refusal
from perpetual_blocks.errors import InvalidInput, PoolRefused

LEASE = 60.0


@pytest.fixture(params=["sqlite-file", "sqlite-memory", "postgres"])
def pool(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Pool]:
    """A pool of ten dollars, with an hour's rolling window, on the fake clock."""
    address = address_of(request.param, request)
    made = Pool(address, "team", resource="cost", amount=10, window_since=lambda now: now - 3600, clock=clock)
    yield made
    made.close()


def settle(pool: Pool, unit: PoolUnit, actual: float, now: float, failure: int = 0) -> bool:
    with writing(pool._engine) as connection:
        return pools.settle(connection, unit, actual, now, failure)


def test_reserved_then_settled(pool: Pool) -> None:
    """What is reserved is taken, and what was really spent takes its place."""
    with pool.reserve("a", 6.0) as reservation:
        assert pool.level() == (0.0, 6.0)
        reservation.settle(4.5)

    assert pool.level() == (4.5, 0.0)


def test_what_is_not_settled_is_given_back(pool: Pool) -> None:
    """Work that breaks before it says what it spent leaves nothing in the pool."""
    with pytest.raises(ZeroDivisionError), pool.reserve("a", 6.0):
        raise ZeroDivisionError

    assert pool.level() == (0.0, 0.0)


def test_extending(pool: Pool) -> None:
    """A reservation grows while there is room; a refused extension leaves it as it was."""
    with pool.reserve("a", 2.0) as mine, pool.reserve("b", 5.0) as other:
        mine.extend(3.0)
        with pytest.raises(PoolRefused) as refused:
            mine.extend(0.01)
        assert (mine.amount, pool.level()) == (5.0, (0.0, 10.0))
        other.settle(1.0)
        mine.extend(4.0)
        mine.settle(9.0)

    assert refused.value.contended
    one_line(refused.value, "pool team", "$5.01", "$5.00 of $10.00", "$5.00 reserved")
    assert pool.level() == (10.0, 0.0)
    with pytest.raises(PoolRefused) as gone, pool.reserve("b", 0.01):
        pass
    assert not gone.value.contended


def test_more_than_was_reserved_is_recorded(pool: Pool) -> None:
    """A unit that overran what it had reserved is counted as it was; then nobody gets anything."""
    with pool.reserve("a", 6.0) as reservation:
        reservation.settle(12.0)

    assert pool.level() == (12.0, 0.0)
    with pytest.raises(PoolRefused), pool.reserve("b", 0.0001):
        pass


def test_a_reservation_runs_out(pool: Pool, clock: FakeClock) -> None:
    """What a dead process has reserved is free again after its lease; its late settlement still counts."""
    with pool.reserve("dead", 8.0, LEASE) as late:
        clock.advance(LEASE - 0.001)
        with pytest.raises(PoolRefused), pool.reserve("b", 3.0):
            pass
        clock.advance(0.001)
        with pool.reserve("b", 3.0) as reservation:
            reservation.settle(3.0)
        late.settle(2.0)

    assert pool.level() == (5.0, 0.0)


def test_extending_what_has_run_out_reserves_all_of_it_anew(pool: Pool, clock: FakeClock) -> None:
    """Whoever comes back after its lease gets its reservation again only where there is room for all of it."""
    with pool.reserve("a", 4.0, LEASE) as late:
        clock.advance(LEASE)
        with pool.reserve("b", 6.0), pytest.raises(PoolRefused):
            late.extend(1.0)
        late.extend(1.0)
        assert pool.level() == (0.0, 5.0)


def test_the_heartbeat_renews_what_has_not_run_out(pool: Pool, clock: FakeClock) -> None:
    """A holder's live reservations are moved on, in all pools; one that has run out stays so."""
    now = clock.now()
    with pool.reserve("a", 1.0, 10), pool.reserve("a", 2.0, LEASE), pool.reserve("b", 4.0, LEASE):
        clock.advance(20)
        with writing(pool._engine) as connection:
            pools.renew(connection, "a", now + 1000, clock.now())
        clock.advance(900)

        assert pool.level() == (0.0, 2.0)


def test_a_dead_holders_reservations_are_given_back(pool: Pool) -> None:
    """Whoever takes over from a dead process gives back all that it had reserved, and nobody else's."""
    with pool.reserve("a", 1.0), pool.reserve("a", 2.0), pool.reserve("b", 4.0):
        with writing(pool._engine) as connection:
            pools.release_all(connection, "a")

        assert pool.level() == (0.0, 4.0)


def test_a_settlement_counts_once(pool: Pool, clock: FakeClock) -> None:
    """A settlement that is repeated after a crash changes nothing; another attempt of the unit is another spend."""
    unit = PoolUnit(pool="team", resource="cost", holder="uid", item="a", unit=3)

    assert settle(pool, unit, 2.0, clock.now(), failure=1)
    assert settle(pool, unit, 3.0, clock.now())
    assert not settle(pool, unit, 3.0, clock.now())

    assert pool.level() == (5.0, 0.0)


def test_a_window_moves_on(pool: Pool, clock: FakeClock) -> None:
    """Spending that falls out of the window frees its room, at that moment; the guarantee's use of it too."""
    unit = PoolUnit(pool="team", resource="cost", holder="a", item="a")
    settle(pool, unit, 6.0, clock.now())
    clock.advance(1800)
    settle(pool, unit, 4.0, clock.now(), failure=1)

    clock.advance(1800)
    assert pool.level() == (10.0, 0.0)
    clock.advance(0.001)
    assert pool.level() == (4.0, 0.0)
    clock.advance(1800)
    assert pool.level() == (0.0, 0.0)


def test_windows_of_two_lengths_on_one_pool(pool: Pool, clock: FakeClock) -> None:
    """Who asks with another window gets its own figures, and nobody's are disturbed."""
    unit = PoolUnit(pool="team", resource="cost", holder="a", item="a")
    for failure in range(4):
        settle(pool, unit, 1.0, clock.now(), failure)
        clock.advance(1000)

    def used(since: float | None) -> float:
        with writing(pool._engine) as connection:
            return pools.level(connection, "team", "cost", since, clock.now())[0]

    now = clock.now()
    assert [used(since) for since in (now - 1500, None, now - 2500, now, 0.0, now - 1500)] == [1, 4, 2, 0, 4, 1]


def test_guarantees(pool: Pool) -> None:
    """A share is kept for its member; more than all of the amount cannot be promised; giving it up frees it."""
    pool.join("a", share=0.6)
    pool.join("b", share=0.4)
    for share in (0.41, -0.1, 1.1):
        with pytest.raises(InvalidInput) as refused:
            pool.join("b", share=share)
        one_line(refused.value, "share", str(share))
    with pytest.raises(PoolRefused) as kept, pool.reserve("c", 0.01):
        pass
    assert not kept.value.contended
    with pool.reserve("a", 6.0), pool.reserve("b", 4.0):
        pass

    pool.join("a", share=0)
    with pool.reserve("c", 6.0):
        pass


def test_pools_and_resources_do_not_touch_each_other(pool: Pool, clock: FakeClock) -> None:
    """The same holder spends of two pools, and of two resources of one."""
    for name, resource in (("team", "tokens"), ("other", "cost")):
        unit = PoolUnit(pool=name, resource=resource, holder="a", item="a")
        settle(pool, unit, 7.0, clock.now())

    assert pool.level() == (0.0, 0.0)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True])
def test_wrong_amounts_are_refused(pool: Pool, wrong: Any) -> None:
    """An amount that is no finite number of at least 0 is refused."""
    with pytest.raises(InvalidInput), pool.reserve("a", wrong):
        pass
    with pool.reserve("a", 1.0) as reservation, pytest.raises(InvalidInput):
        reservation.settle(wrong)


# Every interleaving ---------------------------------------------------------------------------------------------------

ENGINE: list[Engine] = []
CENTS = st.integers(0, 700).map(lambda cents: cents / 100)
HOLDERS = st.sampled_from("abcdefgh")


class Interleaving(RuleBasedStateMachine):
    """Holders who spend no more than they have reserved, in any order, while reservations run out.

    Holders of the highest priority have guarantees that nobody may borrow.
    """

    amount = 10.0
    reservations = Bundle("reservations")
    settlements = Bundle("settlements")

    def __init__(self) -> None:
        super().__init__()
        if not ENGINE:
            ENGINE.append(connect("sqlite://"))
        with writing(ENGINE[0]) as connection:
            self.pool = f"pool-{connection.exec_driver_sql('SELECT count(*) FROM pools').scalar()}"
        self.now = 1_700_000_000.0
        self.number = 0
        self.live: dict[PoolUnit, tuple[float, float]] = {}
        self.spent: list[tuple[str, float, float]] = []
        self.members: dict[str, tuple[float, int]] = {}
        self.window: float | None = None

    @initialize(
        members=st.dictionaries(HOLDERS, st.tuples(st.integers(0, 12), st.integers(0, 1)), max_size=8),
        window=st.none() | st.just(100.0),
    )
    def start(self, members: dict[str, tuple[int, int]], window: float | None) -> None:
        self.window = window
        with writing(ENGINE[0]) as connection:
            pools.level(connection, self.pool, "cost", self.since(), self.now)
            for holder, (share, priority) in members.items():
                self.members[holder] = (share / 100, priority)
                pools.join(connection, self.pool, "cost", holder, share=share / 100, priority=priority)

    def since(self) -> float | None:
        return None if self.window is None else self.now - self.window

    def used(self, holder: str | None = None) -> float:
        since = self.since() or 0.0
        return sum(amount for who, at, amount in self.spent if at >= since and holder in (None, who))

    def reserved(self, holder: str | None = None) -> float:
        return sum(
            amount for unit, (amount, end) in self.live.items() if end > self.now and holder in (None, unit.holder)
        )

    def left_of_guarantee(self, holder: str) -> float:
        share, _ = self.members.get(holder, (0.0, 0))
        return max(0.0, share * self.amount - self.used(holder) - self.reserved(holder))

    def is_highest(self, holder: str) -> bool:
        highest = max((priority for _, priority in self.members.values()), default=0)
        return self.members.get(holder, (0.0, 0))[1] == highest

    def ask(self, unit: PoolUnit, wanted: float, lease: float) -> bool:
        held, end = self.live.get(unit, (0.0, 0.0))
        more = wanted - (held if end > self.now else 0.0)
        guaranteed = self.is_highest(unit.holder) and round(more - self.left_of_guarantee(unit.holder), 9) <= 0
        request = PoolRequest(
            unit=unit, wanted=wanted, amount=self.amount, since=self.since(), expires_at=self.now + lease
        )
        with writing(ENGINE[0]) as connection:
            answer = pools.reserve(connection, request, self.now)
        if isinstance(answer, Refusal):
            assert not guaranteed, f"a guarantee was not kept: {answer.reason}"
            return False
        assert answer == Grant(unit, wanted)
        self.live[unit] = (wanted, self.now + lease)
        return True

    @rule(target=reservations, holder=HOLDERS, wanted=CENTS, lease=st.integers(1, 50))
    def reserve(self, holder: str, wanted: float, lease: int) -> PoolUnit:
        self.number += 1
        unit = PoolUnit(pool=self.pool, resource="cost", holder=holder, item=str(self.number))
        self.ask(unit, wanted, lease)
        return unit

    @rule(unit=reservations, more=CENTS, lease=st.integers(1, 50))
    def extend(self, unit: PoolUnit, more: float, lease: int) -> None:
        self.ask(unit, self.live.get(unit, (0.0, 0.0))[0] + more, lease)

    @rule(target=settlements, unit=consumes(reservations), part=st.floats(0, 1))
    def settle(self, unit: PoolUnit, part: float) -> PoolUnit:
        amount, end = self.live.pop(unit, (0.0, 0.0))
        actual = round(amount * part, 6) if end > self.now else 0.0
        self.spent.append((unit.holder, self.now, min(actual, amount)))
        with writing(ENGINE[0]) as connection:
            assert pools.settle(connection, unit, min(actual, amount), self.now)
        return unit

    @rule(unit=settlements)
    def settle_again(self, unit: PoolUnit) -> None:
        with writing(ENGINE[0]) as connection:
            assert not pools.settle(connection, unit, 9.9, self.now)

    @rule(unit=consumes(reservations))
    def release(self, unit: PoolUnit) -> None:
        self.live.pop(unit, None)
        with writing(ENGINE[0]) as connection:
            pools.release(connection, unit)

    @rule(holder=HOLDERS, lease=st.integers(1, 50))
    def renew(self, holder: str, lease: int) -> None:
        for unit, (amount, end) in self.live.items():
            if unit.holder == holder and end > self.now:
                self.live[unit] = (amount, self.now + lease)
        with writing(ENGINE[0]) as connection:
            pools.renew(connection, holder, self.now + lease, self.now)

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_above_the_amount(self) -> None:
        with writing(ENGINE[0]) as connection:
            used, reserved = pools.level(connection, self.pool, "cost", self.since(), self.now)
        assert (used, reserved) == (round(self.used(), 9), round(self.reserved(), 9))
        assert round(used + reserved, 9) <= self.amount


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# Many spenders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("database", "processes", "threads"), [("sqlite-file", 8, 1), ("postgres", 16, 4)])
def test_many_spenders_use_the_pool_up_and_no_more(
    request: pytest.FixtureRequest, database: str, processes: int, threads: int
) -> None:
    """Spenders that reserve, extend and settle at the same time spend nearly all of the pool and never more."""
    amount = 6.0

    spent = run_spenders(
        spend_reserving, address_of(database, request), processes=processes, threads=threads, amount=amount
    )

    assert spent.overshoot(amount) == 0
    assert spent.told == spent.counted
    assert spent.reserved == 0
    assert spent.counted >= 0.985 * amount
