"""Batches: small units share a document and a transaction, and are finished or not each by itself all the same."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from threading import Barrier, Lock
from types import SimpleNamespace
from typing import Any

import pytest
from session_rig import Rig, tokens
from support import LEASE, FakeClock, LedgerFactory, item_in, some_item, status_of

from perpetual_blocks import PerpetualAgent, Unit, WorkItem, faults
from perpetual_blocks.budget import Budget, BudgetMonitor, Limit
from perpetual_blocks.errors import Superseded
from perpetual_blocks.session.allowance import Allowances
from perpetual_blocks.session.batch import Batch
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.session.choosing import BATCH_SECONDS, Chooser
from perpetual_blocks.session.documents import UnitKeys
from perpetual_blocks.session.ledger import Claim
from perpetual_blocks.session.ports import Units
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.testing import LocalUnits, MemoryDocuments
from perpetual_blocks.work import ItemStatus

TINY = 0.002
"""Seconds that a unit takes."""


class Sums(PerpetualAgent):
    """Adds up numbers, in its context."""

    count: int = 200
    bad: tuple[int, ...] = ()

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"n-{number:04d}", payload={"number": number}) for number in range(self.count)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=1)
        if unit.payload["number"] in self.bad:
            raise ValueError("a bad number")
        unit.context["sum"] = unit.context.get("sum", 0) + unit.payload["number"]
        return unit.payload["number"]

    def merge_context(self, key: str, current: Any, before: Any, after: Any) -> Any:
        return (current or 0) + after - (before or 0)


MakeSums = Callable[..., Rig]


@pytest.fixture
def sums(make_ledger: LedgerFactory, clock: FakeClock) -> MakeSums:
    """A chain of tiny units."""

    def make(**fields: Any) -> Rig:
        rig = Rig(make_ledger(), clock, Sums(**fields))
        rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, TINY)
        return rig

    return make


@pytest.fixture(autouse=True)
def nothing_happens() -> Iterator[None]:
    yield
    faults.install(None)


class Killed(BaseException):
    """The end of the process."""


def kill_at(point: str, count: int) -> None:
    """Ends the process when the point is reached for the count-th time."""
    seen: Counter[str] = Counter()

    def handle(reached: str) -> None:
        seen[reached] += 1
        if (reached, seen[reached]) == (point, count):
            raise Killed(point)

    faults.install(handle)


def run_killed(rig: Rig) -> None:
    """A session whose process dies, and what time does then."""
    with pytest.raises(Killed):
        rig.run()
    faults.install(None)
    rig.clock.advance(2 * LEASE)


def ran(rig: Rig) -> list[str]:
    """The items that the agent was asked for, in order."""
    return [key.partition(": ")[2] or key.split("/")[-2] for key in rig.runner.ran]


def sum_of(rig: Rig) -> int:
    return int(rig.ledger.chain("mine").context["sum"])


# What they are --------------------------------------------------------------------------------------------------------


def test_small_units_share_documents(sums: MakeSums) -> None:
    """They begin one by one, as nothing is known of them, and double up to a second's worth; each is done once, and
    its result is found."""
    rig = sums(count=1000)

    assert rig.run().state is SessionState.FINISHED

    keys = [item.result_key or "" for item in rig.ledger.items("mine", limit=2000)]
    sizes = Counter(key.partition("#")[0] for key in keys)
    assert list(sizes.values()) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 489]
    assert max(sizes.values()) * TINY <= BATCH_SECONDS
    assert ran(rig) == [f"n-{number:04d}" for number in range(1000)]
    assert sum_of(rig) == sum(range(1000))
    (session,) = rig.ledger.sessions("mine")
    assert (session.units, session.usage["tokens"]) == (1000, 1000)


def test_units_of_a_second_run_by_themselves(sums: MakeSums, clock: FakeClock) -> None:
    rig = sums(count=6)
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, 1.0)

    rig.run()

    assert all("#" not in (item.result_key or "#") for item in rig.ledger.items("mine"))


def test_a_slow_unit_ends_its_batch(sums: MakeSums, clock: FakeClock) -> None:
    """Units that turn out to be slow are not waited for: what has not begun is what it was before."""
    rig = sums(count=100)

    class Slower(LocalUnits):
        def run(self, units: Units) -> None:
            if not units.single:
                self._seconds = BATCH_SECONDS
            super().run(units)

    rig.runner = Slower(rig.agent, MemoryDocuments(), clock, TINY)
    stop = StopRequest()
    faults.install(lambda point: stop.ask(StopReason("asked", "enough")) if point == "unit.committed" else None)
    rig.run(stop=stop)
    faults.install(None)
    rig.run()
    assert sum_of(rig) == sum(range(100))
    assert len(ran(rig)) == 100


def test_a_stop_is_noticed_between_the_units(sums: MakeSums) -> None:
    """What has not begun is given back as if it had never been claimed."""
    rig = sums(count=500)
    stop = StopRequest()
    returned = Counter[str]()

    def handle(point: str) -> None:
        returned[point] += 1
        if point == "unit.returned" and returned[point] == 100:
            stop.ask(StopReason("asked", "a person asked"))

    faults.install(handle)
    end = rig.run(stop=stop)

    assert end.reason.code == "asked"
    assert len(ran(rig)) == 100
    left = [item for item in rig.ledger.items("mine", limit=1000) if item.status is not ItemStatus.COMPLETED]
    assert len(left) == 400
    assert {(item.status, item.interruptions, item.claims) for item in left} == {(ItemStatus.AVAILABLE, 0, None)}


@pytest.mark.parametrize("limit", [Limit("tokens", 300), Limit("tokens", 300, threshold=0.9)], ids=str)
def test_no_budget_is_overrun(sums: MakeSums, limit: Limit) -> None:
    """The budget is asked within a batch too: each session uses nearly all of it, and none too much."""
    rig = sums(count=1000)

    ends = rig.run_chain(Budget(limit))

    used = [session.usage["tokens"] for session in rig.ledger.sessions("mine")]
    assert ends[-1].state is SessionState.FINISHED
    assert max(used) <= 300
    assert min(used[:-1]) >= 260
    assert sum_of(rig) == sum(range(1000))


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_an_outcome_that_was_persisted_with_others_is_applied(sums: MakeSums) -> None:
    """A process that dies after the document was written and before the commit: nothing of the batch runs again."""
    rig = sums()
    kill_at("unit.committing", 6)
    run_killed(rig)
    before = len(ran(rig))
    assert rig.ledger.sessions("mine")[0].units == before - 32

    assert rig.run().state is SessionState.FINISHED

    assert Counter(ran(rig)) == Counter(f"n-{number:04d}" for number in range(200))
    assert sum_of(rig) == sum(range(200))
    assert sum(session.usage["tokens"] for session in rig.ledger.sessions("mine")) == 200


@pytest.mark.parametrize("seconds", [TINY, 1.0], ids=["batches", "one by one"])
def test_what_was_persisted_is_applied_before_anything_else(
    make_ledger: LedgerFactory, clock: FakeClock, seconds: float
) -> None:
    """What a unit made of the context was made of it as it was then. An item whose process died several times is left
    alone for a while, and others go before it; but not before an outcome of it that is there already."""

    class Serial(Sums):
        def merge_context(self, key: str, current: Any, before: Any, after: Any) -> Any:
            raise AssertionError("nothing was changed at the same time")

    rig = Rig(make_ledger(), clock, Serial(count=60))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, seconds)
    kill_at("unit.committing", 5)
    run_killed(rig)
    for point in ("unit.committing", "unit.persisted", "unit.committing"):
        kill_at(point, 1)
        run_killed(rig)

    rig.run_chain()

    assert sum_of(rig) == sum(range(60))
    assert Counter(ran(rig)) == Counter(f"n-{number:04d}" for number in range(60))
    assert sum(session.usage.get("tokens", 0) for session in rig.ledger.sessions("mine")) == 60


def test_it_is_found_though_the_next_process_dies_too(sums: MakeSums) -> None:
    """The items remember each batch that they were claimed for, until one of them is finished."""
    rig = sums()
    kill_at("unit.committing", 6)
    run_killed(rig)
    kill_at("unit.claimed", 1)
    run_killed(rig)

    rig.run_chain()

    assert Counter(ran(rig)) == Counter(f"n-{number:04d}" for number in range(200))
    assert sum_of(rig) == sum(range(200))


def test_one_batch_is_repeated_at_most(sums: MakeSums) -> None:
    """A process that dies in the middle of a batch has committed the ones before."""
    rig = sums()
    kill_at("unit.returned", 100)
    run_killed(rig)

    rig.run_chain()

    again = [item for item, times in Counter(ran(rig)).items() if times > 1]
    assert 0 < len(again) <= 64
    assert sum_of(rig) == sum(range(200))
    assert sum(session.usage["tokens"] for session in rig.ledger.sessions("mine")) == 200


def test_after_a_crash_each_is_tried_by_itself(sums: MakeSums) -> None:
    """So that the one that kills its process is known by it: the others of its batch are done, and it is discarded."""
    rig = sums(count=60)

    class Deadly(LocalUnits):
        """Kills the process."""

        def run(self, units: Units) -> None:
            if any(item.id == "n-0020" for item in units.items):  # type: ignore[attr-defined]
                raise Killed
            super().run(units)

    rig.runner = Deadly(rig.agent, MemoryDocuments(), rig.clock, TINY)
    deaths = 0
    while not deaths or rig.ledger.chain("mine").status not in (ChainStatus.STALLED, ChainStatus.FINISHED):
        assert deaths <= 5
        try:
            rig.run()
        except Killed:
            deaths += 1
        rig.clock.advance(3600)

    assert deaths == 5
    statuses = Counter(status_of(rig.ledger).values())
    assert statuses == {ItemStatus.COMPLETED: 59, ItemStatus.DISCARDED: 1}
    assert "quarantined" in (item_in(rig.ledger, "n-0020").error or "")


def test_a_unit_that_fails_leaves_the_others_of_its_batch_alone(sums: MakeSums) -> None:
    """Its attempts are counted, it is discarded at last, and the rest of the batch is committed."""
    rig = sums(bad=(100, 150))

    rig.run_chain()
    while rig.ledger.chain("mine").status not in (ChainStatus.STALLED, ChainStatus.FINISHED):
        rig.clock.advance(3600)
        rig.run()

    assert {item: status for item, status in status_of(rig.ledger).items() if status is not ItemStatus.COMPLETED} == {
        "n-0100": ItemStatus.DISCARDED,
        "n-0150": ItemStatus.DISCARDED,
    }
    assert item_in(rig.ledger, "n-0100").failures == 3
    assert sum_of(rig) == sum(range(200)) - 250
    assert sum(session.usage["tokens"] for session in rig.ledger.sessions("mine")) == 198 + 6


def test_what_the_ledger_refuses_is_one_units_failure(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """A unit of a batch that adds a wrong item fails by itself."""

    class Adds(Sums):
        def work_unit(self, unit: Unit) -> Any:
            if unit.id == "n-0020" and unit.attempt == 1:
                unit.add(WorkItem(id="strange", kind="unheard of"))
            return super().work_unit(unit)

    rig = Rig(make_ledger(), clock, Adds(count=60))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, TINY)

    rig.run_chain()

    assert set(status_of(rig.ledger).values()) == {ItemStatus.COMPLETED}
    assert item_in(rig.ledger, "n-0020").failures == 1
    assert sum_of(rig) == sum(range(60))


def test_dependents_of_a_batch_are_free_at_once(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """Also those that wait for several of the same batch."""

    class Waits(Sums):
        def plan(self) -> Iterable[WorkItem]:
            yield from super().plan()
            yield WorkItem(id="last", payload={"number": 7}, depends_on=tuple(f"n-{n:04d}" for n in range(self.count)))

    rig = Rig(make_ledger(), clock, Waits(count=60))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, TINY)

    assert rig.run().state is SessionState.FINISHED
    assert ran(rig)[-1] == "last"


# Several at once ------------------------------------------------------------------------------------------------------


class Meets(Sums):
    """Units that wait for each other, so that they must run at the same time."""

    together: int = 4
    _barrier: Any = None
    _lock: Any = None
    _most: int = 0
    _now: int = 0

    def model_post_init(self, context: Any) -> None:
        self._barrier, self._lock = Barrier(self.together, timeout=30), Lock()

    def work_unit(self, unit: Unit) -> Any:
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
        self._barrier.wait()
        with self._lock:
            self._now -= 1
        return super().work_unit(unit)


class Large(Sums):
    """Units that use two fifths of the budget."""

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=39)
        return super().work_unit(unit)


def test_units_run_at_once_and_their_contexts_are_merged(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """Four at once, each with a context of its own; what they changed of it is added up."""
    rig = Rig(make_ledger(), clock, Meets(count=20))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, 1.0)

    assert rig.run(concurrency=4).state is SessionState.FINISHED

    assert rig.agent._most == 4  # type: ignore[attr-defined]
    assert sum_of(rig) == sum(range(20))
    assert len(ran(rig)) == 20


def test_what_runs_at_once_does_not_overrun_the_budget(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """What the others will probably use is kept from each unit."""
    rig = Rig(make_ledger(), clock, Sums(count=60))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, 1.0)
    ends = [rig.run(tokens(20, threshold=1.0), concurrency=4)]
    while ends[-1].state is SessionState.WRAPPED:
        ends.append(rig.run(tokens(20, threshold=1.0), concurrency=4, invited=list(rig.runs.created)[-1]))

    assert max(session.usage["tokens"] for session in rig.ledger.sessions("mine")) <= 20
    assert sum_of(rig) == sum(range(60))


MakeAllowances = Callable[[Limit], tuple[BudgetMonitor, Allowances]]


@pytest.fixture
def make_allowances(clock: FakeClock) -> MakeAllowances:
    """The allowances of batches that run at the same time, under one limit."""

    def make(limit: Limit) -> tuple[BudgetMonitor, Allowances]:
        stop, monitor = StopRequest(), BudgetMonitor(Budget(limit), clock, {})
        chooser = Chooser(None, None, monitor, clock, stop)  # type: ignore[arg-type]
        world: Any = SimpleNamespace(clock=clock, price=None, tell=[].append)
        return monitor, Allowances(monitor, chooser, "mine", world, stop, {}, [], concurrent=True)

    return make


def test_what_a_provider_says_counts_at_once_for_all_that_run(
    make_allowances: MakeAllowances, clock: FakeClock
) -> None:
    """For the units of the same batch and for those of another one, long before either is committed."""
    _, allowances = make_allowances(Limit("calls", 1000, scope="window", window="day"))

    def begin(*names: str) -> tuple[Batch, Iterator[Unit]]:
        items = [some_item(name, bound={"calls": 1}) for name in names]
        allowance = allowances.batch(items[0])
        assert allowance is not None
        batch = Batch(Claim(items, names[0]), UnitKeys("mine", "0123"), {}, allowance, clock)
        return batch, batch.units()

    def call(batch: Batch, unit: Unit, left: int) -> None:
        unit.spend(calls=1)
        unit.report_quota("calls", remaining=left, resets_at=clock.now() + 3600)
        clock.advance(0.01)
        batch.finish(unit.outcome(None, 0.01))

    (one, ones), (other, others) = begin("a", "b", "c", "d"), begin("e", "f", "g", "h")
    first, fifth = next(ones), next(others)
    call(one, first, 2)
    second = next(ones)  # one of the two: the other is kept for the fifth, which runs
    call(other, fifth, 0)
    call(one, second, 1)  # the answer to an earlier call than the fifth

    assert next(ones, None) is None
    assert next(others, None) is None


def test_room_that_others_have_taken_since_it_was_asked_for(make_allowances: MakeAllowances) -> None:
    """A session asks the budget, claims, and begins; a batch that runs may begin its next unit in between."""
    monitor, allowances = make_allowances(Limit("calls", 3))
    first, second, third = (some_item(name, bound={"calls": 2}) for name in "abc")
    asked = monitor.readings()
    running = allowances.batch(first)

    assert monitor.refuse(second.expectation, asked) is None
    assert allowances.batch(second, beside_others=True) is None

    assert running is not None
    running.count({}, {})
    assert allowances.batch(third, beside_others=True) is not None


def test_the_first_unit_of_all_runs_by_itself(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """While nothing is known of what units cost, four large ones at once could use up more than there is."""
    rig = Rig(make_ledger(), clock, Large(count=12))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, 1.0)
    ends = [rig.run(Budget(tokens=100), concurrency=4)]
    while ends[-1].state is SessionState.WRAPPED:
        ends.append(rig.run(Budget(tokens=100), concurrency=4, invited=list(rig.runs.created)[-1]))

    assert ends[-1].state is SessionState.FINISHED
    assert max(session.usage["tokens"] for session in rig.ledger.sessions("mine")) <= 100


def test_what_ran_at_once_is_found_by_the_next_session(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """When one of them dies with its process, the outcomes of the others are found and applied."""
    rig = Rig(make_ledger(), clock, Sums(count=40))
    rig.runner = LocalUnits(rig.agent, MemoryDocuments(), clock, 1.0)
    kill_at("unit.committing", 10)
    with pytest.raises(Killed):
        rig.run(concurrency=4)
    faults.install(None)
    with pytest.raises(Superseded):
        rig.run(concurrency=4)
    rig.clock.advance(2 * LEASE)

    rig.run(concurrency=4)

    assert Counter(ran(rig)) == Counter(f"n-{number:04d}" for number in range(40))
    assert sum_of(rig) == sum(range(40))
