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


@dataclass(slots=True)
class _Run:
    """Units as they run in a task.

    Attributes:
        document: What they came to, once they have.
        raised: What a single unit raised.
    """

    units: Units
    document: dict[str, Any] | None = None
    raised: BaseException | None = None


class PrefectUnits:
    """Runs units as Prefect tasks, a batch as one, whose outcomes Prefect persists as JSON under our keys.

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
        self._outcomes = StoredOutcomes(self._records)
        self._store = ResultStore(result_storage=storage, serializer=JSONSerializer())
        self._redactor = redactor or Redactor()
        self._coroutines = Coroutines()
        self._interrupt = Event()
        self._running: dict[str, _Run] = {}
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

    def run(self, units: Units) -> None:
        """See `UnitRunner.run`."""
        found = Found(self._outcomes, self._records, self._patience)
        if units.single:
            unit = next(iter(units.units()))
            if (kept := found.of(units, unit)) is not None:
                units.finish(kept[1], kept[0])
            else:
                self._run_one(units, unit)
        else:
            run = _Run(units)
            self._run_task(run, partial(self._work_batch, run, found))
            if run.units.made:
                self._check_persisted(run)
        reached("unit.persisted")

    def interrupt(self) -> bool:
        """See `UnitRunner.interrupt`."""
        if self._agent.isolated:
            self._interrupt.set()
            return True
        return self._coroutines.interrupt()

    def close(self) -> None:
        """Closes the event loop, if an async unit has opened one."""
        self._coroutines.close()

    def _run_one(self, units: Units, unit: Unit) -> None:
        run = _Run(units)
        ...
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
