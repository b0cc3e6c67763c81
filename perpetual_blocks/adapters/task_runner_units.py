"""Units on a flow's task runner, as Dask's or Ray's: each is a Prefect task that one of its workers runs.

A worker imports the agent anew and is handed its fields, the item, the context and the room. What it makes of the unit
comes back to the session, which persists and commits it: a worker needs neither the ledger nor the results storage.
"""

import traceback
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import Pause

from perpetual_blocks.adapters.masking import redactor_for
from perpetual_blocks.adapters.remote_unit import RemoteUnit
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.errors import text_of
from perpetual_blocks.service_errors import is_of_service, stand_in
from perpetual_blocks.session.ports import RunPaused
from perpetual_blocks.usage import add
from perpetual_blocks.work import CutOff, Unit


class RaisedByWorker(Exception):
    """What a unit raised on a worker, under the original's name; a note holds the traceback."""


class UnitEnded(Exception):
    """A unit that came to no outcome, as it travels: with all that it says in its arguments, so that it can be pickled.

    Where it raised, a note holds the traceback.

    Args:
        name: What it raised.
        text: What that said.
        usage: What it had spent.
        resource: What had no room, where it was cut off.
        needed: How much of it the unit needs, where it said so.
        away: Whether not the unit is to blame, but a service that is away.
    """

    def __init__(
        self,
        name: str,
        text: str,
        usage: dict[str, float],
        resource: str | None = None,
        needed: float | None = None,
        away: bool = False,
    ) -> None:
        super().__init__(name, text, usage, resource, needed, away)
        self.name, self.text, self.usage, self.resource = name, text, usage, resource
        self.needed, self.away = needed, away

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def run_by_task_runner(agent: PerpetualAgent, unit: Unit) -> dict[str, Any]:
    """Has a unit run by a worker of the flow's task runner, and waits for it; the document of its outcome.

    Raises:
        CutOff: it says itself that it has no room.
        RaisedByWorker: it raised.
        RunPaused: no task may begin any more, as the flow run was suspended.
        InvalidInput: a worker cannot import the agent, or be handed its fields.
        Exception: whatever became of its worker.
    """
    remote = RemoteUnit(agent, unit, f"{type(agent).__name__} on a task runner")
    try:
        label = f"{unit.id} · {unit.number}"
        future = work_unit.submit(label=label, remote=remote, return_state=False)
        returned = future.result(raise_on_failure=False)
    except Pause as pause:
        raise RunPaused from pause
    if isinstance(returned, UnitEnded):
        unit.spend(returned.usage)
        if returned.resource is not None:
            raise CutOff(returned.text, returned.resource, returned.needed)
        error = stand_in(RaisedByWorker, returned.name, returned.text, away=returned.away)
        for note in returned.__notes__:
            error.add_note(note)
        raise error
    if isinstance(returned, BaseException):
        raise returned
    return dict(returned)


@task(name="work unit", task_run_name="{label}", persist_result=False, cache_policy=NO_CACHE, retries=0)
def work_unit(label: str, remote: RemoteUnit) -> dict[str, Any]:
    """What a worker does."""
    spent: dict[str, float] = {}
    masked = redactor_for()

    def told(amounts: dict[str, float]) -> None:
        nonlocal spent
        spent = add(spent, amounts)

    try:
        agent = remote.agent()
        masked = redactor_for(agent)
        # Nobody tells a worker that the session is to stop: what it does is waited for.
        return remote.work(agent, lambda: False, told)
    except CutOff as error:
        raise UnitEnded(type(error).__name__, str(error), spent, error.resource, error.needed) from None
    except BaseException as error:  # noqa: BLE001 - a unit that calls sys.exit() ends itself, and not the worker
        ended = UnitEnded(type(error).__name__, masked(text_of(error)), spent, away=is_of_service(error))
        ended.add_note(masked(traceback.format_exc()))
        raise ended from None
