"""Units as Prefect tasks, whose outcomes Prefect persists as JSON under our keys."""

import inspect
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
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import DamagedDocument, StorageError, text_of
from perpetual_blocks.faults import reached
from perpetual_blocks.session.ports import RunPaused, UnitRaised
from perpetual_blocks.work import Outcome, Unit


class UnitLeft(Exception):
    """What a unit raised to end more than itself, such as `SystemExit`, under the original's name."""


class PrefectUnits:
    """Runs units as Prefect tasks whose outcomes Prefect persists as JSON under our keys."""

    def __init__(self, agent: PerpetualAgent, storage: WritableFileSystem, slug: str | None) -> None:
        self._agent = agent
        self._store = ResultStore(result_storage=storage, serializer=JSONSerializer())
        self._coroutines = Coroutines()
        self._interrupt = Event()
        self._unit: Unit | None = None
        self._raised: Exception | None = None
        self._task = task(
            name="work unit",
            task_run_name="{label}",
            persist_result=True,
            result_storage=slug,
            result_serializer="json",
            cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: str(parameters["key"])),
            retries=0,
        )(self._work)

    def run(self, key: str, unit: Unit) -> Outcome:
        """See `UnitRunner.run`."""
        document = self._run_task(self._task, key, unit)
        try:
            return Outcome.from_document(document)
        except DamagedDocument:
            # What lies there is no outcome that this version knows: the unit runs again, and replaces it.
            return Outcome.from_document(self._run_task(self._task.with_options(refresh_cache=True), key, unit))

    def interrupt(self) -> bool:
        """See `UnitRunner.interrupt`."""
        if self._agent.isolated:
            self._interrupt.set()
            return True
        return self._coroutines.interrupt()

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        self._coroutines.close()

    def _run_task(self, unit_task: Any, key: str, unit: Unit) -> Any:
        self._unit, self._raised = unit, None
        try:
            document = unit_task(key=key, label=f"{unit.id} · {unit.number}")
        except Pause as pause:  # Prefect lets no task begin in a run that was suspended
            raise RunPaused from pause
        except Exception as error:
            # Prefect may have stumbled over what the unit raised: over an error without a text, say.
            if self._raised is not None:
                raise UnitRaised from self._raised
            raise StorageError(
                f"unit {unit.id}: Prefect could not run its task: {type(error).__name__}: {error}"
            ) from error
        # Prefect logs a result that it could not write, and goes on; a row must not point at what is not there.
        if not self._store.exists(key):
            raise StorageError(f"results storage: the outcome of {unit.id} was not written under {key}")
        reached("unit.persisted")
        return document

    def _work(self, key: str, label: str) -> dict[str, Any]:
        unit = self._unit
        assert unit is not None
        clock = SystemClock()
        started = clock.monotonic()
        try:
            if self._agent.isolated:
                document = run_in_child(self._agent, unit, self._interrupt)
                document["usage"]["seconds"] = clock.monotonic() - started  # the process's start and end included
                return document
            returned = self._agent.work_unit(unit)
            if inspect.iscoroutine(returned):
                returned = self._coroutines.run(returned, unit)
            return unit.outcome(returned, clock.monotonic() - started).to_document()
        except Exception as error:
            self._raised = error
            raise
        except BaseException as error:
            # Signals arrive in the main thread, and units run in another one: this is the unit's own doing, as of a
            # library that calls sys.exit(). It ends the unit, and neither the session nor the process.
            self._raised = type(type(error).__name__, (UnitLeft,), {})(text_of(error))
            raise self._raised from error
