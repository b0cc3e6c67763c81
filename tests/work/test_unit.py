"""The unit in the agent's hands, and the key under which its outcome is kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line, some_item

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.documents import unit_key
from perpetual_blocks.work import ContextChange, Unit, WorkItem
from perpetual_blocks.work.unit import MAX_CONTEXT_BYTES

# What the agent sees --------------------------------------------------------------------------------------------------


def test_unit_shows_where_its_item_stands() -> None:
    """A unit has the item's data, its number among the item's units, and how often it was tried."""
    item = some_item(
        "a",
        kind="other",
        payload={"x": 1},
        cursor=[1, 2],
        progress=(2, 5),
        next_action="go",
        units=2,
        attempts=1,
        failures=4,
    )

    unit = Unit(item, {"seen": ["b"]})

    assert (unit.id, unit.kind, unit.payload, unit.cursor) == ("a", "other", {"x": 1}, [1, 2])
    assert (unit.progress, unit.next_action, unit.number, unit.attempt) == ((2, 5), "go", 3, 2)
    assert unit.context == {"seen": ["b"]}
    assert unit.usage == {}


def test_what_a_unit_changes_is_its_own() -> None:
    """An agent that changes its payload, cursor or context does not change the item's or the session's."""
    item = some_item("a", payload={"list": [1]}, cursor={"list": [1]})
    context = {"list": [1]}
    unit = Unit(item, context)

    unit.payload["list"].append(2)
    unit.cursor["list"].append(2)
    unit.context["list"].append(2)

    assert (item.payload, item.cursor, context) == ({"list": [1]}, {"list": [1]}, {"list": [1]})


def test_spending_adds_up() -> None:
    """Calls of `spend` add up, resource by resource, named or as a mapping."""
    unit = Unit(some_item(), {})

    unit.spend(tokens=5, cost=0.5)
    unit.spend({"tokens": 7, "calls": 1})

    assert unit.usage == {"tokens": 12.0, "cost": 0.5, "calls": 1.0}


@pytest.mark.parametrize(
    ("amounts", "parts"),
    [
        ({"tokens": -1}, ("unit.spend.tokens", "-1", "at least 0")),
        ({"tokens": float("nan")}, ("unit.spend.tokens", "nan", "finite")),
        ({"tokens": True}, ("unit.spend.tokens", "True", "number")),
        ({"tokens": "5"}, ("unit.spend.tokens", "'5'", "number")),
        ({"seconds": 1}, ("unit.spend.seconds", "'seconds'", "tokens, cost, calls")),
        ({"memory": 1}, ("unit.spend.memory", "'memory'", "tokens, cost, calls")),
        ({"dollars": 1}, ("unit.spend.dollars", "'dollars'", "tokens, cost, calls")),
    ],
)
def test_wrong_spending_is_refused(amounts: dict[str, Any], parts: tuple[str, ...]) -> None:
    """Only what an agent can know is spent, in finite amounts of at least 0; a refused call counts nothing."""
    unit = Unit(some_item(), {})
    unit.spend(tokens=1)

    with pytest.raises(InvalidInput) as refused:
        unit.spend({"calls": 1, **amounts})

    one_line(refused.value, "expected", *parts)
    assert unit.usage == {"tokens": 1.0}


def test_only_work_items_are_added() -> None:
    """What is not a work item is refused, and none of that call is added."""
    unit = Unit(some_item(), {})

    with pytest.raises(InvalidInput) as refused:
        unit.add(WorkItem(id="b"), "c")  # type: ignore[arg-type]

    one_line(refused.value, "unit.add", "'c'", "a WorkItem")
    assert unit.outcome(None, 0.0).added == ()


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ({"cursor": {1, 2}}, ("unit.advance(cursor)", "{1, 2}", "JSON")),
        ({"cursor": {"a": [b"x"]}}, ("unit.advance(cursor).a[0]", "b'x'", "JSON")),
        ({"progress": (3, 2)}, ("unit.advance(progress)", "(3, 2)", "done <= total")),
        ({"progress": (-1, 2)}, ("unit.advance(progress)", "(-1, 2)", "done <= total")),
        ({"progress": (float("nan"), 2)}, ("unit.advance(progress)", "nan")),
        ({"progress": (0, float("inf"))}, ("unit.advance(progress)", "inf")),
        ({"progress": (1,)}, ("unit.advance(progress)", "(1,)")),
        ({"progress": 5}, ("unit.advance(progress)", "5")),
        ({"progress": ("1", "2")}, ("unit.advance(progress)", "'1'")),
        ({"next_action": ["read", "write"]}, ("unit.advance(next_action)", "['read', 'write']")),
        ({"next_action": "half a character \ud800"}, ("unit.advance(next_action)", "half a character")),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_wrong_advance_is_refused(said: dict[str, Any], parts: tuple[str, ...]) -> None:
    """What cannot be saved is refused where it is said, in one line that names it."""
    with pytest.raises(InvalidInput) as refused:
        Unit(some_item(), {}).advance(**said)

    one_line(refused.value, "expected", *parts)


# What comes of it -----------------------------------------------------------------------------------------------------


def test_returning_a_result_is_done() -> None:
    """A unit that returns a result has completed its item; its time is counted besides what it spent."""
    unit = Unit(some_item(), {})
    unit.spend(tokens=3)
    unit.add(WorkItem(id="b"))

    outcome = unit.outcome({"answer": 42}, 1.5)

    assert (outcome.done, outcome.result, outcome.usage) == (True, {"answer": 42}, {"tokens": 3.0, "seconds": 1.5})
    assert (outcome.context, [item.id for item in outcome.added]) == (None, ["b"])


@pytest.mark.parametrize("returns_it", [True, False])
def test_advancing_is_not_done(returns_it: bool) -> None:
    """A unit that advanced is not done, whether it returns what `advance` gave it or nothing."""
    unit = Unit(some_item(), {})

    advanced = unit.advance(cursor={"page": 2}, progress=(1, 4), next_action="page 2")
    outcome = unit.outcome(advanced if returns_it else None, 0.0)

    assert (outcome.done, outcome.result, outcome.cursor) == (False, None, {"page": 2})
    assert (outcome.progress, outcome.next_action) == ((1, 4), "page 2")


def test_advancing_and_returning_something_else_is_refused() -> None:
    """A unit is finished or advanced, not both."""
    unit = Unit(some_item(), {})
    unit.advance(cursor=1)

    with pytest.raises(InvalidInput) as refused:
        unit.outcome("done", 0.0)

    one_line(refused.value, "work_unit", "'done'", "unit.advance")


class ManyLines:
    """Shows itself as a table does."""

    def __repr__(self) -> str:
        return "   a  b\n0  1  2"


@pytest.mark.parametrize(
    "result", [{1, 2}, (1, 2), {"a": float("inf")}, pytest.param(object(), id="object"), ManyLines()], ids=repr
)
def test_a_result_that_is_no_json_is_refused(result: object) -> None:
    """A result is JSON: what would not be read back as it was is refused, in one line that says where."""
    with pytest.raises(InvalidInput) as refused:
        Unit(some_item(), {}).outcome(result, 0.0)

    one_line(refused.value, "work_unit's result", "expected")


def test_context_is_in_the_outcome_only_when_it_changed() -> None:
    """A context that is as it was is left out; of one that changed, in whatever depth, the keys that did are given."""
    before = {"seen": {"a": [1]}}
    same, changed = Unit(some_item(), before), Unit(some_item(), before)
    same.context = {"seen": {"a": [1]}}
    changed.context["seen"]["a"].append(2)

    assert same.outcome(None, 0.0).context is None
    change = ContextChange({"seen": {"a": [1]}}, {"seen": {"a": [1, 2]}})
    assert changed.outcome(None, 0.0).context == change


def test_context_can_be_emptied_and_replaced() -> None:
    """An empty context is a change too, and `advance` can give a new one."""
    emptied, replaced = Unit(some_item(), {"x": 1}), Unit(some_item(), {"x": 1})
    emptied.context.clear()
    new = {"y": [1]}
    replaced.advance(context=new)
    new["y"].append(2)

    assert emptied.outcome(None, 0.0).context == ContextChange({"x": 1}, {})
    assert replaced.outcome(None, 0.0).context == ContextChange({"x": 1}, {"y": [1]})


def test_the_outcomes_context_is_a_copy() -> None:
    """What the agent does with its context after the unit does not change the outcome."""
    unit = Unit(some_item(), {})
    unit.context["seen"] = ["a"]
    outcome = unit.outcome(None, 0.0)

    unit.context["seen"].append("b")

    assert outcome.context == ContextChange({}, {"seen": ["a"]})


def test_context_that_is_no_json_or_too_large_is_refused() -> None:
    """A context is JSON of at most a megabyte; the refusal says what to do instead."""
    strange, large = Unit(some_item(), {}), Unit(some_item(), {})
    strange.context["when"] = {"today"}
    large.context["text"] = "x" * MAX_CONTEXT_BYTES

    with pytest.raises(InvalidInput) as not_json:
        strange.outcome(None, 0.0)
    with pytest.raises(InvalidInput) as too_large:
        large.outcome(None, 0.0)

    one_line(not_json.value, "unit.context.when", "{'today'}", "JSON")
    one_line(too_large.value, "unit.context", "1,048,587", "1,048,576", "files")


# Keys -----------------------------------------------------------------------------------------------------------------

ANY_ID = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text(alphabet="ab./%~ü", min_size=1, max_size=6),
    st.text(alphabet="aü/", min_size=100, max_size=512),
    st.text(alphabet="aAéÉ.", min_size=1, max_size=5),
    st.sampled_from(
        ["../../etc/passwd", "..\\..\\x", "%" * 512, "\U0001f642" * 512, "con", "NUL", "com1.txt", "a.", "A"]
    ),
    st.sampled_from([".", "..", "...", "/", "a/b", "a%2Fb", "-1", "1-1", "C:\\x", "~", "nul\0"]),
)
PLACE = st.tuples(ANY_ID, st.integers(0, 30), st.integers(0, 30))


def key_of(item: str, units: int = 0, failures: int = 0) -> str:
    return unit_key("mine", "0123456789abcdef", some_item(item, units=units, failures=failures))


@given(st.lists(PLACE, min_size=2, max_size=20, unique=True))
def test_no_two_units_share_a_key(places: list[tuple[str, int, int]]) -> None:
    """Another item, another unit or another attempt after a failure has another key."""
    assert len({key_of(*place).lower() for place in places}) == len(places), "nor on macOS and Windows"


@given(PLACE)
def test_keys_are_safe_paths(place: tuple[str, int, int]) -> None:
    """Each part of a key is a plain file name of at most 255 bytes that leads nowhere else; the chain comes first."""
    parts = key_of(*place).split("/")

    assert parts[:3] == ["perpetual", "mine-0123456789abcdef", "units"]
    assert len(parts) == 5
    for part in parts:
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= 255
        assert part.isascii()
        assert not set(part) & set('\\:*?"<>|\0 ')
        assert not part.endswith(".")
        assert part.partition(".")[0].lower() not in ("con", "prn", "aux", "nul", "com1", "lpt1")


def test_an_interrupted_unit_has_the_same_key() -> None:
    """A unit that is tried again after an interruption finds what was persisted; after a failure it does not."""
    first = key_of("a")

    assert unit_key("mine", "0123456789abcdef", some_item("a", interruptions=3, attempts=0)) == first
    assert key_of("a", failures=1) != first


def test_chains_have_their_own_keys() -> None:
    """A later chain of the same name has other keys, as its uid is another."""
    item = some_item("a")

    assert len({unit_key("a", "1", item), unit_key("a", "2", item), unit_key("b", "1", item)}) == 3


@pytest.mark.parametrize("long", ["a" * 200, "ü" * 100, "docs/" * 60])
def test_an_id_that_looks_like_a_shortened_key_has_its_own(long: str) -> None:
    """The short form of a long id's key is no other id's key, though that id spell the short form out."""
    shortened = key_of(long).split("/")[3]

    assert key_of(shortened) != key_of(long)
