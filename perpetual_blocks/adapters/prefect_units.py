"""Units as Prefect tasks, whose outcomes Prefect persists as JSON under our keys."""

import inspect
from contextlib import suppress
from dataclasses import replace
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
from perpetual_blocks.adapters.outcome_records import read_outcome
from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import StorageError, text_of
from perpetual_blocks.faults import reached
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.ports import RunPaused, UnitRaised
from perpetual_blocks.work import Outcome, Unit


class UnitLeft(Exception):
    """What a unit raised to end more than itself, such as `SystemExit`, under the original's name."""


_REFUSED_IN = {"result": "work_unit's result", "context": "unit.context", "added": "unit.add"}


class PrefectUnits:
    """Runs units as Prefect tasks whose outcomes Prefect persists as JSON under our keys.

    Args:
        patience: For how long an outcome is kept in memory, and written again, while the storage is away.
    """

    def __init__(
        self,
        agent: PerpetualAgent,
        storage: WritableFileSystem,
        slug: str | None,
        redactor: Redactor | None = None,
        patience: Patience = IMPATIENT,
    ) -> None:
        self._agent = agent
        self._patience = patience
        self._records = StoredDocuments(storage)
        self._store = ResultStore(result_storage=storage, serializer=JSONSerializer())
        self._redactor = redactor or Redactor()
        self._coroutines = Coroutines()
        self._interrupt = Event()
        self._unit: Unit | None = None
        self._raised: BaseException | None = None
        self._done: dict[str, Any] | None = None
        self._task = task(
            name="work unit",
            task_run_name="{label}",
            persist_result=True,
            result_storage=slug,
            result_serializer="json",
            cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: str(parameters["key"])),
            # Prefect writes records and does not read them: see `outcome_records`.
            refresh_cache=True,
            retries=0,
        )(self._work)

    def run(self, key: str, unit: Unit) -> Outcome:
        """See `UnitRunner.run`."""
        if unit.begun_before:
            # What cannot be read now is not taken for missing: the unit would run a second time.
            self._patience(lambda: self._records.has(key), _is_away)
        outcome = self._kept(key)
        if outcome is None:
            self._run_task(key, unit)
            outcome = self._patience(lambda: self._persisted(key, unit), _is_away)
        reached("unit.persisted")
        return outcome

    def _persisted(self, key: str, unit: Unit) -> Outcome:
        """The outcome that the unit came to, once it is there; one that Prefect could not write is written again."""
        outcome = self._kept(key)
        if outcome is None and self._done is not None:
            with suppress(Exception):  # whether it is there is asked below
                self._store.write(self._done, key)
            outcome = self._kept(key)
        if outcome is None:
            # Prefect logs a result that it could not write, and goes on; a row must not point at what is not there.
            raise StorageError(f"results storage: the outcome of {unit.id} was not written under {key}")
        return outcome

    def interrupt(self) -> bool:
        """See `UnitRunner.interrupt`."""
        if self._agent.isolated:
            self._interrupt.set()
            return True
        return self._coroutines.interrupt()

    def _kept(self, key: str) -> Outcome | None:
        """What is persisted under the key. What is damaged is as good as nothing: the unit runs, and replaces it."""
        try:
            return read_outcome(self._records.read(key))
        except StorageError:
            return None

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        self._coroutines.close()

    def _run_task(self, key: str, unit: Unit) -> None:
        self._unit, self._raised, self._done = unit, None, None
        try:
            self._task(key=key, label=f"{unit.id} · {unit.number}")
        except Pause as pause:  # Prefect lets no task begin in a run that was suspended
            raise RunPaused from pause
        except Exception as error:
            # Prefect may have stumbled over what the unit raised: over an error without a text, say.
            if self._raised is not None:
                raise UnitRaised from self._raised
            if self._done is not None:
                return  # the unit has run; Prefect stumbled over its outcome, which is written again
            raise StorageError(
                f"unit {unit.id}: Prefect could not run its task: {type(error).__name__}: {error}"
            ) from error

    def _work(self, key: str, label: str) -> dict[str, Any]:
        self._done = self._work_unit()
        reached("unit.returned")
        return self._done

    def _work_unit(self) -> dict[str, Any]:
        unit = self._unit
        assert unit is not None
        try:
            document = self._do(unit)
            for name in ("result", "cursor", "next_action", "context", "added"):
                self._redactor.refuse(document[name], _REFUSED_IN.get(name, name))
            return document
        except Exception as error:  # noqa: BLE001 - handed on, below
            self._raised = self._redactor.clean(error)
        except BaseException as error:  # noqa: BLE001 - handed on, below
            # Signals arrive in the main thread, and units run in another one: this is the unit's own doing, as of a
            # library that calls sys.exit(). It ends the unit, and neither the session nor the process.
            self._raised = self._redactor.clean(type(type(error).__name__, (UnitLeft,), {})(text_of(error)))
        # Prefect logs it, keeps its text and puts it into the state of the task run.
        raise self._raised

    def _do(self, unit: Unit) -> dict[str, Any]:
        """The document of the unit's outcome."""
        clock = SystemClock()
        started = clock.monotonic()
        if self._agent.isolated:
            outcome = Outcome.from_document(run_in_child(self._agent, unit, self._interrupt))
            seconds = clock.monotonic() - started  # the process's start and end included
            return replace(outcome, usage={**outcome.usage, "seconds": seconds}).to_document()
        returned = self._agent.work_unit(unit)
        if inspect.iscoroutine(returned):
            returned = self._coroutines.run(returned, unit)
        return unit.outcome(returned, clock.monotonic() - started).to_document()


def _is_away(error: Exception) -> bool:
    return isinstance(error, StorageError)
