"""Units as Prefect tasks: whatever a unit raises ends that unit and nothing else."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect_server import PrefectServer
from support import some_item

from perpetual_blocks import PerpetualAgent, Unit
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.result_storage import load_storage
from perpetual_blocks.errors import described
from perpetual_blocks.session.ports import UnitRaised


class Mute(Exception):
    """An error that cannot even be told."""

    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


class Ours(BaseException):
    """What no `except Exception` catches."""


def _recurse() -> Any:
    return _recurse()


def _raise(error: BaseException) -> Any:
    raise error


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # what the unit does, and what is said of it
    "exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "keyboard": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt: "),
    "generator": (lambda: _raise(GeneratorExit()), "GeneratorExit: "),
    "cancelled": (lambda: _raise(asyncio.CancelledError("by itself")), "CancelledError: by itself"),
    "ours": (lambda: _raise(Ours("mine")), "Ours: mine"),
    "memory": (lambda: _raise(MemoryError()), "MemoryError: "),
    "recursion": (_recurse, "RecursionError: maximum recursion depth exceeded"),
    "stop": (lambda: _raise(StopIteration(1)), "StopIteration: 1"),
    "timeout": (lambda: _raise(TimeoutError("its own")), "TimeoutError: its own"),
    "mute": (lambda: _raise(Mute()), "Mute: (its text cannot be had: RuntimeError)"),
    "no-json": (object, "InvalidInput: work_unit's result: got <object object"),
}


class Bad(PerpetualAgent):
    """Does what an item's id says, in a coroutine where it says so."""

    def plan(self) -> list[Any]:
        return []

    def work_unit(self, unit: Unit) -> Any:
        how, _, name = unit.id.partition(":")
        if name not in BAD:
            return "fine"
        return BAD[name][0]() if how == "sync" else self.later(name)

    async def later(self, name: str) -> Any:
        await asyncio.sleep(0)
        return BAD[name][0]()


@pytest.fixture(scope="module")
def units(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectUnits]:
    """The units of one session, on a storage of their own."""
    prefect_settings = {
        PREFECT_API_URL: prefect_server.api,
        PREFECT_LOCAL_STORAGE_PATH: str(tmp_path_factory.mktemp("results")),
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(prefect_settings):
        units = PrefectUnits(Bad(), load_storage(""), None)
        yield units
        units.close()


# A StopIteration cannot leave a coroutine.
@pytest.mark.parametrize(
    ("how", "name"), [("sync", name) for name in BAD] + [("async", name) for name in BAD if name != "stop"]
)
def test_a_unit_ends_nothing_but_itself(units: PrefectUnits, how: str, name: str) -> None:
    """Be it `sys.exit()`, an error without a text or a result that is not JSON: the unit has raised, for that reason,
    and the next one of the same session runs."""
    with pytest.raises(UnitRaised) as raised:
        units.run(f"perpetual/units/{how}-{name}/1", Unit(some_item(f"{how}:{name}"), {}))

    cause = raised.value.__cause__
    assert isinstance(cause, Exception)
    assert described(cause).startswith(BAD[name][1])
    assert units.run(f"perpetual/units/{how}-{name}/2", Unit(some_item(f"{how}:fine"), {})).result == "fine"
