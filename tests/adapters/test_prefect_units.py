"""Units as Prefect tasks: whatever a unit raises ends that unit and nothing else."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect_server import PrefectServer
from support import Raised, batch_of, run_unit, some_item

from perpetual_blocks import PerpetualAgent, Unit
from perpetual_blocks.adapters.outcome_records import StoredOutcomes
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.errors import described


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
    with pytest.raises(Raised) as raised:
        run_unit(units, some_item(f"{how}:{name}"))

    cause = raised.value.__cause__
    assert isinstance(cause, Exception)
    assert described(cause).startswith(BAD[name][1])
    assert run_unit(units, some_item(f"{how}:fine, after {name}")).result == "fine"


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_task_whose_outcomes_are_found_again(units: PrefectUnits) -> None:
    """One document holds what its units came to, those that raised left out; who comes next finds each in it, and
    asks the agent for the others only."""
    items = [some_item(f"sync:{name}") for name in ("fine-1", "exit", "fine-2", "no-json")]
    batch = batch_of(*items, token="first")

    units.run(batch)

    assert [(one.item.id, one.result_key) for one in batch.finished] == [
        ("sync:fine-1", "perpetual/mine-0123/batches/first#0"),
        ("sync:fine-2", "perpetual/mine-0123/batches/first#1"),
    ]
    assert [failed.item.id for failed in batch.failed] == ["sync:exit", "sync:no-json"]
    stored = StoredOutcomes(StoredDocuments(load_storage("")))
    assert [stored.read(one.result_key).result for one in batch.finished] == ["fine", "fine"]

    again = batch_of(*(replace(item, claims="first", interruptions=1) for item in items), token="second")
    units.run(again)

    assert [one.result_key for one in again.finished] == [one.result_key for one in batch.finished]
    assert again.made == []
    assert [failed.item.id for failed in again.failed] == ["sync:exit", "sync:no-json"]


def test_an_item_claimed_by_itself_finds_what_a_batch_has_left(units: PrefectUnits) -> None:
    """And the other way round."""
    a, b = some_item("sync:a"), some_item("sync:b")
    units.run(batch_of(a, b, token="left"))
    units.run(batch_of(some_item("sync:c")))

    alone = batch_of(replace(a, claims="left", interruptions=1))
    together = batch_of(
        replace(some_item("sync:c"), claims="unit", interruptions=1), replace(b, claims="lost left"), token="new"
    )
    units.run(alone)
    units.run(together)

    assert [one.result_key for one in alone.finished] == ["perpetual/mine-0123/batches/left#0"]
    assert [one.result_key for one in together.finished] == [
        "perpetual/mine-0123/units/sync%3Ac/1",
        "perpetual/mine-0123/batches/left#1",
    ]


def test_a_batch_in_several_threads_at_once(units: PrefectUnits) -> None:
    """Batches of units that run at the same time do not get into each other's way."""
    batches = [batch_of(*(some_item(f"sync:{n}-{m}") for m in range(5)), token=f"t{n}") for n in range(8)]
    threads = [Thread(target=copy_context().run, args=(units.run, batch)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [len(batch.finished) for batch in batches] == [5] * 8
