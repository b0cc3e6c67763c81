"""Bad units: whatever one item does, the chain goes on with the others, and its story is told."""

import json
from collections.abc import Iterable
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FakeClock, item_in, status_of
from test_loop import Failing, MakeRig, Reader, Rig, make_rig, tokens

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.session.choosing import MOST_WAITED_SECONDS
from perpetual_blocks.session.follow_on import move_follow_ons, ready_at
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.telemetry import ItemDiscarded
from perpetual_blocks.work import ItemStatus, Unit, WorkItem

__all__ = ["make_rig"]  # a fixture

EXTREME = st.sampled_from([0.0, 1e-15, 1e-9, 1.0, 1000.0, 1e9, 1e18, 1e30])


# Left alone for a while -----------------------------------------------------------------------------------------------


def test_others_go_on_while_a_failed_item_is_left_alone(make_rig: MakeRig, clock: FakeClock) -> None:
    """The wait for the second attempt is filled with other work; for the third one the session waits itself."""
    rig = make_rig(Failing(documents=4, failures={"doc-0": 2}))
    began = clock.now()

    end = rig.run()

    assert end.state is SessionState.FINISHED
    story = rig.ledger.story("mine", "doc-0")
    assert [attempt.at - began for attempt in story.attempts] == [1, 5]
    assert rig.ledger.chain("mine").context["read"] == ["doc-1 p1", "doc-2 p1", "doc-3 p1", "doc-0 p1"]
    assert clock.now() - began == pytest.approx(5 + 8 + 1)


def test_a_session_does_not_wait_for_long(make_rig: MakeRig, clock: FakeClock) -> None:
    """Where all that is left has failed and is left alone for more than half a minute, the session ends, and its
    follow-on is scheduled for then."""

    class Patient(Failing):
        """Tries often."""

        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id="doc-0", max_attempts=9)]

    rig = make_rig(Patient(failures={"doc-0": 3}))
    began = clock.now()

    first = rig.run()

    retry_at = item_in(rig.ledger, "doc-0").retry_at
    assert (first.state, first.reason.code) == (SessionState.WRAPPED, "backing-off")
    assert first.reason.message == ("what has failed is tried again in 32 s, and nothing else can be done before")
    assert retry_at == pytest.approx(began + 1 + 2 + 1 + 8 + 1 + 32)
    chain = rig.ledger.chain("mine")
    (follow_on,) = rig.runs.created.values()
    assert chain.status is ChainStatus.WAITING
    assert follow_on.not_before == chain.resume_at == first.reason.resume_at
    assert retry_at <= chain.resume_at < retry_at + 2, "and a little that differs between chains"
    assert ready_at(rig.ledger, "mine", clock) == retry_at
    assert move_follow_ons(rig.ledger, rig.runs, clock) == 0
    assert ", when what has failed is tried again." in rig.document("handoff", 1)
    clock.advance(chain.resume_at - clock.now())
    assert rig.run(invited=follow_on.idempotency_key).state is SessionState.FINISHED


def test_a_stop_ends_the_wait(make_rig: MakeRig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a waiting session to stop is heard at once."""
    stop = StopRequest()
    rig = make_rig(Failing(documents=1, failures={"doc-0": 1}))
    waits: list[float] = []

    def ask(event: Event, seconds: float) -> bool:
        waits.append(seconds)
        stop.ask(StopReason("signal", "the process was asked to end"))
        return event.is_set()

    monkeypatch.setattr(clock, "wait", ask)

    end = rig.run(stop=stop)

    assert (end.state, end.reason.code, waits) == (SessionState.WRAPPED, "signal", [2.0])
    assert len(rig.runner.ran) == 1


def test_waiting_does_not_use_up_the_sessions_time(make_rig: MakeRig, clock: FakeClock) -> None:
    """A session with too little time left for the wait ends instead."""
    rig = make_rig(Failing(documents=1, failures={"doc-0": 2}))

    end = rig.run(Budget(seconds=8))

    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "backing-off")
    assert rig.ledger.sessions("mine")[0].attempts == 2
    assert end.reason.resume_at is not None
    assert end.reason.resume_at >= clock.now() + 8 - MOST_WAITED_SECONDS


def test_what_waits_for_a_window_does_not_keep_a_failed_item_waiting(make_rig: MakeRig, clock: FakeClock) -> None:
    """An attempt that is due before the window frees is made when it is due."""

    class Two(Reader):
        """Has one item that the window has no room for, and one that fails at first."""

        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id="flaky", bound={"tokens": 10}), WorkItem(id="large", bound={"tokens": 95})]

        def work_unit(self, unit: Unit) -> Any:
            unit.spend(tokens=10)
            if unit.id == "flaky" and unit.attempt <= 2:
                raise ValueError("not yet")

    rig = make_rig(Two())

    end = rig.run(Budget(Limit("tokens", 100, scope="window", window="1h")))

    assert status_of(rig.ledger) == {"flaky": ItemStatus.COMPLETED, "large": ItemStatus.AVAILABLE}
    assert (end.state, end.reason.code) == (SessionState.WRAPPED, "nothing-fits")
    assert (end.reason.resume_at or 0) > clock.now() + 3000


# The whole story ------------------------------------------------------------------------------------------------------


def test_a_dead_letter_has_a_story(make_rig: MakeRig) -> None:
    """The handoff says of a discarded item how often it failed, in which sessions, what for, and what that cost."""
    rig = make_rig(Failing(documents=1, failures={"doc-0": 99}))

    ends = rig.run_chain(tokens(30, threshold=0.2))

    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.WRAPPED, SessionState.FINISHED]
    assert [session.attempts for session in rig.ledger.sessions("mine")] == [1, 1, 1]
    assert "## Discarded" not in rig.document("handoff", 2)
    assert (
        "## Discarded\n\n- `doc-0`: failed 3 times (sessions 1, 2, 3), 21 tokens spent in vain: ValueError: attempt 3\n"
    ) in rig.document("handoff", 3)


def test_a_unit_that_costs_more_than_a_session_is_quarantined(make_rig: MakeRig) -> None:
    """Whatever attempts it has left: it is given up at once, with the figures, and the others are done."""

    class Dear(Failing):
        """Has an item that spends much before it fails."""

        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id="dear", max_attempts=99), WorkItem(id="doc-1")]

        def work_unit(self, unit: Unit) -> Any:
            if unit.id == "dear":
                unit.spend(tokens=300)
            return super().work_unit(unit)

    rig = make_rig(Dear(failures={"dear": 99}))

    ends = rig.run_chain(tokens(600, threshold=1.0))

    assert ends[-1].state is SessionState.FINISHED
    assert status_of(rig.ledger) == {"dear": ItemStatus.DISCARDED, "doc-1": ItemStatus.COMPLETED}
    assert item_in(rig.ledger, "dear").error == (
        "quarantined: its failed attempts have used 614 tokens, more than a whole session's 600 tokens: "
        "ValueError: attempt 2"
    )


# What fits into no session --------------------------------------------------------------------------------------------


class Shelf(PerpetualAgent):
    """Reads large and small documents, of which new ones come in."""

    costs: dict[str, float]

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=name, estimate={"tokens": cost}) for name, cost in self.costs.items()]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=self.costs[unit.id])


def test_what_fits_into_no_session_does_not_stop_the_others(make_rig: MakeRig) -> None:
    """A chain whose budget was made smaller passes over the item that needs more, gives it up in the fourth session
    with what it would need and what there is, and finishes everything else."""
    rig = make_rig(Shelf(costs={"huge": 90} | {f"small-{n}": 30 for n in range(5)}))
    stop = StopRequest()
    stop.ask(StopReason("asked", "a person changes the budget"))
    rig.run(tokens(100), stop=stop)

    ends = rig.run_chain(tokens(50, threshold=0.6))

    assert [end.state for end in ends] == [SessionState.WRAPPED] * 4 + [SessionState.FINISHED]
    assert [session.units for session in rig.ledger.sessions("mine")] == [0, 1, 1, 1, 1, 1]
    assert status_of(rig.ledger)["huge"] is ItemStatus.DISCARDED
    assert rig.ledger.counts("mine")[ItemStatus.COMPLETED] == 5
    why = "it needs 90 tokens, and there are 50 tokens a session"
    assert rig.told(ItemDiscarded) == [ItemDiscarded("mine", "huge", why)]
    assert f"- `huge`: {why}\n" in rig.document("handoff", 5)


def test_a_wrong_budget_gives_up_nothing(make_rig: MakeRig) -> None:
    """Where no item fits into a fresh session, the chain is stalled as it is; with the right budget it goes on."""
    rig = make_rig(Shelf(costs=dict.fromkeys("abcdef", 90)))
    rig.run(tokens(100))

    ends = [rig.run(tokens(50)) for _ in range(5)]

    assert {(end.state, end.reason.code) for end in ends} == {(SessionState.STALLED, "too-large")}
    assert ItemStatus.DISCARDED not in status_of(rig.ledger).values()
    assert rig.run_chain(tokens(100))[-1].state is SessionState.FINISHED


def test_what_fits_into_no_session_does_not_stop_what_waits(make_rig: MakeRig, clock: FakeClock) -> None:
    """The chain waits for the window that its other items need, and is not stalled for the one that never fits."""
    rig = make_rig(Shelf(costs={"huge": 90, "a": 40, "b": 40}))
    stop = StopRequest()
    stop.ask(StopReason("asked", "a person changes the budget"))
    rig.run(tokens(100), stop=stop)
    hourly = Limit("tokens", 70, scope="window", window="1h")

    first = rig.run(Budget(hourly, Limit("tokens", 50, threshold=1.0)))
    second = rig.run(Budget(hourly, Limit("tokens", 50, threshold=1.0)))

    assert rig.ledger.sessions("mine")[-1].units == 0
    assert [end.state for end in (first, second)] == [SessionState.WRAPPED] * 2
    assert (second.reason.resume_at or 0) >= clock.now() + 3590
    clock.advance(3700)
    rig.run(Budget(hourly, Limit("tokens", 50, threshold=1.0)))
    assert rig.ledger.counts("mine")[ItemStatus.COMPLETED] == 2


def test_a_unit_is_not_to_blame_for_what_others_have_used(make_rig: MakeRig) -> None:
    """What is left of a total is no whole session's room: an item that says only when it runs what it needs is kept,
    however many sessions begin with it; and it is not taken again and again while others could be."""

    class Asking(Reader):
        """Knows what the second costs when it has looked at it."""

        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id=name, bound={"tokens": 20}) for name in "abcd"]

        def work_unit(self, unit: Unit) -> Any:
            cost = 60 if unit.id == "b" else 20
            unit.reserve(tokens=cost)
            unit.spend(tokens=cost)

    rig = make_rig(Asking())
    first = rig.run(Budget(Limit("tokens", 70, scope="total")))
    ends = [rig.run(Budget(Limit("tokens", 70, scope="total"))) for _ in range(3)]

    assert {(end.state, end.reason.code) for end in (first, *ends)} == {(SessionState.EXHAUSTED, "exhausted:tokens")}
    assert "needs 60 tokens; 50 tokens left" in first.reason.message
    assert [session.units for session in rig.ledger.sessions("mine")] == [3, 0, 0, 0]
    item = item_in(rig.ledger, "b")
    assert (item.status, item.attempts, item.cut_offs) == (ItemStatus.AVAILABLE, 0, 0)
    assert rig.run(Budget(Limit("tokens", 130, scope="total"))).state is SessionState.FINISHED


def test_a_cut_off_in_what_is_gone_for_good_does_not_stop_the_others(make_rig: MakeRig) -> None:
    """A unit for which a total has no room any more ends neither its session nor its chain: smaller ones go on. When
    none is left, the chain is exhausted for the reason that the unit had."""

    class Asking(Reader):
        """Asks the pool before it spends; one of its documents is larger than all that there is."""

        def plan(self) -> Iterable[WorkItem]:
            yield WorkItem(id="large")
            yield WorkItem(id="small", bound={"tokens": 50})

        def work_unit(self, unit: Unit) -> Any:
            for _ in range(6 if unit.id == "large" else 1):
                unit.reserve(tokens=80 if unit.id == "large" else 50)
                unit.spend(tokens=80 if unit.id == "large" else 50)

    rig = make_rig(Asking())

    end = rig.run(Budget(Limit("tokens", 450, scope="total", pool="team")))

    assert status_of(rig.ledger) == {"large": ItemStatus.AVAILABLE, "small": ItemStatus.COMPLETED}
    assert (end.state, end.reason.code) == (SessionState.EXHAUSTED, "exhausted:tokens")
    assert end.reason.message == "large: unit 1 needs 80 tokens; 0 tokens left"


def test_a_plan_may_name_what_was_added_under_a_larger_budget(make_rig: MakeRig) -> None:
    """An item that is there already is not checked against a budget that was made smaller since; a new one is."""
    rig = make_rig(Shelf(costs={"large": 90}))
    rig.run(tokens(100))
    rig.agent.costs = {"large": 90, "small": 10}  # type: ignore[attr-defined]

    assert rig.run(tokens(50)).state is SessionState.FINISHED

    rig.agent.costs = {"larger": 91}  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match="larger"):
        rig.run(tokens(50))


# Amounts out of this world --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    amounts=st.lists(st.tuples(EXTREME, EXTREME, st.booleans()), min_size=1, max_size=6),
    amount=EXTREME.filter(bool),
    scope=st.sampled_from(["session", "window"]),
)
def test_no_amount_stops_a_chain(amounts: list[tuple[float, float, bool]], amount: float, scope: Any) -> None:
    """Whatever items say they need, and whatever their units spend: the session ends in order, and what was learned can
    be kept."""

    class Wild(PerpetualAgent):
        """Says one thing and spends another."""

        def plan(self) -> Iterable[WorkItem]:
            for n, (said, _, bound) in enumerate(amounts):
                needed = {"tokens": min(said, amount)}
                yield WorkItem(id=f"{n}", estimate=needed, bound=needed if bound else {})

        def work_unit(self, unit: Unit) -> Any:
            unit.spend(tokens=amounts[int(unit.id)][1])

    ledger, clock = SqlLedger("sqlite://"), FakeClock()
    rig = Rig(ledger, clock, Wild())
    limit = Limit("tokens", amount, scope=scope, window="1h" if scope == "window" else None)

    for _ in range(3):
        assert rig.run(Budget(limit)).state is not SessionState.FAILED
        json.dumps(ledger.forecasts("mine"), allow_nan=False)
        clock.advance(3700)
    ledger.close()
