"""The warm successor: the follow-on of a session that is about to end is created ahead of that end.

Prefect starts a run some seconds after it was created. A follow-on that is created so much earlier has its process up,
and waiting at the fence (see `turn`), when the session ends. It is recorded in the outbox before it is created, with
the key that the closing transaction would give it, and that transaction decides what becomes of it: it is the follow-on
where the chain goes on at once, and not invited any more where the chain ends, waits or is held. So a prediction that
was wrong costs a process that waits for nothing, and never a second follow-on.
"""

import contextvars
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from threading import Event, Lock, Thread
from types import TracebackType
from typing import NamedTuple, Self

from perpetual_blocks.budget import BudgetMonitor
from perpetual_blocks.budget.horizon import MEASURED_UNITS, Sight, horizon
from perpetual_blocks.faults import reached
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.follow_on import FollowOnMaker, create_follow_on
from perpetual_blocks.session.ledger import FollowOn, Opened
from perpetual_blocks.session.manners import restrain
from perpetual_blocks.session.ports import Runs
from perpetual_blocks.session.steps import within
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import FollowOnAnnounced
from perpetual_blocks.work import ItemStatus

LEAD_SECONDS = 18.0
"""How long before its end a session creates its follow-on, where nothing says that starting takes longer: a serving
process looks for runs every 7 to 13 seconds, and a run's process needs three more to the fence, or five."""

LONGEST_LEAD_SECONDS = 60.0
SPARE = 1.25
"""The slowest of the latest starts may be followed by one that takes longer by so much."""

SOON_SECONDS = 3.0
"""A session that ends sooner leaves its follow-on to the closing: no process would be up any earlier."""

LOOKED_AT = 20
LOOK_SECONDS = WATCH_SECONDS = 0.25
"""How often the session's end is foretold between its units, and how often it is looked whether it is near."""

WINDOW_SECONDS = 30.0
"""The pace is that of the last so many seconds, or of a few units that took longer."""

MOST_SECONDS = 3.0
"""How long the session may be kept from its work by the announcement, once, should Prefect's API not answer."""


def lead_seconds(start_ups: Sequence[float]) -> float:
    """How long before the end of a session its follow-on is to be created, given how long the latest took to start."""
    return min(LONGEST_LEAD_SECONDS, max([LEAD_SECONDS, *(SPARE * seconds for seconds in start_ups)]))


def is_time(now: float, ends_at: float, lead: float) -> bool:
    """Whether a follow-on is to be created now, for a session that will end then."""
    return SOON_SECONDS <= ends_at - now <= lead


def goes_on_at_once(chain: Chain, sessions: Sequence[SessionRecord], ends_at: float) -> bool:
    """Whether the chain would go on as soon as its latest session has ended by a limit of its own: its manners may keep
    it from that."""
    *before, this = sessions
    this = replace(this, state=SessionState.WRAPPED, stop_reason="budget", ended_at=ends_at)
    wrapped = Ending(SessionState.WRAPPED, ChainStatus.WAITING, StopReason("budget", ""), goes_on=True)
    end = restrain(wrapped, chain, [*before, this], ends_at)
    return end.chain is ChainStatus.WAITING and end.reason.resume_at is None


def _is_enough(since: Sight, now: Sight) -> bool:
    """Whether the pace can be told from what was done between the two."""
    return now.at - since.at >= WINDOW_SECONDS and now.units - since.units >= MEASURED_UNITS


class _End(NamedTuple):
    """When the session will end, by the monotonic clock, and how many units it will have had then."""

    at: float
    units: int


class Successor:
    """Creates the follow-on of a session when its end is near, as long as the `with` block runs; then sees to it that
    the one that it has created is needed, and lives.

    Args:
        make: Makes the follow-on; None where the run has no deployment. The end is then foretold all the same, for
            whoever starts the next session.
    """

    def __init__(
        self, world: World, opened: Opened, monitor: BudgetMonitor, make: FollowOnMaker | None, stop: StopRequest
    ) -> None:
        self._world = world
        self._fence = opened.fence
        self._uid = opened.chain.uid
        self._monitor = monitor
        self._make = make
        self._stop = stop
        self._sights: deque[Sight] = deque()
        self._end: _End | None = None
        self._lead: float | None = None
        self._not_before = 0.0
        self._announced: FollowOn | None = None
        self._done = False
        self._lock = Lock()
        self._over = Event()
        # A unit may last longer than the lead: then its end is foretold while it runs.
        self._thread = Thread(
            target=contextvars.copy_context().run,
            args=(self._watch,),
            name=f"successor {self._fence.chain}",
            daemon=True,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is not None and not issubclass(kind, Exception):
            return  # the process ends
        if self._announced is not None and self._world.runs is not None:
            announced, runs = self._announced, self._world.runs
            with suppress(Exception):  # whoever comes by next does the same
                within(MOST_SECONDS, lambda: self._settle(announced, runs))

    def consider(self) -> None:
        """Looks between two batches how far the end is, and creates the follow-on if it is near; cheap if it is not."""
        now = self._world.clock.monotonic()
        if self._done or (self._sights and now - self._sights[-1].at < LOOK_SECONDS):
            return
        with self._monitor.lock:
            self._end = self._foresee(now)
        self._look()

    def _foresee(self, now: float) -> _End | None:
        """When the session will end. What runs now is still to come, as it is not counted yet."""
        readings = self._monitor.readings(held=False)
        sight = Sight(now, self._monitor.units, {reading.limit.name: reading.used for reading in readings})
        self._sights.append(sight)
        while len(self._sights) > 2 and _is_enough(self._sights[1], sight):
            self._sights.popleft()
        seconds = self._monitor.forecasts["seconds"]
        most_units = self._monitor.units_to_best_length(readings)
        found = horizon(readings, seconds, self._sights[0], sight, most_units=most_units)
        if found is None:
            return None
        return _End(now + found.seconds + seconds.shutdown_cost(0.5), sight.units + found.units)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            self._look()

    def _look(self) -> None:
        now, end = self._world.clock.monotonic(), self._end
        if end is None or now < self._not_before or self._done or self._stop.reason is not None:
            return
        if not self._lock.acquire(blocking=False):
            return  # the other of the two is at it
        try:
            if self._lead is None or is_time(now, end.at, self._lead):
                self._not_before = now + 1.0
                with suppress(Exception):  # then it is created at the end, as ever
                    within(MOST_SECONDS, lambda: self._announce(end))
        finally:
            self._lock.release()

    def _announce(self, end: _End) -> None:
        world, fence, ledger = self._world, self._fence, self._world.ledger
        if self._lead is None:
            self._lead = lead_seconds(ledger.start_ups(fence.chain))
        left = end.at - world.clock.monotonic()
        if not is_time(0.0, left, self._lead) or not self._is_needed(end.units, world.clock.now() + left):
            return
        self._done = True
        made = self._make(self._uid, fence, None) if self._make and world.runs else None
        if made is not None and world.runs is not None and not world.runs.leaves_room(made.deployment_id):
            return
        if not ledger.announce(fence, world.clock.now() + left, made):
            return
        reached("follow_on.announced")
        world.tell(FollowOnAnnounced(fence.chain, fence.ordinal + 1, left))
        if made is not None and world.runs is not None:
            self._announced = made
            self._announced = replace(made, flow_run_id=create_follow_on(ledger, world.runs, made))

    def _is_needed(self, units: int, ends_at: float) -> bool:
        """Whether the chain goes on after so many units of this session, and there is something left for it."""
        ledger, name = self._world.ledger, self._fence.chain
        sessions = ledger.sessions(name)
        if not goes_on_at_once(ledger.chain(name), sessions, ends_at):
            return False
        # An item may take several units: as many as those that are done did, and more than are done where none is.
        done = ledger.items(name, ItemStatus.COMPLETED, LOOKED_AT, taken=True)
        each = sum(item.units for item in done) / len(done) if done else inf
        # Others that work on the queue do as much meanwhile.
        workers = sum(chain.status is ChainStatus.RUNNING for chain in ledger.chains(self._fence.queue))
        # What was finished and is not committed yet is still open in the ledger.
        to_come = max(0, units - sessions[-1].units - sessions[-1].attempts)
        return ledger.has_more_than(name, workers * int(to_come / each))

    def _settle(self, announced: FollowOn, runs: Runs) -> None:
        ledger = self._world.ledger
        found = ledger.follow_on(announced.chain, announced.ordinal)
        if found is not None and found[0].idempotency_key == announced.idempotency_key:
            Supervisor(ledger, runs, self._world.clock, self._world.alive).look_after(announced.chain)
        elif announced.flow_run_id is not None:
            runs.cancel(announced.flow_run_id, f"session {self._fence.ordinal} has ended, and this one is not needed")
