"""A block as the flow needs it, however it was given: itself, by its name, or not at all."""

from contextlib import suppress
from functools import partial
from typing import TypeVar

import httpx
from prefect.blocks.core import Block

from perpetual_blocks.blocks.forms import explained
from perpetual_blocks.blocks.resource_budget import ResourceBudget
from perpetual_blocks.blocks.state_persistence import DEFAULT, StatePersistence
from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import InvalidInput, RunsUnavailable, StorageError
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.session.manners import Manners

T = TypeVar("T")


def load_budget(budget: Budget | ResourceBudget | str | None, patience: Patience = IMPATIENT) -> Budget:
    """The budget itself, whatever it was given as.

    Raises:
        InvalidInput: there is no such block.
    """
    if isinstance(budget, str):
        budget = patience(partial(_load_block, ResourceBudget, budget, "budget"), is_away)
    if isinstance(budget, ResourceBudget):
        return budget.get_budget()
    return budget or Budget()


def load_manners(block: object, manners: Manners | None) -> Manners:
    """How far the chain may go by itself: as the budget's block says, or else as the flow does."""
    if isinstance(block, ResourceBudget) and (said := block.get_manners()) != Manners():
        return said
    return manners or Manners()


def load_store(store: StatePersistence | str | None, patience: Patience = IMPATIENT) -> StatePersistence:
    """The store itself, whatever it was given as; the default one for None.

    Raises:
        InvalidInput: there is no such block.
    """
    if isinstance(store, str):
        return patience(partial(_load_block, StatePersistence, store, "store"), is_away)
    return store or StatePersistence(ledger=DEFAULT)


def chosen_blocks(budget: object, store: object) -> dict[str, Block]:
    """The saved blocks among a flow's own budget and store, by the parameter's name; none if the server is away.

    Raises:
        InvalidInput: there is no such block, or it is wrong.
    """
    chosen: dict[str, Block] = {}
    for field, kind, given in (("budget", ResourceBudget, budget), ("store", StatePersistence, store)):
        block = given
        if isinstance(given, str):
            with suppress(StorageError):
                block = _load_block(kind, given, field)
        if isinstance(block, Block) and block._block_document_id is not None:
            chosen[field] = block
    return chosen


def _load_block(kind: type[T], name: str, field: str) -> T:
    try:
        return kind.load(name, _sync=True)  # type: ignore[attr-defined, no-any-return]
    except RuntimeError as error:  # Prefect's, for a block that does not pass its validation
        raise InvalidInput(f"{field}: the block {name} is wrong: {explained(error)}") from error
    except ValueError as error:
        slug = kind._block_type_slug  # type: ignore[attr-defined]
        raise InvalidInput.of(field, name, f"the name of a {slug} block ({error})") from error
    except httpx.HTTPError as error:
        raise StorageError(f"{field}: cannot ask the Prefect server for the block {name}: {error}") from error


def is_away(error: Exception) -> bool:
    """Whether it says that a storage, or Prefect's API, cannot be reached now."""
    return isinstance(error, StorageError | RunsUnavailable)
