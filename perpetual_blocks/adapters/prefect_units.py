"""Units as Prefect tasks, whose outcomes Prefect persists as JSON under our keys."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.exceptions import Pause
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

from perpetual_blocks.adapters.child import run_in_child
from perpetual_blocks.adapters.coroutines import Coroutines
from perpetual_blocks.adapters.open_telemetry import is_tracing, unit_span
from perpetual_blocks.adapters.outcome_records import StoredOutcomes
from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.adapters.task_runner_units import run_by_task_runner
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import DamagedDocument, StorageError, text_of
from perpetual_blocks.faults import reached
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.ports import RunPaused, Units
from perpetual_blocks.work import Outcome, Unit
from perpetual_blocks.work.outcome import BatchedOutcome, batch_to_document


class UnitLeft(Exception):
    """What a unit raised to end more than itself, such as `SystemExit`, under the original's name."""


_REFUSED_IN = {"result": "work_unit's result", "context": "unit.context", "added": "unit.add"}


@dataclass(slots=True)
class _Run:
    """Units as they run in a task.

    Attributes:
        unit: The unit, of a single one.
        outcome: What the single unit came to.
        raised: What the single unit raised.
        document: What is to be persisted.
    """

    units: Units
    kept: "_Kept"
    unit: Unit | None = None
    outcome: Outcome | None = None
    raised: BaseException | None = None
    document: dict[str, Any] | None = None


class PrefectUnits:
    """Runs units as Prefect tasks, a batch as one, whose outcomes Prefect persists as JSON under our keys.

    Args:
        patience: For how long an outcome is kept in memory, and written again, while the storage is away.
        on_task_runner: Whether each unit is a task that the flow's task runner runs, wherever that is; else one that
            runs in this process.
    """

    def __init__(
        self,
        agent: PerpetualAgent,
        storage: WritableFileSystem,
        slug: str | None,
        redactor: Redactor | None = None,
        patience: Patience = IMPATIENT,
        *,
        on_task_runner: bool = False,
    ) -> None:
        self._agent = agent
        self._on_task_runner = on_task_runner
        self._patience = patience
        self._records = StoredDocuments(storage)
        self._outcomes = StoredOutcomes(self._records)
        self._store = ResultStore(result_storage=storage, serializer=JSONSerializer(), cache_result_in_memory=False)
        self._redactor = redactor or Redactor()
        self._coroutines = Coroutines()
        self._interrupt = Event()
        self._span: Callable[[Unit], AbstractContextManager[Any]] = unit_span if is_tracing() else nullcontext
        self._running: dict[str, _Run] = {}
        self._task = task(
            name="work unit",
            task_run_name="{label}",
            persist_result=True,
            # Prefect would keep the last thousand: a thousand batches are a gigabyte.
            cache_result_in_memory=False,
            result_storage=slug,
            result_serializer="json",
            cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: str(parameters["key"])),
            # Prefect writes records and does not read them: see `outcome_records`.
            refresh_cache=True,
            retries=0,
        )(self._work)

    def run(self, units: Units) -> None:
        """See `UnitRunner.run`."""
        run = _Run(units, _Kept(self._outcomes, self._records, self._patience))
        if not units.single:
            self._run_task(run)
        else:
            run.unit = next(iter(units.units()))
            if (kept := run.kept.find(units)) is not None:
                units.finish(*kept)
            else:
                self._run_task(run)
        if units.finished:
            reached("unit.persisted")

    def find(self, units: Units) -> None:
        """See `UnitRunner.find`."""
        kept = _Kept(self._outcomes, self._records, self._patience)
        for _unit in units.units():
            if (found := kept.find(units)) is not None:
                units.finish(*found)

    def interrupt(self) -> bool:
        """See `UnitRunner.interrupt`."""
        if self._agent.isolated:
            self._interrupt.set()
            return True
        if self._on_task_runner:
            return False
        return self._coroutines.interrupt()

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        self._coroutines.close()

    def _run_task(self, run: _Run) -> None:
        """Runs what may run as a task, and sees to it that its outcomes are persisted."""
        key = run.units.key
        self._running[key] = run
        try:
            if self._on_task_runner:
                self._work(key, run.units.label)
            else:
                self._task(key=key, label=run.units.label)
        except Pause as pause:  # Prefect lets no task begin in a run that was suspended
            raise RunPaused from pause
        except Exception as error:
            # Prefect may have stumbled over what the unit raised, over an error without a text, say; or over the
            # outcome, which is then written again.
            if run.raised is None and run.document is None:
                raise StorageError(
                    f"{run.units.label}: Prefect could not run its task: {type(error).__name__}: {error}"
                ) from error
        finally:
            del self._running[key]
        if run.raised is not None:
            run.units.fail(run.raised)
            return
        if run.document is not None and (run.outcome is not None or run.units.made):
            document = run.document
            self._patience(lambda: self._check_persisted(key, document), _is_away)
        if run.outcome is not None:
            run.units.finish(run.outcome)

    def _check_persisted(self, key: str, document: dict[str, Any]) -> None:
        """Prefect logs a result that it could not write, and goes on; a row must not point at what is not there."""
        if self._holds(key, document):
            return
        with suppress(Exception):  # whether it is there is asked below
            self._store.write(document, key)
        if not self._holds(key, document):
            raise StorageError(f"results storage: what was written under {key} is not there")

    def _holds(self, key: str, document: dict[str, Any]) -> bool:
        with suppress(StorageError):
            return bool(self._outcomes.read_document(key) == document)
        return False

    def _work(self, key: str, label: str) -> dict[str, Any]:
        """What is done in the task: its name and arguments are what people see of it."""
        run = self._running[key]
        if run.units.single:
            assert run.unit is not None
            try:
                run.outcome = self._work_unit(run.unit)
            except BaseException as error:
                run.raised = error
                raise  # Prefect logs it, keeps its text and puts it into the state of the task run
            run.document = run.outcome.to_document()
        else:
            for unit in run.units.units():
                self._work_in_batch(run, unit)
            made = run.units.made
            run.document = batch_to_document(
                [BatchedOutcome(one.item.id, one.item.units + 1, one.item.failures, one.outcome) for one in made]
            )
        reached("unit.returned")
        return run.document

    def _work_in_batch(self, run: _Run, unit: Unit) -> None:
        if (kept := run.kept.find(run.units)) is not None:
            run.units.finish(*kept)
            return
        try:
            outcome = self._work_unit(unit)
        except RunPaused:
            raise
        except Exception as error:  # noqa: BLE001 - the agent's code may raise anything
            run.units.fail(error)
        else:
            run.units.finish(outcome)

    def _work_unit(self, unit: Unit) -> Outcome:
        with self._span(unit):
            return self._try(unit)

    def _try(self, unit: Unit) -> Outcome:
        try:
            outcome = self._do(unit)
            for name, value in _saved_as_it_is(outcome):
                self._redactor.refuse(value, _REFUSED_IN.get(name, name))
            return outcome
        except RunPaused:
            raise
        except Exception as error:  # noqa: BLE001 - handed on
            raised = self._redactor.clean(error)
        except BaseException as error:  # noqa: BLE001 - handed on
            # Signals arrive in the main thread, and units run in another one: this is the unit's own doing, as of a
            # library that calls sys.exit(). It ends the unit, and neither the session nor the process.
            raised = self._redactor.clean(type(type(error).__name__, (UnitLeft,), {})(text_of(error)))
        raise raised

    def _do(self, unit: Unit) -> Outcome:
        clock = SystemClock()
        started = clock.monotonic()
        if (document := self._do_elsewhere(unit)) is not None:
            outcome = Outcome.from_document(document)
            seconds = clock.monotonic() - started  # the way there and back included
            return replace(outcome, usage={**outcome.usage, "seconds": seconds})
        returned = self._agent.work_unit(unit)
        if inspect.iscoroutine(returned):
            returned = self._coroutines.run(returned, unit)
        return unit.outcome(returned, clock.monotonic() - started)

    def _do_elsewhere(self, unit: Unit) -> dict[str, Any] | None:
        if self._agent.isolated:
            return run_in_child(self._agent, unit, self._interrupt)
        return run_by_task_runner(self._agent, unit) if self._on_task_runner else None


class _Kept:
    """Outcomes that are persisted already, of units that were begun before."""

    def __init__(self, outcomes: StoredOutcomes, records: StoredDocuments, patience: Patience) -> None:
        self._outcomes = outcomes
        self._records = records
        self._patience = patience
        self._there: dict[str, bool] = {}

    def find(self, units: Units) -> tuple[Outcome, str] | None:
        """What the current unit came to, and under which key that is kept; None where it has to run."""
        for key in units.earlier():
            # What is damaged is as good as nothing: the unit runs, and replaces it.
            with suppress(DamagedDocument):
                if self._is_there(key, units) and (found := self._outcomes.find(key, units.item)) is not None:
                    return found
        return None

    def _is_there(self, key: str, units: Units) -> bool:
        if key not in self._there:
            try:
                # What cannot be read now is not taken for missing: the unit would run a second time.
                patience = self._patience if units.item.earlier_claims else IMPATIENT
                self._there[key] = patience(lambda: self._records.has(key), _is_away)
            except StorageError:
                if units.item.earlier_claims:
                    raise
                return False
        return self._there[key]


def _saved_as_it_is(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    yield "result", outcome.result
    yield "cursor", outcome.cursor
    yield "next_action", outcome.next_action
    if outcome.context is not None:
        yield "context", dict(outcome.context.after)
    if outcome.added:
        yield "added", outcome.to_json()["added"]


def _is_away(error: Exception) -> bool:
    return isinstance(error, StorageError)
