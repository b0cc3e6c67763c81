"""Units as Prefect tasks, whose outcomes Prefect persists as JSON under our keys."""

import asyncio
import inspect
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.filesystems import WritableFileSystem

from perpetual_blocks.adapters.child import run_in_child
from perpetual_blocks.adapters.outcome_records import read_outcome
from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import StorageError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.ports import UnitRaised
from perpetual_blocks.work import Outcome, Unit

T = TypeVar("T")


class PrefectUnits:
    """Runs units as Prefect tasks whose outcomes Prefect persists as JSON under our keys.

    Async agents have one event loop for the whole session, so that what they open (an HTTP client) lives on from unit
    to unit.
    """

    def __init__(self, agent: PerpetualAgent, storage: WritableFileSystem, slug: str | None) -> None:
        self._agent = agent
        self._records = StoredDocuments(storage)
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
            # Prefect writes records and does not read them: see `outcome_records`.
            refresh_cache=True,
            retries=0,
        )(self._work)

    def run(self, key: str, unit: Unit) -> Outcome:
        """See `UnitRunner.run`."""
        outcome = self._kept(key)
        if outcome is None:
            self._run_task(key, unit)
            # Prefect logs a result that it could not write, and goes on; a row must not point at what is not there.
            outcome = self._kept(key)
        if outcome is None:
            raise StorageError(f"results storage: the outcome of {unit.id} was not written under {key}")
        reached("unit.persisted")
        return outcome

    def _kept(self, key: str) -> Outcome | None:
        """What is persisted under the key. What is damaged is as good as nothing: the unit runs, and replaces it."""
        try:
            return read_outcome(self._records.read(key))
        except StorageError:
            return None

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        if self._loop is not None:
            self._loop.close()

    def _run_task(self, key: str, unit: Unit) -> None:
        self._unit, self._raised = unit, None
        try:
            self._task(key=key, label=f"{unit.id} · {unit.number}")
        except Exception as error:
            if error is self._raised:
                raise UnitRaised from error
            raise StorageError(
                f"unit {unit.id}: Prefect could not run its task: {type(error).__name__}: {error}"
            ) from error

    def _work(self, key: str, label: str) -> dict[str, Any]:
        unit = self._unit
        assert unit is not None
        clock = SystemClock()
        started = clock.monotonic()
        try:
            if self._agent.isolated:
                outcome = Outcome.from_document(run_in_child(self._agent, unit))
                seconds = clock.monotonic() - started  # the process's start and end included
                return replace(outcome, usage={**outcome.usage, "seconds": seconds}).to_document()
            returned = self._agent.work_unit(unit)
            if inspect.iscoroutine(returned):
                self._loop = self._loop or asyncio.Runner()
                returned = self._loop.run(_in_time(returned, unit))
            return unit.outcome(returned, clock.monotonic() - started).to_document()
        except Exception as error:
            self._raised = error
            raise


async def _in_time(work: Coroutine[Any, Any, T], unit: Unit) -> T:
    """Awaits the work of a unit, and cancels it when only what is kept for the shutdown is left of the time."""
    try:
        async with asyncio.timeout(unit.remaining.get("seconds")) as deadline:
            return await work
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the agent's own
        raise unit.time_is_up() from error
