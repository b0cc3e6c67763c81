"""A whole chain on this machine: session after session, each in a process of its own, and what it comes to."""

import json
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import Fenced, Superseded, UnknownChain, described
from perpetual_blocks.session.chain import (
    ChainStatus,
    SessionRecord,
    SessionRequest,
    SessionState,
    StopReason,
)
from perpetual_blocks.session.follow_on import RunTemplate, create_follow_ons, move_follow_ons
from perpetual_blocks.session.ledger import Fence, FollowOn
from perpetual_blocks.session.loop import Session
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import World
from perpetual_blocks.testing.interruptions import RIVAL, Interrupter, Interruption
from perpetual_blocks.testing.local import (
    LocalDocuments,
    LocalRuns,
    LocalUnits,
    ManualClock,
    NoSavedWork,
    kept_outcome,
    local_meters,
    local_request,
)
from perpetual_blocks.testing.processes import Fork, Say
from perpetual_blocks.work import Unit, WorkItem

CHAIN = "resumable"
TEMPLATE = RunTemplate(deployment_id="local")
MOST_ITEMS = 1_000_000

UNFINISHED = "usage of attempts that did not finish"
"""Of units that can be cut off, it depends on where the sessions ended."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is run again and again.

    Attributes:
        make: Makes the agent, given the folder for its files.
        began: When each of its chains begins, in seconds since the Unix epoch.
        seconds: How long a session may take.
    """

    make: Callable[[Path], PerpetualAgent]
    budget: Budget
    compare: Callable[[Path], Any]
    began: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which one chain has everything: ledger, documents, follow-on runs, the agent's files, the output."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def documents(self) -> Path:
        return self.root / "documents"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def output(self) -> Path:
        return self.root / "output.log"

    def clear(self, empty_ledger: bytes) -> None:
        """Makes the folder anew, with a ledger that has no chain in it."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.files.mkdir(parents=True)
        self.ledger.write_bytes(empty_ledger)

    def portable(self, value: Any) -> Any:
        """A JSON value in which the folder of the agent's files has the same name wherever it is."""
        here = json.dumps(str(self.files))[1:-1]
        return json.loads(json.dumps(value).replace(here, "{folder}"))


@dataclass(slots=True)
class Course:
    """How a chain went.

    Attributes:
        agent: The agent's name, as far as it came to that.
        can_be_cut_off: Whether units may be given back for want of room.
        over: Whether it came to its end.
        final: What it came to then, as JSON.
        problem: What is wrong in itself, in a sentence.
        sessions: One line for each.
        reached: How often each point was reached, in order of the first time.
        fired: Whether the interruption took place.
        raised: What the latest session raised.
        errors: One line for each item with an error.
    """

    agent: str = "the agent"
    can_be_cut_off: bool = False
    over: bool = False
    final: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    sessions: list[str] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)
    fired: bool = False
    raised: str | None = None
    errors: list[str] = field(default_factory=list)


class Bench:
    """Where one chain after the other is run, in the same folder.

    It forks, so its process has no database connection open, and no other threads.

    Args:
        empty_ledger: The SQLite file of a ledger with no chain in it.
    """

    def __init__(self, subject: Subject, place: Place, empty_ledger: bytes) -> None:
        self.subject = subject
        self.place = place
        self.clock = ManualClock(subject.began)
        self._empty_ledger = empty_ledger
        place.clear(empty_ledger)
        self.ledger = SqlLedger(str(place.ledger), clock=self.clock)
        self._warm_up()

    def _warm_up(self) -> None:
        """Runs a small chain in this process: what SQLAlchemy makes at first use is then there in each session's."""
        subject = replace(self.subject, make=lambda _folder: _WarmUp(), budget=Budget(Limit("tokens", 3)))
        while not _is_over(self.ledger):
            _bury_the_dead(self.ledger)
            _run(subject, self.place, self.ledger, self.clock, StopRequest(), lambda message: None)
            _standing(self.ledger, self.place)
        self.ledger.close()

    def run_chain(self, interruption: Interruption | None, most: int) -> Course:
        """Runs sessions until the chain has ended, as `perpetual run` does, each in a process of its own.

        Args:
            most: So many sessions at most.
        """
        self.place.clear(self._empty_ledger)
        course = Course()
        for number in range(1, most + 1):
            self._run_session(course, number, None if course.fired else interruption)
            if course.problem is None and course.over:
                course.final["compare"] = self.place.portable(self.subject.compare(self.place.files))
            if course.problem is not None or course.over:
                return course
        last = f"; the last one raised {course.raised}" if course.raised else ""
        course.problem = f"the chain had not ended after {most} sessions{last}"
        return course

    def _run_session(self, course: Course, number: int, interruption: Interruption | None) -> None:
        seen = Counter(course.reached)
        child = Fork(lambda say: _session(self, interruption, seen, say), self.place.output)
        ended = child.hear_out(self.subject.seconds)
        code = child.end()
        said: dict[str, Any] = {"raised": None, "fired": course.fired}
        for message in child.heard:
            said |= message
        for name, value in said.items():
            setattr(course, name, value)
        killed = course.fired and interruption is not None and interruption.mode == "SIGKILL"
        if not ended:
            course.problem = f"session {number} had not ended after {self.subject.seconds:g} s"
        elif "over" not in said and not killed:
            course.problem = f"the process of session {number} ended by itself, {_how(code)}"
        elif course.raised is not None and not course.fired:
            course.problem = f"session {number} raised {course.raised}"


class _WarmUp(PerpetualAgent):
    """Comes to most of what sessions do."""

    def plan(self) -> list[WorkItem]:
        return [WorkItem(id="a"), WorkItem(id="b", depends_on=("a",)), WorkItem(id="c", max_attempts=1)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=1)
        unit.context["latest"] = unit.id
        if unit.id == "c":
            raise ValueError(unit.id)
        return unit.advance(cursor=1) if unit.number == 1 else None


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


# In the process of a session ------------------------------------------------------------------------------------------


def _session(bench: Bench, interruption: Interruption | None, seen: Counter[str], say: Say) -> None:
    """Runs the chain's next session, where it goes on, and says how the chain stands then."""
    subject, place, ledger, clock, stop = bench.subject, bench.place, bench.ledger, bench.clock, StopRequest()
    signal.signal(signal.SIGTERM, lambda *_: stop.ask(StopReason("signal", "the process was asked to end")))
    interrupter = Interrupter(interruption, seen, lambda: say({"fired": True}), stop, ledger, place.ledger)
    with closing(ledger):
        if not _is_over(ledger):
            _bury_the_dead(ledger)
            _go_to_its_time(ledger, clock)
            faults.install(interrupter)
            raised = _in_background(lambda: _run(subject, place, ledger, clock, stop, say))
            faults.install(None)
            interrupter.join()
            if raised is not None:
                say({"raised": described(raised)})
        say({"reached": interrupter.seen, **_standing(ledger, place)})


def _is_over(ledger: SqlLedger) -> bool:
    """Whether nobody would start the chain again; a session that failed is tried again."""
    try:
        chain = ledger.chain(CHAIN)
    except UnknownChain:
        return False
    sessions = ledger.sessions(CHAIN)
    failed = bool(sessions) and sessions[-1].state is SessionState.FAILED and chain.status is ChainStatus.STALLED
    return chain.status not in (ChainStatus.RUNNING, ChainStatus.WAITING) and not failed


def _bury_the_dead(ledger: SqlLedger) -> None:
    with suppress(UnknownChain, IndexError):
        latest = ledger.sessions(CHAIN)[-1]
        if latest.state is SessionState.RUNNING:  # its process has ended: this one is started after it
            ledger.declare_dead(CHAIN, latest.ordinal)


def _go_to_its_time(ledger: SqlLedger, clock: ManualClock) -> None:
    """Lets the clock go on from the last session's time, or from when there is room again."""
    with suppress(UnknownChain):
        chain = ledger.chain(CHAIN)
        clock.advance(max(0.0, chain.updated_at - clock.now(), (chain.resume_at or 0.0) - clock.now()))


def _in_background(work: Callable[[], None]) -> Exception | None:
    """Runs `work` in a thread that is not the main thread, as the flow does; what it raised."""
    raised: list[Exception] = []

    def target() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is told
            raised.append(error)

    thread = Thread(target=target, name="perpetual session")
    thread.start()
    thread.join()
    return raised[0] if raised else None


def _run(subject: Subject, place: Place, ledger: SqlLedger, clock: ManualClock, stop: StopRequest, say: Say) -> None:
    agent = subject.make(place.files)
    limited = {limit.resource for limit in subject.budget}
    say({"agent": type(agent).__name__, "can_be_cut_off": bool(agent.cut_off_in() & limited)})
    runs, documents = LocalRuns(place.runs), LocalDocuments(place.documents)
    units = LocalUnits(agent, documents, clock)
    world = World(
        ledger=ledger,
        documents=documents,
        runner=units,
        saved_work=NoSavedWork(),
        clock=clock,
        meters=local_meters(agent),
        runs=runs,
        price=price,
    )
    with suppress(Exception):  # as the supervisor does, which may come by at any time
        create_follow_ons(ledger, runs)
        move_follow_ons(ledger, runs, clock)
    request = _request(agent, subject, ledger, runs)
    session = Session(agent, request, subject.budget, world, task=agent.task(), follow_on=_follow_on, stop=stop)
    with closing(units), suppress(Superseded, Fenced):
        session.run()


def _request(agent: PerpetualAgent, subject: Subject, ledger: SqlLedger, runs: LocalRuns) -> SessionRequest:
    """A request of the follow-on, where one was created, and else of a run that somebody started."""
    due = None
    with suppress(UnknownChain):
        due = ledger.follow_on(CHAIN, ledger.chain(CHAIN).ordinal + 1)
    invited = next((run for run in runs.created() if due and run.idempotency_key == due[0].idempotency_key), None)
    request = local_request(agent, subject.budget, CHAIN, invited.flow_run_id if invited else None)
    return replace(
        request,
        deployment_id=TEMPLATE.deployment_id,
        invitation=invited.idempotency_key if invited else None,
        attended=invited is None,
        template=TEMPLATE.to_json(),
    )


def _follow_on(uid: str, fence: Fence, not_before: float | None) -> FollowOn:
    return TEMPLATE.follow_on(fence.chain, uid, fence.ordinal + 1, not_before)


# What it comes to -----------------------------------------------------------------------------------------------------


def _standing(ledger: SqlLedger, place: Place) -> dict[str, Any]:
    """How the chain stands, and what it came to if it is over."""
    try:
        sessions = ledger.sessions(CHAIN)
        items = ledger.items(CHAIN, limit=MOST_ITEMS)
    except UnknownChain:
        return {"over": False}  # it did not even come to its first session
    over = bool(sessions) and _is_over(ledger)
    return {
        "over": over,
        "sessions": [f"{one.ordinal} {one.state} ({one.stop_message or 'at work'})" for one in sessions],
        "errors": [f"{item.id}: {item.error}" for item in items if item.error],
        "problem": _follow_ons_amiss(ledger, LocalRuns(place.runs), sessions) if over else None,
        "final": _final(ledger, place) if over else {},
    }


def _follow_ons_amiss(ledger: SqlLedger, runs: LocalRuns, sessions: list[SessionRecord]) -> str | None:
    """A session that goes on has exactly one follow-on, unless a rival went on in its place; none has two."""
    created = Counter(run.ordinal - 1 for run in runs.created())
    rivals = {session.ordinal for session in sessions if session.flow_run_id == RIVAL}
    for session in sessions:
        needs_none = {session.ordinal, session.ordinal + 1} & rivals
        least = int(session.state is SessionState.WRAPPED and not needs_none)
        if not least <= created[session.ordinal] <= 1:
            found = created[session.ordinal]
            return f"session {session.ordinal} ended as {session.state} and has {found} follow-ons; expected {least}"
    if pending := ledger.pending_follow_ons(CHAIN):
        return f"the follow-on of session {pending[0].ordinal - 1} was recorded, and not ticked off when it was created"
    return None


def _final(ledger: SqlLedger, place: Place) -> dict[str, Any]:
    chain, documents = ledger.chain(CHAIN), LocalDocuments(place.documents)
    items = sorted(ledger.items(CHAIN, limit=MOST_ITEMS), key=lambda item: item.id)
    final = {
        "chain": chain.status,
        "items": {
            item.id: {
                "status": item.status,
                "units": item.units,
                "cursor": item.cursor,
                "progress": item.progress,
                "next action": item.next_action,
                "kind": item.kind,
                "payload": item.payload,
            }
            for item in items
        },
        "results": {item.id: kept_outcome(documents, item.result_key).result for item in items if item.result_key},
        "context": chain.context,
        "usage": _usage(place.ledger, "failure = 0"),
        UNFINISHED: _usage(place.ledger, "failure > 0"),
        "units of the sessions": sum(session.units for session in ledger.sessions(CHAIN)),
    }
    return place.portable(final)  # type: ignore[no-any-return]


def _usage(ledger: Path, attempts: str) -> dict[str, dict[str, float]]:
    """What each item has used in these attempts, by resource, without the measured seconds."""
    wanted = f"chain = ? AND resource != 'seconds' AND {attempts}"
    rows = f"SELECT item, resource, SUM(amount) FROM usage WHERE {wanted} GROUP BY 1, 2 ORDER BY 1, 2"
    found: dict[str, dict[str, float]] = {}
    with closing(sqlite3.connect(ledger)) as connection:
        for item, resource, amount in connection.execute(rows, (CHAIN,)):
            found.setdefault(item, {})[resource] = round(amount, 9)
    return found
