"""At the fence: a run that was created ahead waits until its chain is free, and begins, leaves or is not needed."""

from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from support import LEASE, FakeClock, LedgerFactory, MemoryRuns, MemorySavedWork, close, open_session, session_request

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.errors import Superseded
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.follow_on import RunTemplate, create_follow_on, create_follow_ons
from perpetual_blocks.session.ledger import FollowOn, Opened
from perpetual_blocks.session.ports import RunFacts, RunState
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.turn import LOOK_SECONDS, POLL_SECONDS, WAITS_SECONDS, SentAway, open_in_turn
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import FenceReached
from perpetual_blocks.testing import MemoryDocuments
from perpetual_blocks.work import WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment")


class EventfulClock(FakeClock):
    """A clock on which things happen at their time, while somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[float, Callable[[], Any]]] = []

    def at(self, seconds: float, happens: Callable[[], Any]) -> None:
        """Lets something happen so many seconds from the beginning."""
        self._events.append((seconds, happens))
        self._events.sort(key=lambda event: event[0])

    def wait(self, event: Event, seconds: float) -> bool:
        assert self.monotonic() < 10_000, "nobody ends this wait"
        self.advance(seconds)
        while self._events and self._events[0][0] <= self.monotonic():
            self._events.pop(0)[1]()
        return event.is_set()


class Scene:
    """A session at work whose follow-on was created ahead, and that follow-on's process."""

    def __init__(self, ledger: SqlLedger, clock: EventfulClock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.runs = MemoryRuns()
        self.stop = StopRequest()
        self.moments: list[Any] = []
        self.dead = False
        self.states: dict[str, RunState] = {}
        self.runs.facts = self._facts  # type: ignore[method-assign]
        self.opened: Opened = open_session(ledger, template=TEMPLATE.to_json())
        ledger.add_items("mine", [WorkItem(id="a")])
        made = self.next()
        ledger.announce(self.opened.fence, clock.now() + 15, made)
        self.ahead = replace(made, flow_run_id=create_follow_on(ledger, self.runs, made))

    def _facts(self, flow_run_id: str) -> RunFacts:
        return RunFacts(self.states.get(flow_run_id, RunState.RUNNING), 0.0)

    def next(self) -> FollowOn:
        return TEMPLATE.follow_on("mine", self.opened.chain.uid, 2, None)

    def wait(self, **changes: Any) -> Opened:
        """What the follow-on's process does."""
        request = session_request(
            holder="second", flow_run_id=self.ahead.flow_run_id, invitation=self.ahead.idempotency_key, attended=False
        )
        world = World(
            ledger=self.ledger,
            documents=MemoryDocuments(),
            runner=None,  # type: ignore[arg-type]
            saved_work=MemorySavedWork(),
            clock=self.clock,
            runs=self.runs,
            observers=[self.moments.append],
            alive=lambda session: False if self.dead else None,
        )
        opened, began = open_in_turn(world, replace(request, **changes), self.stop)
        assert began == self.clock.monotonic()
        return opened

    def close(self, status: ChainStatus = ChainStatus.WAITING, **changes: Any) -> None:
        follow_on = self.next() if status is ChainStatus.WAITING else None
        close(self.ledger, self.opened.fence, status, **{"follow_on": follow_on, **changes})

    def sessions(self) -> list[SessionState]:
        return [session.state for session in self.ledger.sessions("mine")]


@pytest.fixture
def clock() -> EventfulClock:
    return EventfulClock()


@pytest.fixture
def scene(make_ledger: LedgerFactory, clock: EventfulClock) -> Scene:
    return Scene(make_ledger("sqlite://", clock=clock), clock)


def test_it_begins_as_soon_as_the_session_before_has_ended(scene: Scene, clock: EventfulClock) -> None:
    """Within a few hundredths of a second; how long it waited is on record, and is no time of the session."""
    clock.at(12.0, scene.close)

    opened = scene.wait()

    assert (opened.fence.ordinal, opened.took_over) == (2, False)
    assert 12.0 <= clock.monotonic() <= 12.0 + 2 * POLL_SECONDS
    session = scene.ledger.sessions("mine")[1]
    assert session.waited == pytest.approx(12.0, abs=0.1)
    assert session.started_at == clock.now()
    assert scene.moments == [FenceReached("mine", 2)]
    assert len(scene.runs.created) == 1


def test_who_need_not_wait_does_not(scene: Scene, clock: EventfulClock) -> None:
    """A follow-on that comes after the end begins at once, and has not waited."""
    scene.close()
    assert scene.wait().fence.ordinal == 2
    assert (clock.monotonic(), scene.moments, scene.ledger.sessions("mine")[1].waited) == (0.0, [], None)


def test_it_goes_on_waiting_as_long_as_it_is_invited(scene: Scene, clock: EventfulClock) -> None:
    """The session before goes on for much longer than it had foretold: its lease is alive."""
    for beat in range(1, 4):
        clock.at(30.0 * beat, lambda: scene.ledger.heartbeat(scene.opened.fence))
    clock.at(100.0, scene.close)
    scene.wait()
    assert clock.monotonic() == pytest.approx(100.0, abs=0.1)
    assert scene.sessions() == [SessionState.WRAPPED, SessionState.RUNNING]


def test_it_says_that_it_waits(scene: Scene, clock: EventfulClock) -> None:
    """From the first moment on, and again and again."""
    seen: list[float] = []

    def look() -> None:
        found = scene.ledger.follow_on("mine", 2)
        assert found is not None
        seen.append((found[0].waits_until or 0.0) - clock.now())

    for seconds in (0.1, 10.0, 40.0):
        clock.at(seconds, look)
    clock.at(41.0, scene.close)
    scene.wait()
    assert all(WAITS_SECONDS / 2 < left <= WAITS_SECONDS for left in seen)


@pytest.mark.parametrize("status", [ChainStatus.FINISHED, ChainStatus.STALLED, ChainStatus.EXHAUSTED])
def test_a_chain_that_ends_sends_it_away(scene: Scene, clock: EventfulClock, status: ChainStatus) -> None:
    """The queue was empty in the end: it is superseded in a moment, and was no session."""
    stop = StopReason("asked", "every item is done")
    clock.at(5.0, lambda: scene.close(status, state=SessionState.FINISHED, stop=stop))

    with pytest.raises(Superseded) as refused:
        scene.wait()

    assert f"session 2 of mine is not needed: the chain is {status} (every item is done)" in str(refused.value)
    assert clock.monotonic() < 5.1
    assert scene.sessions() == [SessionState.FINISHED]


def test_a_chain_that_waits_for_its_quota_sends_it_away(scene: Scene, clock: EventfulClock) -> None:
    """Another run is created for then."""
    later = clock.now() + 3600
    follow_on = TEMPLATE.follow_on("mine", scene.opened.chain.uid, 2, later)
    clock.at(5.0, lambda: scene.close(stop=StopReason("budget:calls", "used up", later), follow_on=follow_on))
    with pytest.raises(Superseded) as refused:
        scene.wait()
    assert "in another flow run" in str(refused.value)
    assert create_follow_ons(scene.ledger, scene.runs, "mine") == 1


@pytest.mark.parametrize("wanted", list(Wanted))
def test_what_a_person_wants_is_heard_at_the_fence(scene: Scene, clock: EventfulClock, wanted: Wanted) -> None:
    """It does not wait for the session before to end."""
    clock.at(5.0, lambda: scene.ledger.want("mine", wanted, "a look"))
    with pytest.raises(Superseded) as refused:
        scene.wait()
    assert "(a look)" in str(refused.value)
    assert clock.monotonic() < 5.1
    assert scene.sessions() == [SessionState.RUNNING]


def test_stop_all_is_heard_at_the_fence(scene: Scene, clock: EventfulClock) -> None:
    """As every chain is held."""
    clock.at(5.0, lambda: scene.ledger.stop_all("the bill"))
    with pytest.raises(Superseded, match="the bill"):
        scene.wait()
    assert clock.monotonic() < 5.1


def test_somebody_who_was_quicker_keeps_it_out(scene: Scene, clock: EventfulClock) -> None:
    """A person's run of the same chain began between the two."""

    def both() -> None:
        scene.close()
        open_session(scene.ledger, holder="a person")

    clock.at(5.0, both)
    with pytest.raises(Superseded):
        scene.wait()
    assert scene.sessions() == [SessionState.WRAPPED, SessionState.RUNNING]


def test_a_signal_ends_the_wait_in_order(scene: Scene, clock: EventfulClock) -> None:
    """The invitation is given back: another run is created when the session before has ended, and this one is not
    invited any more."""
    clock.at(5.0, lambda: scene.stop.ask(StopReason("signal", "the process was asked to end")))

    with pytest.raises(SentAway) as sent:
        scene.wait()

    assert str(sent.value) == "the process was asked to end, while the run waited to be session 2"
    assert create_follow_ons(scene.ledger, scene.runs, "mine") == 0, "the session before works"
    scene.close()
    assert create_follow_ons(scene.ledger, scene.runs, "mine") == 1
    assert [follow_on.ordinal for follow_on in scene.runs.created.values()] == [2, 2]
    assert scene.sessions() == [SessionState.WRAPPED]


def test_a_signal_at_the_very_end_leaves_the_chain_to_another_run(scene: Scene, clock: EventfulClock) -> None:
    """The chain is free already: whoever gives the invitation back creates the other run itself."""

    def both() -> None:
        scene.close()
        scene.stop.ask(StopReason("signal", "the process was asked to end"))

    clock.at(5.0, both)
    with pytest.raises(SentAway):
        scene.wait()
    assert len(scene.runs.created) == 2
    assert scene.ledger.pending_follow_ons("mine") == []
    assert scene.ledger.chain("mine").status is ChainStatus.WAITING


@pytest.mark.parametrize("code", ["cancelled", "paused"])
def test_a_person_s_word_about_the_run_stands(scene: Scene, clock: EventfulClock, code: str) -> None:
    """Nobody creates another one in its place: what becomes of the chain is decided by how the run stands."""
    clock.at(5.0, lambda: scene.stop.ask(StopReason(code, f"its flow run was {code}")))
    with pytest.raises(SentAway) as sent:
        scene.wait()
    assert sent.value.reason.code == code
    found = scene.ledger.follow_on("mine", 2)
    assert found is not None
    assert found[0].idempotency_key == scene.ahead.idempotency_key


# The session before dies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known_dead", [True, False])
def test_it_goes_on_where_the_session_before_has_died(scene: Scene, clock: EventfulClock, known_dead: bool) -> None:
    """Within a second where its process is known to be gone, else when its lease has ended; there is one follow-on."""

    def die() -> None:
        scene.dead = known_dead

    clock.at(5.0, die)

    opened = scene.wait()

    assert scene.sessions() == [SessionState.CRASHED, SessionState.RUNNING]
    assert opened.fence.epoch == 3, "the rescue fenced the dead one off"
    assert clock.monotonic() <= (5.0 if known_dead else LEASE) + LOOK_SECONDS + 2 * POLL_SECONDS
    assert len(scene.runs.created) == 1


def test_it_does_not_go_on_where_a_person_has_cancelled_the_run_that_died(scene: Scene) -> None:
    """The session before was killed before it could say so: the chain is cancelled."""
    scene.dead = True
    scene.states["run-of-first"] = RunState.CANCELLED
    with pytest.raises(Superseded):
        scene.wait()
    assert scene.ledger.chain("mine").status is ChainStatus.CANCELLED
    assert scene.sessions() == [SessionState.CRASHED]


def test_a_rescuer_that_cannot_ask_prefect_asks_again(scene: Scene, clock: EventfulClock) -> None:
    """Without an answer a chain that a person has cancelled would go on."""
    answers = iter([ConnectionError("no route to host")] * 3)

    def facts(flow_run_id: str) -> RunFacts:
        if (error := next(answers, None)) is not None:
            raise error
        return RunFacts(RunState.RUNNING, 0.0)

    scene.runs.facts = facts  # type: ignore[method-assign]
    scene.dead = True
    assert scene.wait().fence.ordinal == 2
    assert clock.monotonic() >= 3 * LOOK_SECONDS
