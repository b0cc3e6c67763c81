"""What a unit changed of the context, applied to a context that others have changed."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.work import ContextChange

VALUES = st.none() | st.booleans() | st.integers(-2, 2) | st.lists(st.integers(0, 1), max_size=2)
CONTEXTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def refused(key: str, current: Any, before: Any, after: Any) -> Any:
    raise AssertionError(f"{key} was to be merged")


@given(CONTEXTS, CONTEXTS)
def test_it_makes_the_one_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nobody is asked, as nobody else has changed anything; also True is not taken for 1."""
    change = ContextChange.between(before, after)

    made = change.apply(before, refused)

    assert repr(sorted(made.items())) == repr(sorted(after.items()))


def test_an_equal_change_of_two_units_is_two_changes() -> None:
    """Two units that both add three to a sum have added six."""
    change = ContextChange.between({"sum": 10}, {"sum": 13})

    assert change.apply({"sum": 13}, lambda key, now, before, after: now + after - before) == {"sum": 16}


def test_changes_of_different_keys_are_both_there() -> None:
    one = ContextChange.between({"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 1, "c": 1})
    other = ContextChange.between({"a": 1, "b": 1, "c": 1}, {"a": 1, "c": 1, "d": 4})

    assert other.apply(one.apply({"a": 1, "b": 1, "c": 1}, refused), refused) == {"a": 2, "c": 1, "d": 4}


def test_a_key_that_both_changed_is_merged() -> None:
    """The merge is given the key's value now, and before and after the unit."""
    change = ContextChange.between({"sum": 10}, {"sum": 13})

    assert change.apply({"sum": 15}, lambda key, now, before, after: now + after - before) == {"sum": 18}


def test_a_key_that_others_took_away_is_merged_with_none() -> None:
    change = ContextChange.between({"sum": 10}, {"sum": 13})

    assert change.apply({}, lambda key, now, before, after: [key, now, before, after]) == {"sum": ["sum", None, 10, 13]}


def test_a_whole_context_replaces_everything() -> None:
    """As the outcomes of version 0.1.0 have it."""
    assert ContextChange(after={"a": 1}, whole=True).apply({"b": 2}, refused) == {"a": 1}
