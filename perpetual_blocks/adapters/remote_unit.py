"""A unit handed over to another process: where its agent's class is found, its fields, and what the unit is made of."""

import inspect
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import Secret, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError, to_jsonable_python

from perpetual_blocks.adapters.coroutines import Coroutines
from perpetual_blocks.adapters.masking import masked_logs, redactor_for
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget.room import Room
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.work import Unit

SCRIPTS = ("__main__", "__mp_main__")
SCRIPT = "__perpetual_script__"
"""The name of the session's script where another one runs."""


class Home(NamedTuple):
    """Where a new process finds an agent's class."""

    module: str
    file: str | None
    name: str

    @classmethod
    def of(cls, agent: type[PerpetualAgent], why: str) -> "Home":
        """The agent's.

        Args:
            why: What needs another process, for the error.

        Raises:
            InvalidInput: another process could not import it.
        """
        module = sys.modules.get(agent.__module__)
        file = getattr(module, "__file__", None)
        found: object = None
        with suppress(AttributeError):
            found = attrgetter(agent.__qualname__)(module)
        if agent.__module__ in SCRIPTS:
            # Prefect hands what a script serves to a process that has imported the script once more.
            there = found is not None and file is not None and Path(file).is_file()
        else:
            there = found is agent
        if not there:
            raise InvalidInput.of(
                why, f"{agent.__module__}.{agent.__qualname__}", "an agent at the top of a file, to be imported anew"
            )
        return cls(agent.__module__, file, agent.__qualname__)

    def load(self) -> type[PerpetualAgent]:
        """The class."""
        find = attrgetter(self.name)
        try:
            agent: type[PerpetualAgent] = find(import_module(self.module))
        except ModuleNotFoundError as error:
            # Prefect gives the module of a flow file a name under which it cannot be imported.
            if error.name != self.module or self.file is None:
                raise
            agent = find(_load_file(self.module, self.file))
        except AttributeError:
            # A script is what multiprocessing has imported already; a worker of Ray's is a script itself.
            if self.module not in SCRIPTS or self.file is None:
                raise
            agent = find(sys.modules.get(SCRIPT) or _load_file(SCRIPT, self.file))
        return agent


def _load_file(name: str, file: str) -> ModuleType:
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RemoteUnit:
    """What another process makes a unit of, before it has spent anything.

    No dataclass: task runners look for the results of other tasks in those, and change them thereby.

    Args:
        why: What needs another process, for the error.

    Raises:
        InvalidInput: a new process cannot import the agent, or be handed its fields.
    """

    def __init__(self, agent: PerpetualAgent, unit: Unit, why: str) -> None:
        self._home = Home.of(type(agent), why)
        self._fields = _fields(agent, why)
        self._item, self._context, self._room = unit.hand_over()

    def agent(self) -> PerpetualAgent:
        """The agent, imported anew."""
        return self._home.load().model_validate(self._fields)

    def work(
        self,
        agent: PerpetualAgent,
        stopping: Callable[[], bool],
        told: Callable[[dict[str, float]], None],
        late: float = 0.0,
    ) -> dict[str, Any]:
        """Does the unit in this process; the document of its outcome.

        Args:
            agent: As `agent()` says.
            stopping: Whether the session was asked to stop.
            told: Told of each spend as it is recorded.
            late: How many seconds of its time are over already.

        Raises:
            CutOff: it says itself that it has no room, or its time is up, if it is async.
            Exception: whatever the agent raises.
        """
        amounts = dict(self._room["amounts"])
        if "seconds" in amounts:
            amounts["seconds"] -= late
        room = Room(amounts, stopping=stopping, rung=self._room["rung"], quotas=self._room["quotas"])
        unit = Unit(self._item, self._context, room, price=price, told=told)
        began = time.monotonic()
        with masked_logs(redactor_for(agent)):
            returned = agent.work_unit(unit)
            if inspect.iscoroutine(returned):
                with closing(Coroutines()) as coroutines:
                    returned = coroutines.run(returned, unit)
        return unit.outcome(returned, time.monotonic() - began).to_document()


def _fields(agent: PerpetualAgent, why: str) -> Any:
    """As JSON; secrets are not hidden, as they go from process to process only."""

    def revealed(value: Any) -> Any:
        if isinstance(value, Secret | SecretStr | SecretBytes):
            return value.get_secret_value()
        if isinstance(value, dict):
            return {name: revealed(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [revealed(inner) for inner in value]
        return value

    try:
        return to_jsonable_python(revealed(agent.model_dump(round_trip=True)))
    except PydanticSerializationError as error:
        raise InvalidInput(f"{why}: got {error}; expected fields that are JSON") from error
