"""Moments as Prefect events: which, with what in them, and how many."""

import json
import re
from threading import Event
from typing import Any, get_args

import pytest

from perpetual_blocks.adapters import prefect_events
from perpetual_blocks.adapters.prefect_events import LONGEST, MOST, PrefectEvents, events_of
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.telemetry import (
    BudgetRead,
    BudgetWarned,
    CheckpointLarge,
    CodeChanged,
    FenceReached,
    FollowOnAnnounced,
    ItemDiscarded,
    ItemsAdded,
    ModelUsed,
    Moment,
    SessionEnded,
    SessionStarted,
    StepEnded,
    StepFailed,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)

SECRET = "hunter2-hunter2"
DONE = UnitCompleted("mine", "a", 1, True, None, {"tokens": 5.0})
STARTED = SessionStarted("mine", 7, took_over=False, notes=("checked",), gap=1.5)
ENDED = SessionEnded(
    "mine",
    7,
    SessionState.WRAPPED,
    "full",
    "budget:tokens",
    1.5e9,
    2.0,
    3,
    {"tokens": 9.0},
    {"completed": 3},
    "waiting",
)

MOMENTS: dict[type[Moment], tuple[Moment, list[str]]] = {
    type(moment): (moment, names)
    for moment, names in (
        (STARTED, ["session.started"]),
        (ItemsAdded("mine", 3), ["items.added"]),
        (DONE, []),
        (ModelUsed("mine", "a", "m", 1, 2), []),
        (UnitFailed("mine", "a", 3, 3, "no", discarded=True), ["unit.failed", "item.discarded"]),
        (UnitCutOff("mine", "a", "no room", discarded=True), ["unit.cut-off", "item.discarded"]),
        (ItemDiscarded("mine", "a", "too large"), ["item.discarded"]),
        (BudgetWarned("mine", "tokens", "near"), ["budget.warning"]),
        (BudgetRead("mine", ()), []),
        (StepFailed("mine", "backup", "no"), ["step.failed"]),
        (StepEnded("mine", "backup", 1.0, None), []),
        (CodeChanged("mine", 7, "changed"), ["code.changed"]),
        (CheckpointLarge("mine", 7, 2, 1), ["checkpoint.large"]),
        (FollowOnAnnounced("mine", 8, 17.0), ["follow-on.announced"]),
        (FenceReached("mine", 8), ["follow-on.waiting"]),
        (ENDED, ["session.wrapped"]),
    )
}


class Sent:
    """What an observer has put into its queue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redactor: Redactor | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        monkeypatch.setattr(prefect_events, "emit_event", self._take)
        monkeypatch.setattr(prefect_events.EventsWorker, "instance", lambda: self)
        self.observer = PrefectEvents("Agent", redactor or Redactor())
        self.patience = 10.0

    def _take(self, event: str, resource: dict[str, str], occurred: Any, payload: dict[str, Any]) -> None:
        self.events.append({"event": event, "resource": resource, "payload": payload})

    def wait_until_empty(self) -> None:
        """As the worker's."""

    def told(self, *moments: Moment) -> list[dict[str, Any]]:
        for moment in moments:
            self.observer(moment)
        self.observer.close(self.patience)
        return self.events


def test_each_moment_has_its_events() -> None:
    """All of them, and none of what happens too often."""
    assert set(MOMENTS) == set(get_args(Moment))
    for moment, names in MOMENTS.values():
        assert [name for name, _ in events_of(moment)] == [f"perpetual.{name}" for name in names]


def test_the_table_has_each_event() -> None:
    """The one that users read; of how sessions end, all ways."""
    table = prefect_events.__doc__ or ""
    names = {name for moment, _ in MOMENTS.values() for name, _ in events_of(moment)}
    ends = [state.lower() for state in SessionState if state is not SessionState.RUNNING]

    assert names <= set(re.findall(r"`(perpetual\.[a-z.-]+)`", table))
    assert [end for end in ends if f".{end}`" not in table] == []


def test_an_event_says_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels for triggers, and a payload of JSON for templates; the session is known to all."""
    started, failed, ended = Sent(monkeypatch).told(STARTED, UnitFailed("mine", "a", 1, 3, "no"), ENDED)

    resource = {
        "prefect.resource.id": "perpetual.chain.mine",
        "prefect.resource.name": "mine",
        "perpetual.agent": "Agent",
        "perpetual.session": "7",
    }
    assert started["resource"] == {**resource, "perpetual.status": "running"}
    assert failed["payload"]["session"] == 7
    assert ended["resource"] == {**resource, "perpetual.status": "waiting", "perpetual.stop": "budget:tokens"}
    assert json.loads(json.dumps(ended["payload"])) == {
        "chain": "mine",
        "session": 7,
        "reason": "full",
        "code": "budget:tokens",
        "status": "waiting",
        "resume_at": "2017-07-14T02:40:00.000Z",
        "seconds": 2.0,
        "units": 3,
        "usage": {"tokens": 9.0},
        "items": {"completed": 3},
    }


def test_a_crash_is_told_by_the_session_that_goes_on() -> None:
    """Who was killed tells nothing."""
    crashed, started = events_of(SessionStarted("mine", 7, took_over=False, notes=(), after_crash=True))

    assert crashed == ("perpetual.session.crashed", {"session": 6})
    assert started[0] == "perpetual.session.started"


def test_no_event_has_a_secret_and_none_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are masked, then cut short."""
    error = f"refused {SECRET} " + "x" * 5000

    events = Sent(monkeypatch, Redactor([SECRET])).told(
        STARTED, UnitFailed("mine", f"doc {SECRET}", 1, 3, error), StepFailed("mine", "backup", error)
    )

    assert SECRET not in json.dumps(events)
    assert events[1]["payload"]["item"] == "doc ***"
    assert len(events[1]["payload"]["error"]) == LONGEST


def test_a_flood_is_cut_short_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty of each name; the last event says how many more there were."""
    failures = [UnitFailed("mine", f"n/{n}", 1, 3, "no") for n in range(MOST + 200)]

    events = Sent(monkeypatch).told(STARTED, *failures, ENDED)

    assert len(events) == MOST + 2
    assert events[-1]["payload"]["left_out"] == {"perpetual.unit.failed": 200}


def test_progress_is_told_every_five_minutes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that was done until then."""
    now = 1000.0
    monkeypatch.setattr(prefect_events, "monotonic", lambda: now)
    sent = Sent(monkeypatch)
    for moment in (STARTED, DONE, DONE):
        sent.observer(moment)
    now += prefect_events.PROGRESS_SECONDS

    _, progress = sent.told(DONE, DONE)

    assert progress["event"] == "perpetual.session.progress"
    assert progress["payload"] == {"chain": "mine", "session": 7, "units": 3, "usage": {"tokens": 15.0}}


def test_a_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One event is handed over, for whose sake Prefect keeps the process a few seconds; the rest is given up."""
    sent, never = Sent(monkeypatch), Event()
    monkeypatch.setattr(sent, "wait_until_empty", never.wait)
    sent.patience = 0.2

    events = sent.told(STARTED, *[UnitFailed("mine", f"n/{n}", 1, 3, "no") for n in range(20)], ENDED)

    assert [event["event"] for event in events] == ["perpetual.session.started"]
    never.set()
