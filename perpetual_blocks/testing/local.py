"""A session's world in a folder or in memory, and in this process: no Prefect, no server, no network, and no time that
passes."""

import inspect
import json
import logging
import os
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.coroutines import Coroutines
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget, Meter
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.errors import StorageError
from perpetual_blocks.faults import reached
from perpetual_blocks.files import write_whole
from perpetual_blocks.session.chain import SessionRequest
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.session.ports import RunFacts, RunState, Units
from perpetual_blocks.work import Outcome, Unit
from perpetual_blocks.work.outcome import BatchedOutcome, batch_from_document, batch_to_document

_log = logging.getLogger(__name__)

UNIT_SECONDS = 1.0
"""What a unit takes of a `ManualClock`."""


class ManualClock:
    """A clock that moves only when it is told to. Nobody waits for it: the time passes at once."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, event: Event, seconds: float) -> bool:
        if not event.is_set():
            self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Lets so much time pass."""
        self._now += seconds
        self._monotonic += seconds


class LocalDocuments:
    """Documents as files of a folder: each is there whole, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, key: str, text: str) -> None:
        path = self._folder / key
        try:
            write_whole(path, text)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot write {key}: {error}") from error

    def read(self, key: str) -> str:
        try:
            return (self._folder / key).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{self._folder}: cannot read {key}: {error}") from error

    def delete(self, key: str) -> None:
        try:
            (self._folder / key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot delete {key}: {error}") from error

    def exists(self, key: str) -> bool:
        """Whether there is a document under this key."""
        return (self._folder / key).is_file()

    def listing(self) -> list[str]:
        """All keys, in order."""
        files = (path for path in self._folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(path.relative_to(self._folder).as_posix() for path in files)


class MemoryDocuments:
    """Documents in a dictionary, as bytes, as a storage keeps them."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def write(self, key: str, text: str) -> None:
        self.content[key] = text.encode()

    def read(self, key: str) -> str:
        try:
            return self.content[key].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise StorageError(f"results storage: cannot read {key}: {type(error).__name__}: {error}") from error

    def delete(self, key: str) -> None:
        self.content.pop(key, None)

    def exists(self, key: str) -> bool:
        """Whether there is a document under this key."""
        return key in self.content


class ScriptedMeter:
    """A meter of a gauge that reads what the test says.

    Args:
        levels: The level at first, and after each finished unit of `run_session`; the last one stays.
        capacity: The most that the machine allows.

    Attributes:
        now: The level that is read.
    """

    def __init__(self, *levels: float, capacity: float | None = None) -> None:
        self.now, *self._next = levels
        self._capacity = capacity

    def level(self) -> float:
        return self.now

    def capacity(self) -> float | None:
        return self._capacity

    def move_on(self) -> None:
        """Goes to the next level, where there is one."""
        if self._next:
            self.now = self._next.pop(0)


class LocalUnits:
    """Runs units in this process; keeps their outcomes as JSON, and gives a kept one back instead of running again.

    Units of an isolated agent run in this process too, each with a copy of the agent as it was made.

    Args:
        documents: Where the outcomes are kept.
        seconds: What each unit takes of the clock.

    Attributes:
        ran: The keys of the units that the agent was asked for, in order; units that raised included.
    """

    def __init__(
        self,
        agent: PerpetualAgent,
        documents: LocalDocuments | MemoryDocuments,
        clock: ManualClock,
        seconds: float = UNIT_SECONDS,
    ) -> None:
        self.documents = documents
        self.ran: list[str] = []
        self._agent = agent
        self._clock = clock
        self._seconds = seconds
        self._coroutines = Coroutines()

    def run(self, units: Units) -> None:
        """See `UnitRunner.run`."""
        for unit in units.units():
            if (kept := self._kept(units)) is not None:
                units.finish(*kept)
                continue
            self.ran.append(units.key if units.single else f"{units.key}: {unit.id}")
            try:
                outcome = self._work(unit)
            except Exception as error:  # noqa: BLE001 - the agent's code may raise anything
                _log.warning("%s raised: %s", unit.id, _told(error))  # pytest shows it with a test that fails
                units.fail(error)
            else:
                reached("unit.returned")
                units.finish(outcome)
        if made := units.made:
            whole = [BatchedOutcome(one.item.id, one.item.units + 1, one.item.failures, one.outcome) for one in made]
            document = made[0].outcome.to_document() if units.single else batch_to_document(whole)
            self.documents.write(units.key, json.dumps(document))
        if units.finished:
            reached("unit.persisted")

    def find(self, units: Units) -> None:
        """See `UnitRunner.find`."""
        for _unit in units.units():
            if (kept := self._kept(units)) is not None:
                units.finish(*kept)

    def interrupt(self) -> bool:
        """See `UnitRunner.interrupt`."""
        return self._coroutines.interrupt()

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        self._coroutines.close()

    def _work(self, unit: Unit) -> Outcome:
        agent = self._agent.model_copy(deep=True) if self._agent.isolated else self._agent
        self._clock.advance(self._seconds)
        returned: Any = agent.work_unit(unit)
        if inspect.iscoroutine(returned):
            returned = self._coroutines.run(returned, unit)
        return unit.outcome(returned, self._seconds)

    def _kept(self, units: Units) -> tuple[Outcome, str] | None:
        item = units.item
        for key in units.earlier():
            if not self.documents.exists(key):
                continue
            document = json.loads(self.documents.read(key))
            if "batch" not in document:
                return Outcome.from_document(document), key
            for place, one in enumerate(batch_from_document(document)):
                if (one.item, one.unit, one.failures) == (item.id, item.units + 1, item.failures):
                    return one.outcome, f"{key}#{place}"
        return None


class LocalRuns:
    """Follow-on runs as files of a folder: one idempotency key finds one run, as with Prefect's API."""

    def __init__(self, folder: Path) -> None:
        self._documents = LocalDocuments(folder)

    def create(self, follow_on: FollowOn) -> str:
        """See `Runs.create`."""
        run = replace(follow_on, flow_run_id=f"run-of-{follow_on.idempotency_key}")
        if not self._documents.exists(follow_on.idempotency_key):
            self._documents.write(follow_on.idempotency_key, json.dumps(asdict(run)))
        return str(run.flow_run_id)

    def leaves_room(self, deployment_id: str) -> bool:
        """See `Runs.leaves_room`."""
        return True

    def move(self, flow_run_id: str, at: float) -> None:
        """See `Runs.move`."""
        for run in self.created():
            if run.flow_run_id == flow_run_id:
                self._documents.write(run.idempotency_key, json.dumps(asdict(replace(run, not_before=at))))

    def facts(self, flow_run_id: str) -> RunFacts:
        """See `Runs.facts`: nobody takes a run up but the next session."""
        return RunFacts(RunState.SCHEDULED, 0.0)

    def cancel(self, flow_run_id: str, why: str) -> None:
        """See `Runs.cancel`: as if it had never been created."""
        for run in self.created():
            if run.flow_run_id == flow_run_id:
                self._documents.delete(run.idempotency_key)

    def end_suspended(self, flow_run_id: str, name: str, why: str) -> None:
        """See `Runs.end_suspended`."""

    def crashed(self, flow_run_id: str, why: str) -> None:
        """See `Runs.crashed`."""

    def created(self) -> list[FollowOn]:
        """All runs, by their sessions' ordinals."""
        rows = (json.loads(self._documents.read(key)) for key in self._documents.listing())
        runs = [FollowOn(**{**row, "tags": tuple(row["tags"])}) for row in rows]
        return sorted(runs, key=lambda run: run.ordinal)


class NoSavedWork:
    """Nothing is backed up, committed or published; the agent's own hooks are called all the same."""

    def backup(self, key: str, text: str) -> None: ...

    def commit(self, paths: Sequence[Any], message: str, refuse: object) -> str | None:
        return None

    def set_aside(self, paths: Sequence[Any], branch: str, message: str, refuse: object) -> str | None:
        return None

    def push(self, paths: Sequence[Any]) -> None: ...

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None: ...


def local_meters(agent: PerpetualAgent) -> dict[str, Meter]:
    """What reads the gauges of an agent's session."""
    return {"memory": process.MemoryMeter(), "cpu_seconds": process.CpuMeter(), **agent.meters}


def local_request(agent: PerpetualAgent, budget: Budget, chain: str, flow_run_id: str | None = None) -> SessionRequest:
    """A request of this process to start the chain's next session."""
    holder = process.holder_id()
    return SessionRequest(
        chain=chain,
        agent=type(agent).__name__,
        holder=holder,
        host=process.host_name(),
        pid=os.getpid(),
        process_started=process.process_started(),
        flow_run_id=flow_run_id or f"run-of-{holder}",
        settings={"kinds": list(agent.kinds), "budget": budget.to_json(), "task": agent.task()},
        machine=process.machine(),
    )


def kept_outcome(documents: LocalDocuments | MemoryDocuments, key: str) -> Outcome:
    """The outcome under a result's key: a document's, with `#` and a place where it is one of a batch."""
    name, _, place = key.partition("#")
    document = json.loads(documents.read(name))
    return batch_from_document(document)[int(place)].outcome if place else Outcome.from_document(document)


def file_contents(folder: Path) -> dict[str, Any]:
    """The files of a folder, by their paths within it: the lines of text, the size and digest of others.

    What lies in `.git` is left out: a commit holds its time.
    """
    found: dict[str, Any] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {".git"})
        for name in sorted(names):
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = _content(path)
    return found


def _content(path: Path) -> Any:
    content = path.read_bytes()
    try:
        return content.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return f"{len(content):,} bytes, SHA-256 {digest(content)}"


def _told(error: BaseException) -> str:
    """An error with its traceback, as any terminal can show it."""
    return "".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode()
