"""Moments as Prefect events, for automations and for the event feed of Prefect's UI.

| event | when | payload, besides `chain` and `session` |
| --- | --- | --- |
| `perpetual.session.started` | a session has begun | `took_over`, `notes`, `gap`: seconds since it could begin |
| `perpetual.session.progress` | units are finished; every five minutes at most | `units` and `usage` so far |
| `perpetual.session.wrapped` | it stopped by itself, and the chain goes on | `reason`, `code`, `resume_at`, \
`seconds`, `units`, `usage`, `items` by status, `status` of the chain, `left_out` where there were too many events |
| `perpetual.session.finished`, `.exhausted`, `.stalled`, `.paused`, `.cancelled`, `.failed` | it has ended so | the \
same |
| `perpetual.session.crashed` | it was found dead; told by the session that goes on | |
| `perpetual.follow-on.announced` | the end is near, and the next session is created | `next`, `seconds` |
| `perpetual.follow-on.waiting` | its run is up, and waits for the session before to end | |
| `perpetual.items.added` | `plan()` has added items | `count` |
| `perpetual.item.discarded` | an item was given up | `item`, `reason` |
| `perpetual.unit.failed` | a unit raised | `item`, `attempt`, `max_attempts`, `error`, `discarded` |
| `perpetual.unit.cut-off` | a unit had no room to finish | `item`, `reason`, `discarded` |
| `perpetual.budget.warning` | a limit came near its threshold; once a session for each | `resource`, `reason` |
| `perpetual.step.failed` | a step of the shutdown failed; the shutdown went on | `step`, `error` |
| `perpetual.code.changed` | the agent's code is another than the session before had | `what` |
| `perpetual.checkpoint.large` | a checkpoint is larger than a context should be | `size`, `budget` |
| `perpetual.chain.rescued`, `.created`, `.renewed`, `.held`, `.completed`, `.late` | the supervisor did it, or saw it \
| `why`, `status` of the chain; no `session` |

The resource is `perpetual.chain.<name>`, with the labels `perpetual.agent`, `perpetual.session`, `perpetual.status`
(how the chain stands: `running` as long as a session is at work) and, at the end of a session, `perpetual.stop` (the
reason's code): a trigger can match labels, and no payload. Prefect adds the flow run, its flow, deployment, work pool
and tags as related resources. Texts are masked and cut short; an item's payload, result and context are in no event.

There is no event for each unit that was finished: Prefect's server drops events past a queue of 10,000, and what it
drops are others' events, too. For the same reason a session has at most fifty events of each name.

A session never waits for an event. Prefect's client tries to connect for 7 s for each event that it holds, and the
process does not exit before: so it is handed one at a time, and at the end the rest has two seconds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from math import inf
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from perpetual_blocks.adapters.local_server import configured_server
from perpetual_blocks.clock import isoformat
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.steps import StepTimedOut, within
from perpetual_blocks.session.supervisor import Deed
from perpetual_blocks.telemetry import (
    BudgetWarned,
    CheckpointLarge,
    CodeChanged,
    FenceReached,
    FollowOnAnnounced,
    ItemDiscarded,
    ItemsAdded,
    Moment,
    SessionEnded,
    SessionStarted,
    StepFailed,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)
from perpetual_blocks.usage import add

PROGRESS_SECONDS = 300.0
MOST = 50
"""How many events of one name a session has."""

DELIVERY_SECONDS = 10.0
"""How long an event may take before the next one is handed over; Prefect's client gives up after 7 s."""

LONGEST = 500
"""How many characters of a text are sent."""

Payload = dict[str, Any]


def events_of(moment: Moment) -> Iterator[tuple[str, Payload]]:  # noqa: PLR0912 - one for each moment
    """The events that a moment is, by name, each with its payload; `session` is in it where the moment says it."""
    match moment:
        case SessionStarted(_, ordinal, took_over, notes, after_crash, gap):
            if after_crash:
                yield "perpetual.session.crashed", {"session": ordinal - 1}
            started = {"session": ordinal, "took_over": took_over, "notes": list(notes), "gap": gap}
            yield "perpetual.session.started", started
        case ItemsAdded(_, count) if count:
            yield "perpetual.items.added", {"count": count}
        case UnitFailed(_, item, attempt, most, error, discarded, _):
            counted = {"attempt": attempt, "max_attempts": most}
            yield "perpetual.unit.failed", {"item": item, **counted, "error": error, "discarded": discarded}
            if discarded:
                yield "perpetual.item.discarded", {"item": item, "reason": error}
        case UnitCutOff(_, item, reason, discarded, _):
            yield "perpetual.unit.cut-off", {"item": item, "reason": reason, "discarded": discarded}
            if discarded:
                yield "perpetual.item.discarded", {"item": item, "reason": reason}
        case ItemDiscarded(_, item, reason):
            yield "perpetual.item.discarded", {"item": item, "reason": reason}
        case BudgetWarned(_, resource, reason):
            yield "perpetual.budget.warning", {"resource": resource, "reason": reason}
        case StepFailed(_, step, error):
            yield "perpetual.step.failed", {"step": step, "error": error}
        case CodeChanged(_, ordinal, what):
            yield "perpetual.code.changed", {"session": ordinal, "what": what}
        case CheckpointLarge(_, ordinal, size, budget):
            yield "perpetual.checkpoint.large", {"session": ordinal, "size": size, "budget": budget}
        case FollowOnAnnounced(_, ordinal, seconds):
            yield "perpetual.follow-on.announced", {"next": ordinal, "seconds": round(seconds, 1)}
        case FenceReached(_, ordinal):
            yield "perpetual.follow-on.waiting", {"session": ordinal}
        case SessionEnded():
            ended = {"session": moment.ordinal, "reason": moment.reason, "code": moment.code, "status": moment.status}
            ended["resume_at"] = isoformat(moment.resume_at)
            ended |= {"seconds": round(moment.seconds, 3), "units": moment.units, "usage": dict(moment.usage)}
            ended["items"] = {status: count for status, count in moment.items.items() if count}
            yield f"perpetual.session.{moment.state.lower()}", ended


class _Event(NamedTuple):
    name: str
    chain: str
    labels: dict[str, str]
    payload: Payload
    occurred: datetime

    def emit(self) -> None:
        resource = {"prefect.resource.id": f"perpetual.chain.{self.chain}", "prefect.resource.name": self.chain}
        emit_event(self.name, {**resource, **self.labels}, self.occurred, payload=self.payload)


class PrefectEvents:
    """Emits the events of one session: an observer, to be closed when the session is over."""

    def __init__(self, agent: str, redactor: Redactor) -> None:
        self._agent = agent
        self._redactor = redactor
        self._session: int | None = None
        self._units = 0
        self._usage: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._next_progress = inf
        self._queue: SimpleQueue[_Event | None] = SimpleQueue()
        self._closed = False
        self._thread: Thread | None = None

    def __call__(self, moment: Moment) -> None:
        match moment:
            case SessionStarted():
                self._session = moment.ordinal
                self._next_progress = monotonic() + PROGRESS_SECONDS
            case UnitCompleted():
                self._units += 1
                self._usage = add(self._usage, moment.usage)
                if monotonic() >= self._next_progress:
                    self._next_progress = monotonic() + PROGRESS_SECONDS
                    progress = {"units": self._units, "usage": self._usage}
                    self._put("perpetual.session.progress", moment.chain, progress)
                return
        for name, payload in events_of(moment):
            if isinstance(moment, SessionEnded) and (left_out := self._left_out()):
                payload["left_out"] = left_out
            self._put(name, moment.chain, payload)

    def close(self, seconds: float) -> None:
        """Waits so long until what happened is sent. The rest is given up."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(seconds)
        self._closed = True

    def _left_out(self) -> dict[str, int]:
        return {name: count - MOST for name, count in self._counts.items() if count > MOST}

    def _put(self, name: str, chain: str, payload: Payload) -> None:
        self._counts[name] += 1
        if self._counts[name] > MOST and name != "perpetual.session.progress":
            return
        payload = {"chain": chain, "session": self._session, **_short(self._redactor.shown(payload))}
        labels = {"perpetual.agent": self._agent, "perpetual.status": payload.get("status", "running")}
        labels["perpetual.session"] = str(payload["session"])
        if "code" in payload:
            labels["perpetual.stop"] = payload["code"]
        self._queue.put(_Event(name, chain, labels, payload, datetime.now(UTC)))
        if self._thread is None:
            # Prefect finds the flow run, which it relates events to, through context variables.
            work = copy_context().run
            self._thread = Thread(target=work, args=(self._send,), name="perpetual events", daemon=True)
            self._thread.start()

    def _send(self) -> None:
        while (event := self._queue.get()) is not None and not self._closed:
            with suppress(Exception):
                event.emit()
                with suppress(StepTimedOut):
                    within(DELIVERY_SECONDS, EventsWorker.instance().wait_until_empty)


def emit_deeds(deeds: Iterable[Deed], redactor: Redactor) -> None:
    """Emits what the supervisor did to chains, or found. Without a server there is nobody to be told."""
    if configured_server() is None:
        return
    for deed in deeds:
        if deed.chain and deed.what != "failed":
            payload = {"chain": deed.chain, "why": redactor(deed.why)[:LONGEST], "status": deed.status}
            labels = {"perpetual.status": deed.status} if deed.status else {}
            event = _Event(f"perpetual.chain.{deed.what}", deed.chain, labels, payload, datetime.now(UTC))
            with suppress(Exception):
                event.emit()


def _short(value: Any) -> Any:
    match value:
        case str():
            return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
        case dict():
            return {name: _short(inner) for name, inner in value.items()}
        case list():
            return [_short(inner) for inner in value[:MOST]]
        case _:
            return value
