"""The follow-on that is created ahead: when, for which chains, and what becomes of it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from session_rig import Rig, tokens
from support import FakeClock, MemoryRuns, open_session, wait_for
from test_admission import chain, latest
from test_loop import MakeRig, Reader, make_rig

from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import RunsUnavailable
from perpetual_blocks.session import successor
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.follow_on import create_follow_ons
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.successor import (
    LEAD_SECONDS,
    LONGEST_LEAD_SECONDS,
    SOON_SECONDS,
    goes_on_at_once,
    is_time,
    lead_seconds,
)
from perpetual_blocks.telemetry import FollowOnAnnounced, UnitCompleted
from perpetual_blocks.testing import LocalUnits, MemoryDocuments
from perpetual_blocks.work import Unit

__all__ = ["make_rig"]  # a fixture

# Forty units of a second each.
BUDGET = tokens(4000, threshold=1.0)


# Pure decisions -------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), max_size=5))
def test_the_lead_follows_how_long_starts_take(start_ups: list[float]) -> None:
    """As long as the slowest of the latest and a little more, within bounds."""
    lead = lead_seconds(start_ups)
    assert LEAD_SECONDS <= lead <= LONGEST_LEAD_SECONDS
    assert all(lead > seconds or lead == LONGEST_LEAD_SECONDS for seconds in start_ups)
    assert lead in (LEAD_SECONDS, LONGEST_LEAD_SECONDS) or lead == 1.25 * max(start_ups)


@given(st.floats(0, 1e9), st.floats(-100, 1000), st.floats(LEAD_SECONDS, LONGEST_LEAD_SECONDS))
def test_it_is_time_when_the_end_is_near(now: float, left: float, lead: float) -> None:
    """Not long before, and not so late that no process would be up any earlier."""
    assert is_time(now, now + left, lead) == (SOON_SECONDS <= (now + left) - now <= lead)


NOW = 1_700_000_000.0
NIGHT = Manners(quiet_hours="22:14-23:00 UTC")  # it is 22:13:20


@pytest.mark.parametrize(
    ("manners", "at_once"),
    [
        (Manners(), True),
        (Manners(max_sessions=2), True),
        (Manners(max_sessions=1), False),
        (Manners(unattended_sessions=1), False),
        (Manners(unattended_cost=1.0), False),
        (NIGHT, False),
    ],
)
def test_manners_keep_a_chain_from_going_on(manners: Manners, at_once: bool) -> None:
    """Where it would be stalled, paused or quiet after this session, nothing is created ahead."""
    this = replace(latest(SessionState.RUNNING), ordinal=1, units=5, usage={"cost": 2.0})
    working = chain(status=ChainStatus.RUNNING, ordinal=1, settings={"manners": manners.to_json()})
    assert goes_on_at_once(working, [this], NOW + 60) == at_once


def test_a_session_that_comes_to_nothing_is_not_the_first() -> None:
    """The second in a row without a unit ends its chain."""
    idle = latest(SessionState.WRAPPED)
    working = chain(status=ChainStatus.RUNNING)
    assert goes_on_at_once(working, [replace(idle, ordinal=2), latest(SessionState.RUNNING)], NOW) is False


# Sessions -------------------------------------------------------------------------------------------------------------


def left_when_announced(rig: Rig) -> list[int]:
    """How many units the session finished after each announcement."""
    told = [moment for moment in rig.moments if isinstance(moment, FollowOnAnnounced | UnitCompleted)]
    return [
        sum(isinstance(later, UnitCompleted) for later in told[number:])
        for number, moment in enumerate(told)
        if isinstance(moment, FollowOnAnnounced)
    ]


def test_a_follow_on_is_created_ahead_of_the_end(make_rig: MakeRig) -> None:
    """Once, when the end is as near as a start takes; the closing keeps it, and the next session is it."""
    rig = make_rig(Reader(documents=100))

    ends = rig.run_chain(BUDGET)

    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.WRAPPED, SessionState.FINISHED]
    # Of the third session the queue is the end. A fixed lead is so many units of a second each.
    in_all = sum(isinstance(moment, UnitCompleted) for moment in rig.moments)
    assert [in_all - left for left in left_when_announced(rig)] == [40 - LEAD_SECONDS, 80 - LEAD_SECONDS]
    first, second, third = rig.ledger.sessions("mine")
    assert first.ends_at == pytest.approx(first.ended_at, abs=1.5)
    assert second.ends_at == pytest.approx(second.ended_at, abs=1.5)
    assert third.ends_at is None
    assert [follow_on.ordinal for follow_on in rig.runs.created.values()] == [2, 3]
    assert rig.runs.calls == 2
    assert rig.runs.cancelled == []


@pytest.mark.parametrize("documents", [30, 40])
def test_nothing_is_created_where_the_queue_is_done_first(make_rig: MakeRig, documents: int) -> None:
    """The session will finish it."""
    rig = make_rig(Reader(documents=documents))
    rig.run(BUDGET)
    assert (rig.told(FollowOnAnnounced), rig.runs.created) == ([], {})


def test_items_of_several_units_are_counted_as_such(make_rig: MakeRig) -> None:
    """Fifteen items of four units each are more than forty units."""
    rig = make_rig(Reader(documents=15, pages=4))
    rig.run(BUDGET)
    assert len(rig.told(FollowOnAnnounced)) == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_units_at_once_are_counted_as_still_to_come(make_rig: MakeRig, concurrency: int) -> None:
    """What is held for those that run is not used yet: the end is foretold as near as it is."""
    rig = make_rig(Reader(documents=100))
    rig.run(BUDGET, concurrency=concurrency)
    (left,) = left_when_announced(rig)
    assert left == pytest.approx(LEAD_SECONDS, abs=concurrency - 1)
    (session,) = rig.ledger.sessions("mine")
    assert session.ends_at == pytest.approx(session.ended_at, abs=1.5 * concurrency)


@pytest.mark.parametrize(("documents", "left"), [(70, LEAD_SECONDS), (45, 4)])
def test_others_that_work_on_the_queue_take_their_part(make_rig: MakeRig, documents: int, left: int) -> None:
    """With 18 units to go, two sessions will do 36: of 70 items, of which 22 are done, more than that are left. Of 45
    there are not before 4 are to go, as the other session has done none of them."""
    rig = make_rig(Reader(documents=documents), chain="second")
    owner = open_session(rig.ledger, "mine", agent="Reader").fence
    rig.ledger.add_items("mine", rig.agent.plan(), planned_by=owner)
    rig.ledger.add_chain("second", queue="mine")
    rig.run(BUDGET)
    assert left_when_announced(rig) == [left]


class Fickle(Reader):
    """Finds out, ten units before the session's end, that the rest of the queue is not worth reading."""

    rig: Any = None

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-30":
            self.rig.ledger.discard_items("mine", [f"doc-{n}" for n in range(31, self.documents)], "not worth it")
        return super().work_unit(unit)


def test_a_queue_that_is_done_after_all_withdraws_it(make_rig: MakeRig) -> None:
    """The run that was created ahead is cancelled as long as it is scheduled, and no session is counted."""
    agent = Fickle(documents=100)
    agent.rig = rig = make_rig(agent)
    end = rig.run(BUDGET)
    assert (end.state, len(rig.told(FollowOnAnnounced))) == (SessionState.FINISHED, 1)
    assert rig.runs.cancelled == ["run-mine-2"]
    assert (rig.ledger.follow_on("mine", 2), rig.ledger.pending_follow_ons()) == (None, [])


@pytest.mark.parametrize(
    "limit",
    [Limit("calls", 20, scope="window", window="day"), Limit("calls", 20, scope="total", threshold=1.0)],
    ids=["window", "total"],
)
def test_nothing_is_created_where_the_chain_will_wait_or_end(make_rig: MakeRig, limit: Limit) -> None:
    """A quota or a total is used up before the session's own budget is."""

    class Caller(Reader):
        """Makes a call for each page."""

        def work_unit(self, unit: Unit) -> Any:
            unit.spend(calls=1)
            return super().work_unit(unit)

    rig = make_rig(Caller(documents=100))
    rig.run(Budget(*BUDGET, limit))
    assert rig.told(FollowOnAnnounced) == []


class Crowded(MemoryRuns):
    """A deployment of which one run at a time may be at work."""

    def leaves_room(self, deployment_id: str) -> bool:
        return False


def test_nothing_is_created_where_there_is_no_room_beside_the_session(make_rig: MakeRig) -> None:
    """Prefect would make it wait for long, or cancel it: it is created at the end, as ever."""
    rig = make_rig(Reader(documents=100), runs=Crowded())
    rig.run(BUDGET)
    assert rig.told(FollowOnAnnounced) == []
    assert len(rig.runs.created) == 1


class Away(MemoryRuns):
    """Prefect's API, which cannot be reached at first."""

    def create(self, follow_on: FollowOn) -> str:
        if not self.calls:
            self.calls += 1
            raise RunsUnavailable("no route to host")
        return super().create(follow_on)


def test_what_could_not_be_created_ahead_is_created_at_the_end(make_rig: MakeRig) -> None:
    """It was announced; the session goes on, and leaves one follow-on."""
    rig = make_rig(Reader(documents=100), runs=Away())
    end = rig.run(BUDGET)
    assert (end.state, len(rig.told(FollowOnAnnounced))) == (SessionState.WRAPPED, 1)
    assert len(rig.runs.created) == 1
    assert rig.ledger.pending_follow_ons() == []


class Pausing(Reader):
    """Is paused by a person while its last units run."""

    rig: Any = None

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-30":
            self.rig.ledger.want("mine", Wanted.PAUSE, "a look")
            self.rig.stop.ask(StopReason("paused", "a look"))
        return super().work_unit(unit)


def test_a_pause_withdraws_it(make_rig: MakeRig) -> None:
    """The chain goes on with another run when the person lets it."""
    agent = Pausing(documents=100)
    agent.rig = rig = make_rig(agent)
    rig.stop = StopRequest()  # type: ignore[attr-defined]

    end = rig.run(BUDGET, stop=rig.stop)  # type: ignore[attr-defined]

    assert end.state is SessionState.PAUSED
    assert rig.runs.cancelled == ["run-mine-2"]
    rig.ledger.resume("mine")
    assert create_follow_ons(rig.ledger, rig.runs, "mine") == 1
    assert len(rig.runs.created) == 2


class Slow(Reader):
    """Has units that last for minutes; the fifth looks, shortly before its end, whether its successor was created."""

    clock: Any = None
    runs: Any = None

    def work_unit(self, unit: Unit) -> Any:
        if unit.id == "doc-4":
            wait_for(lambda: self.runs.created)
        self.clock.advance(10)
        return super().work_unit(unit)


def test_the_end_of_a_long_unit_is_foretold_while_it_runs(
    make_rig: MakeRig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit of more than three minutes is the session's last: the follow-on is created shortly before it ends."""
    monkeypatch.setattr(successor, "WATCH_SECONDS", 0.01)
    agent = Slow(documents=9)
    rig = make_rig(agent)
    agent.clock, agent.runs = clock, rig.runs
    rig.runner = LocalUnits(agent, MemoryDocuments(), clock, seconds=190.0)
    rig.run(tokens(500, threshold=1.0))
    assert left_when_announced(rig) == [1]
