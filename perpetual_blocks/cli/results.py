"""`perpetual results`: what the items of a chain came to."""

import json as jsonlib
from collections.abc import Iterable
from typing import Any

from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.work import Item, ItemStatus

HERE = Where()

ALL = 1_000_000_000


def results(chain: str, *, json: Json = False, where: Where = HERE) -> None:
    """Print what `work_unit` has returned for each item that is completed, on a line of its own: its id, and the JSON.

    Example: perpetual results demo --json > results.json

    Args:
        chain: The chain's name.
        json: Print one JSON object, of results by id.
    """
    ledger = where.open_ledger()
    ledger.chain(chain)
    found = read_results(where, ledger.items(chain, ItemStatus.COMPLETED, ALL))
    if json:
        print_json(found)
        return
    for item, result in found.items():
        line = f"{item}  {jsonlib.dumps(result, ensure_ascii=False)}"
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def read_results(where: Where, items: Iterable[Item]) -> dict[str, Any]:
    """The results of items that are completed, by id."""
    from perpetual_blocks.adapters.outcome_records import StoredOutcomes
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    outcomes = StoredOutcomes(StoredDocuments(load_storage(where.get_store().result_storage)))
    return {item.id: outcomes.read(item.result_key).result for item in items if item.result_key}
