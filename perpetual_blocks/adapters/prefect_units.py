"""Units as Prefect tasks, whose outcomes Prefect persists as JSON under our keys."""

import asyncio
import inspect
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

from perpetual_blocks.adapters.child import run_in_child
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.ports import UnitRaised
from perpetual_blocks.work import Outcome, Unit
from perpetual_blocks.work.in_time import in_time


class PrefectUnits:
    """Runs units as Prefect tasks whose outcomes Prefect persists as JSON under our keys.

    Async agents have one event loop for the whole session, so that what they open (an HTTP client) lives on from unit
    to unit.
    """

    def __init__(self, agent: PerpetualAgent, storage: WritableFileSystem, slug: str | None) -> None:
        self._agent = agent
        self._store = ResultStore(result_storage=storage, serializer=JSONSerializer())
        self._loop: asyncio.Runner | None = None
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

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        if self._loop is not None:
            self._loop.close()

    def _run_task(self, unit_task: Any, key: str, unit: Unit) -> Any:
        self._unit, self._raised = unit, None
        try:
            document = unit_task(key=key, label=f"{unit.id} · {unit.number}")
        except Exception as error:
            if error is self._raised:
                raise UnitRaised from error
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
                document = run_in_child(self._agent, unit)
                document["usage"]["seconds"] = clock.monotonic() - started  # the process's start and end included
            else:
                returned = self._agent.work_unit(unit)
                if inspect.iscoroutine(returned):
                    self._loop = self._loop or asyncio.Runner()
                    returned = self._loop.run(in_time(returned, unit))
                document = unit.outcome(returned, clock.monotonic() - started).to_document()
        except Exception as error:
            self._raised = error
            raise
        reached("unit.returned")
        return document
