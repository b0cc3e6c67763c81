"""`perpetual items`: the queue in a person's hands."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from perpetual_blocks.cli.output import Json, Where, err, out, print_json
from perpetual_blocks.cli.render import items_table, story_view
from perpetual_blocks.cli.results import read_results
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import DamagedDocument, InvalidInput, StorageError, UnknownChain
from perpetual_blocks.session.attempts import Attempt, Story
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.work import Item, ItemStatus, WorkItem

app = App(name="items", help="List, show, add, retry and discard work items.")

HERE = Where()

ALL = 1_000_000


@app.command(name="list")
def list_items(
    chain: str, *, status: ItemStatus | None = None, limit: int = 100, json: Json = False, where: Where = HERE
) -> None:
    """List items in the order in which they will be claimed.

    Example: perpetual items list demo --status discarded

    Args:
        chain: The chain's name.
        status: Only items of this status.
        limit: At most so many.
        json: Print a JSON array.
    """
    ledger = where.open_ledger()
    ledger.chain(chain)
    rows = [_as_json(item) for item in ledger.items(chain, status, limit)]
    print_json(rows) if json else out.print(items_table(rows))


@app.command
def add(
    chain: str,
    id: str | None = None,
    *,
    payload: str = "{}",
    kind: str = "default",
    priority: int = 0,
    depends_on: Annotated[list[str] | None, Parameter(negative="")] = None,
    estimate: Annotated[list[str] | None, Parameter(negative="")] = None,
    max_attempts: int = 3,
    file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Add an item, or a file of them; what is there already stays as it is. All are added, or none.

    Example: perpetual items add demo extra --payload '{"path": "extra.py"}' --priority 5

    Args:
        chain: The chain's name.
        id: The item's id.
        payload: A JSON object.
        kind: One of the agent's kinds.
        priority: Higher goes first.
        depends_on: The id of an item that must be completed first; may be given several times.
        estimate: What a unit will cost, as tokens=1000; may be given several times.
        max_attempts: How often a unit may fail.
        file: JSON objects with these fields, one a line; - for standard input.
        json: Print a JSON object.
    """
    if (id is None) == (file is None):
        raise InvalidInput.of("items add", id or str(file), "an item's id, or --file, and not both")
    if file is not None:
        items = [_from_line(number, line) for number, line in enumerate(_lines(file), start=1) if line.strip()]
    else:
        items = [
            WorkItem(
                id=id or "",
                kind=kind,
                payload=parse_json("--payload", payload),
                priority=priority,
                depends_on=tuple(depends_on or ()),
                estimate=parse_amounts("--estimate", estimate or []),
                max_attempts=max_attempts,
            )
        ]
    added = where.open_ledger().add_items(chain, items)
    if json:
        print_json({"chain": chain, "added": added, "given": len(items)})
    else:
        out.print(f"{added} of {len(items)} added to {chain}" + ("" if added else ": there already"), highlight=False)


@app.command
def show(chain: str, id: str, *, json: Json = False, where: Where = HERE) -> None:
    """Show an item: its result, or why there is none; and each attempt that came to nothing, and what that has spent.

    Example: perpetual items show demo json.decoder

    Args:
        chain: The chain's name.
        id: The item's id.
        json: Print a JSON object.
    """
    ledger = where.open_ledger()
    ledger.chain(chain)
    story = ledger.story(chain, id)
    told = story_json(story)
    if story.item.status is ItemStatus.COMPLETED:
        try:
            told |= {"result": read_results(where, [story.item]).get(id)}
        except (StorageError, DamagedDocument) as error:  # it was pruned, or the storage is another machine's
            err.print(str(error), style="yellow", highlight=False, markup=False)
    print_json(told) if json else out.print(story_view(told), highlight=False)


@app.command
def retry(chain: str, *ids: str, json: Json = False, where: Where = HERE) -> None:
    """Give items another try at once, and afresh, that are discarded or wait after a failed attempt.

    Without ids, all that are discarded.

    Example: perpetual items retry demo json.decoder

    Args:
        chain: The chain's name.
        ids: Ids of items.
        json: Print a JSON object.
    """
    ledger = where.open_ledger()
    _check_ids(ledger, chain, ids)
    wanted = list(ids) or [item.id for item in ledger.items(chain, ItemStatus.DISCARDED, ALL)]
    _report(chain, "retried", ledger.retry_items(chain, wanted), len(wanted), json=json)


@app.command
def discard(
    chain: str, *ids: str, reason: str = "given up by a person", json: Json = False, where: Where = HERE
) -> None:
    """Give up items that are blocked or available.

    Example: perpetual items discard demo antigravity --reason "not wanted"

    Args:
        chain: The chain's name.
        ids: Ids of items.
        reason: Why, for the handoff.
        json: Print a JSON object.
    """
    ledger = where.open_ledger()
    _check_ids(ledger, chain, ids)
    if not ids:
        raise InvalidInput.of("items discard", "no ids", "at least one item's id")
    _report(chain, "discarded", ledger.discard_items(chain, ids, reason), len(ids), json=json)


def _check_ids(ledger: Ledger, chain: str, ids: tuple[str, ...]) -> None:
    """Refuses all of the ids if the chain does not have one of them: it is a slip of the fingers."""
    ledger.chain(chain)
    known = {item.id for item in ledger.items(chain, limit=ALL)} if ids else set()
    for id in ids:
        if id not in known:
            raise UnknownChain(
                f"item: got {id!r}; expected an item of {chain}; `perpetual items list {chain}` has them"
            )


def _report(chain: str, verb: str, count: int, wanted: int, *, json: bool) -> None:
    if json:
        print_json({"chain": chain, verb: count})
    else:
        out.print(f"{count} of {wanted} {verb} in {chain}", highlight=False)


def _as_json(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in Item.__slots__} | {"retry_at": isoformat(item.retry_at)}


def story_json(story: Story) -> dict[str, Any]:
    """An item with its story as one JSON object; its times are time stamps."""
    attempts = [
        {name: getattr(attempt, name) for name in Attempt.__slots__} | {"at": isoformat(attempt.at)}
        for attempt in story.attempts
    ]
    return {**_as_json(story.item), "story": attempts, "wasted": story.wasted}


def _lines(file: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.of("--file", str(file), f"a file of JSON lines in UTF-8 ({error})") from None
    return text.split("\n")


def _from_line(number: int, line: str) -> WorkItem:
    value = parse_json(f"--file line {number}", line)
    try:
        return WorkItem(**value)
    except TypeError as error:
        raise InvalidInput.of(f"--file line {number}", line, f"the fields of a WorkItem ({error})") from None


def parse_json(field: str, text: str) -> dict[str, Any]:
    """A JSON object from the command line.

    Raises:
        InvalidInput: it is none.
    """
    try:
        value = jsonlib.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidInput.of(field, text, 'a JSON object, as {"path": "a.txt"}')
    return value


def parse_amounts(field: str, pairs: list[str]) -> dict[str, float]:
    """Amounts by resource from `tokens=1000` pairs.

    Raises:
        InvalidInput: a pair is none.
    """
    amounts: dict[str, float] = {}
    for pair in pairs:
        name, separator, amount = pair.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            separator = ""
        if not separator:
            raise InvalidInput.of(field, pair, "resource=amount, as tokens=1000")
    return amounts
