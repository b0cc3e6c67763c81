"""Work items: what is a good one, which moves they make, and which dependencies they can have."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.work import TRANSITIONS, ItemStatus, WorkItem, check_dependencies, sources

FIRST = {ItemStatus.BLOCKED, ItemStatus.AVAILABLE}
LAST = {ItemStatus.COMPLETED, ItemStatus.CANCELLED}

# What a user gives ----------------------------------------------------------------------------------------------------


def test_an_item_needs_only_an_id() -> None:
    """Everything but the id has a default."""
    item = WorkItem(id="a")

    assert (item.kind, item.payload, item.priority, item.depends_on) == ("default", {}, 0, ())
    assert (item.estimate, item.max_attempts) == ({}, 3)


def test_dependencies_are_kept_once_and_in_order() -> None:
    """Any sequence of ids is taken; one that is named twice counts once."""
    assert WorkItem(id="a", depends_on=["c", "b", "c"]).depends_on == ("c", "b")  # type: ignore[arg-type]


def test_longest_id() -> None:
    """An id may have 512 characters."""
    assert WorkItem(id="ü" * 512).id == "ü" * 512


def test_estimates_are_numbers_of_any_resource() -> None:
    """An estimate may name every resource, metered ones too; its amounts become floats."""
    estimate = {"tokens": 1, "cost": 0.5, "calls": 0, "seconds": 2, "memory": 2**30, "cpu_seconds": 1}

    assert WorkItem(id="a", estimate=estimate).estimate == estimate


NOT_JSON = object()

WRONG: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"id": ""}, ("WorkItem.id", "''", "512")),
    ({"id": "x" * 513}, ("WorkItem.id", "xxx...", "512")),
    ({"id": 7}, ("WorkItem.id", "7", "a string")),
    ({"id": "\ud800"}, ("WorkItem.id",)),
    ({"id": "a\0b"}, ("WorkItem.id", "NUL")),
    ({"kind": ""}, ("WorkItem('a').kind", "''", "kinds")),
    ({"kind": None}, ("WorkItem('a').kind", "None")),
    ({"payload": [1]}, ("WorkItem('a').payload", "[1]", "a dict")),
    ({"payload": {"x": [{"y": NOT_JSON}]}}, ("WorkItem('a').payload.x[0].y", "object", "JSON")),
    ({"payload": {"x": float("nan")}}, ("WorkItem('a').payload.x", "nan", "finite")),
    ({"payload": {1: "x"}}, ("WorkItem('a').payload", "1", "a string")),
    ({"payload": {"two\nlines": NOT_JSON}}, ("WorkItem('a').payload", "JSON")),
    ({"priority": 1.5}, ("WorkItem('a').priority", "1.5", "whole number")),
    ({"priority": True}, ("WorkItem('a').priority", "True", "whole number")),
    ({"priority": 2**63}, ("WorkItem('a').priority", str(2**63))),
    ({"max_attempts": 0}, ("WorkItem('a').max_attempts", "0", "at least 1")),
    ({"max_attempts": "3"}, ("WorkItem('a').max_attempts", "'3'", "whole number")),
    ({"depends_on": "b"}, ("WorkItem('a').depends_on", "'b'", "a sequence")),
    ({"depends_on": ("b", 1)}, ("WorkItem('a').depends_on", "('b', 1)", "ids")),
    ({"depends_on": 7}, ("WorkItem('a').depends_on", "7")),
    ({"depends_on": ("\ud800",)}, ("WorkItem('a').depends_on",)),
    ({"depends_on": ("a\0b",)}, ("WorkItem('a').depends_on",)),
    ({"estimate": [5]}, ("WorkItem('a').estimate", "[5]", "amounts by resource")),
    ({"estimate": {"token": 1}}, ("WorkItem('a').estimate.token", "'token'", "tokens, cost, calls, seconds, memory")),
    ({"estimate": {"two\nlines": 1}}, ("WorkItem('a').estimate", "tokens")),
    ({"estimate": {"tokens": -1}}, ("WorkItem('a').estimate.tokens", "-1", "at least 0")),
    ({"estimate": {"tokens": "many"}}, ("WorkItem('a').estimate.tokens", "'many'", "number")),
    ({"estimate": {"tokens": float("inf")}}, ("WorkItem('a').estimate.tokens", "inf", "finite")),
    ({"estimate": {"tokens": True}}, ("WorkItem('a').estimate.tokens", "True", "number")),
]


@pytest.mark.parametrize(("fields", "parts"), WRONG, ids=lambda value: ascii(value)[:40])
def test_wrong_fields_are_refused(fields: dict[str, Any], parts: tuple[str, ...]) -> None:
    """Each wrong field is refused in one line that names the item, the field, the value and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        WorkItem(**{"id": "a", **fields})

    one_line(refused.value, "expected", *parts)


# Moves ----------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(ItemStatus), st.sampled_from(ItemStatus))
def test_sources_are_the_table(before: ItemStatus, after: ItemStatus) -> None:
    """`sources` names exactly the statuses from which the table has a move."""
    assert (before in sources(after)) == ((before, after) in TRANSITIONS)


@given(st.data())
def test_every_walk_stays_in_the_table_and_can_still_end(data: st.DataObject) -> None:
    """However an item moves, it is where it cannot leave, or a way to completion is open to it."""
    status = data.draw(st.sampled_from(sorted(FIRST)))
    for _ in range(data.draw(st.integers(0, 12))):
        onward = [after for before, after in TRANSITIONS if before is status]
        if not onward:
            break
        status = data.draw(st.sampled_from(onward))

    assert status in LAST or ItemStatus.COMPLETED in reachable({status})


def reachable(start: set[ItemStatus]) -> set[ItemStatus]:
    """All statuses that can be come to, `start` included."""
    found = set(start)
    while more := {after for before, after in TRANSITIONS if before in found} - found:
        found |= more
    return found


def test_every_status_is_reached() -> None:
    """A new item is blocked or available; from there it can come to every status."""
    assert reachable(set(FIRST)) == set(ItemStatus)


def test_what_is_over_stays_over() -> None:
    """Completed and cancelled items are never moved; an item is never moved to where it is."""
    assert not [before for before, _ in TRANSITIONS if before in LAST]
    assert not [before for before, after in TRANSITIONS if before is after]


def test_only_a_claimed_item_is_finished() -> None:
    """Nothing is completed that no session had claimed, and nothing blocked is claimed."""
    assert sources(ItemStatus.COMPLETED) == (ItemStatus.CLAIMED,)
    assert sources(ItemStatus.CLAIMED) == (ItemStatus.AVAILABLE,)


# Dependencies ---------------------------------------------------------------------------------------------------------

IDS = [f"item-{n}" for n in range(8)]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Items with dependencies among themselves, in any order."""
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, unique=True))
    return {item: tuple(draw(st.lists(st.sampled_from(ids), max_size=3, unique=True))) for item in ids}


def has_cycle(graph: dict[str, tuple[str, ...]]) -> bool:
    """The reference: take away what depends on nothing that is left, until nothing more can be taken away."""
    left = dict(graph)
    while free := [item for item, others in left.items() if not set(others) & set(left)]:
        for item in free:
            del left[item]
    return bool(left)


@given(graphs())
def test_a_cycle_is_found_when_there_is_one(graph: dict[str, tuple[str, ...]]) -> None:
    """A batch is refused if and only if it has a cycle; the cycle that is named is one, item by item."""
    batch = [WorkItem(id=item, depends_on=others) for item, others in graph.items()]
    if not has_cycle(graph):
        check_dependencies(batch, ())
        return

    with pytest.raises(InvalidInput) as refused:
        check_dependencies(batch, ())

    one_line(refused.value, "depends_on", "cycle")
    way = str(refused.value).partition("cycle: ")[2].partition(";")[0].split(" -> ")
    assert way[0] == way[-1]
    assert len(way) - 1 == len(set(way))
    assert all(other in graph[item] for item, other in pairwise(way))


def test_missing_dependency_is_named() -> None:
    """A dependency has to be in the batch or in the ledger."""
    batch = [WorkItem(id="a", depends_on=("known", "b")), WorkItem(id="b", depends_on=("unknown",))]

    with pytest.raises(InvalidInput) as refused:
        check_dependencies(batch, ["known"])

    one_line(refused.value, "WorkItem('b').depends_on", "'unknown'")
    check_dependencies(batch, ["known", "unknown"])


def test_a_long_line_of_dependencies() -> None:
    """Ten thousand items in a row are no cycle and no recursion; closing the ring makes them one."""
    row = [WorkItem(id=str(n), depends_on=(str(n + 1),)) for n in range(10_000)]
    check_dependencies([*row, WorkItem(id="10000")], ())

    with pytest.raises(InvalidInput):
        check_dependencies([*row, WorkItem(id="10000", depends_on=("0",))], ())


def test_a_cycle_of_strange_ids_is_still_one_line() -> None:
    """Ids are shown so that the text stays one line, whatever they hold."""
    batch = [WorkItem(id="two\nlines", depends_on=("b",)), WorkItem(id="b", depends_on=("two\nlines",))]

    with pytest.raises(InvalidInput) as refused:
        check_dependencies(batch, ())

    one_line(refused.value, "cycle")
