"""Outcomes: what a unit comes back with survives being saved as JSON, and what is none is recognised."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.budget import Quota
from perpetual_blocks.checkpoint import digest, to_json
from perpetual_blocks.errors import DamagedDocument
from perpetual_blocks.work import ContextChange, Outcome, WorkItem

TEXT = st.text(max_size=20)
NO_NUL = st.characters(codec="utf-8", exclude_characters="\0")
PLAIN = st.text(NO_NUL, max_size=20)
AMOUNT = st.floats(min_value=0, max_value=1e12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
ITEMS = st.builds(
    WorkItem,
    id=st.text(NO_NUL, min_size=1, max_size=20),
    kind=st.text(min_size=1, max_size=8),
    payload=OBJECT,
    priority=st.integers(-100, 100),
    depends_on=st.lists(PLAIN, max_size=3).map(tuple),
    estimate=st.dictionaries(st.sampled_from(["tokens", "cost", "seconds", "memory"]), AMOUNT, max_size=3),
    bound=st.dictionaries(st.just("calls"), AMOUNT, max_size=1),
    max_attempts=st.integers(1, 9),
)
OUTCOMES = st.builds(
    Outcome,
    done=st.booleans(),
    result=JSON,
    cursor=JSON,
    progress=st.none() | st.tuples(AMOUNT, AMOUNT),
    next_action=st.none() | PLAIN,
    usage=st.dictionaries(st.sampled_from(["tokens", "cost", "calls", "seconds"]), AMOUNT),
    context=st.none() | st.builds(ContextChange, OBJECT, OBJECT),
    added=st.lists(ITEMS, max_size=3).map(tuple),
    quotas=st.dictionaries(PLAIN, st.builds(Quota, st.none() | AMOUNT, AMOUNT, AMOUNT), max_size=3),
)


@given(OUTCOMES)
def test_an_outcome_is_read_back_as_it_was(outcome: Outcome) -> None:
    """Whatever a unit came back with, its document is JSON and gives the same outcome."""
    document = json.loads(json.dumps(outcome.to_document(), allow_nan=False))

    assert Outcome.from_document(document) == outcome


def document(**changes: Any) -> dict[str, Any]:
    """A good document, changed, whose digest is that of what it says."""
    changed = {**Outcome(done=True, added=(WorkItem(id="a"),)).to_document(), **changes}
    del changed["digest"]
    return {**changed, "digest": digest(to_json(changed, "x"))}


def without(field: str) -> dict[str, Any]:
    """A document that lacks a field, and has the right digest all the same."""
    lacking = {name: value for name, value in document().items() if name not in (field, "digest")}
    return {**lacking, "digest": digest(to_json(lacking, "x"))}


def test_the_document_that_the_others_are_made_of_is_good() -> None:
    """What the following tests damage is an outcome before they do."""
    assert Outcome.from_document(document()) == Outcome(done=True, added=(WorkItem(id="a"),))


@pytest.mark.parametrize(
    "other",
    [None, "text", [1], {}, {"schema": 4}, {"schema": True}, {"done": True}, document(schema="1")],
    ids=repr,
)
def test_what_is_of_another_schema_is_refused(other: object) -> None:
    """A document that is no outcome, or one of another version, is refused in one line that says what it is."""
    with pytest.raises(DamagedDocument) as refused:
        Outcome.from_document(other)

    one_line(refused.value, "outcome.schema", "expected 1 to 3")


@pytest.mark.parametrize("field", [name for name in document() if name not in ("schema", "quotas", "digest")])
def test_a_missing_field_is_refused(field: str) -> None:
    """A document that lacks a field is no outcome; the field is named."""
    with pytest.raises(DamagedDocument) as refused:
        Outcome.from_document(without(field))

    one_line(refused.value, "outcome", field)


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": 5},
        {"quotas": {"calls/day": [1, None, 3]}},
        {"quotas": {"calls/day": [1, 2]}},
        {"progress": "12"},
        {"progress": [1, 2, 3]},
        {"added": None},
        {"added": [{"id": "a"}]},
        {"added": [{**document()["added"][0], "priority": "high"}]},
        {"added": [{**document()["added"][0], "colour": "red"}]},
        {"done": "yes"},
        {"next_action": 5},
        {"usage": ["tokens"]},
        {"usage": {"tokens": "many"}},
        {"context": ["seen"]},
        {"context": {"after": {}}},
    ],
    ids=repr,
)
def test_a_field_of_another_type_is_refused(changes: dict[str, Any]) -> None:
    """State is checked, not trusted: a field that is not what it should be makes the document a damaged one."""
    with pytest.raises(DamagedDocument) as refused:
        Outcome.from_document(document(**changes))

    one_line(refused.value, "outcome")


# Digests --------------------------------------------------------------------------------------------------------------


def test_an_outcome_of_schema_1_is_read() -> None:
    """Version 0.1.0 wrote no digest; what it persisted is applied all the same."""
    old = {**document(), "schema": 1}
    del old["digest"]

    assert Outcome.from_document(old) == Outcome(done=True, added=(WorkItem(id="a"),))


@pytest.mark.parametrize(
    "damaged",
    [
        {name: value for name, value in document().items() if name != "digest"},
        {**document(), "digest": None},
        {**document(), "digest": "0" * 64},
        {**document(), "done": False},
        {**document(), "result": 1},
        {**document(), "result": float("nan")},
        {**document(), "colour": "red"},
        {**document(), "schema": 1},
    ],
    ids=repr,
)
def test_an_outcome_that_was_changed_is_found(damaged: dict[str, Any]) -> None:
    """A document that does not have its own digest, or whose digest is taken away, is not applied."""
    with pytest.raises(DamagedDocument) as found:
        Outcome.from_document(damaged)

    one_line(found.value, "outcome")


def test_the_document_it_was_read_from_is_left_alone() -> None:
    """Reading takes nothing out of it."""
    given = document()

    Outcome.from_document(given)

    assert given == document()
