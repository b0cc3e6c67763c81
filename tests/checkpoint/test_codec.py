"""JSON, one way: what is saved is read back as it was, or refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.checkpoint import copy_json, digest, to_json
from perpetual_blocks.checkpoint.codec import MOST_LEVELS
from perpetual_blocks.errors import InvalidInput

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_what_is_saved_is_read_back(value: Any) -> None:
    """JSON values come back with the same values and types, as UTF-8."""
    back = json.loads(to_json(value, "x").encode().decode())

    assert back == value
    assert to_json(back, "x") == to_json(value, "x"), "true is not 1, and 1.0 is not 1"


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    """Objects that are equal have the same text, and so the same digest."""
    turned = dict(reversed(value.items()))

    assert to_json(turned, "x") == to_json(value, "x")
    assert digest(to_json(turned, "x")) == digest(to_json(value, "x").encode())


@given(JSON)
def test_a_copy_is_equal_and_shares_nothing(value: Any) -> None:
    """A copy has the same text, also after all that can be changed in the original is changed."""
    before = to_json(value, "x")
    copy = copy_json(value)
    spoil(value)

    assert to_json(copy, "x") == before


def spoil(value: Any) -> None:
    """Changes every list and dictionary in the value."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    for inner in list(inside):
        spoil(inner)
    if isinstance(value, dict):
        value["spoilt"] = True
    elif isinstance(value, list):
        value.append("spoilt")


def test_the_text_is_compact() -> None:
    """The text is canonical: keys in order, no spaces, letters as they are."""
    assert to_json({"b": [1, 2.5, None, True], "a": "ü"}, "x") == '{"a":"ü","b":[1,2.5,null,true]}'


class ManyLines:
    """Shows itself as a table does."""

    def __repr__(self) -> str:
        return "   a  b\n0  1  2"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (float("nan"), ("x: got nan", "finite")),
        (float("inf"), ("x: got inf", "finite")),
        ([0, {"a": -float("inf")}], ("x[1].a: got -inf", "finite")),
        ({"a": {1: 2}}, ("x.a key: got 1", "a string")),
        ({"a": {None: 2}}, ("x.a key: got None", "a string")),
        ((1, 2), ("x: got (1, 2)", "tuple")),
        ([{1, 2}], ("x[0]: got {1, 2}", "set")),
        ({"a": b"bytes"}, ("x.a: got b'bytes'", "bytes")),
        (object, ("x: got <class 'object'>", "JSON")),
        ([[[1 + 2j]]], ("x[0][0][0]: got (1+2j)", "complex")),
        ([0, 1, 2, bytearray(1000)], ("x[3]: got bytearray", "...")),
        ({"two\nlines": object()}, ("x.", "JSON")),
        (ManyLines(), ("x: got", "ManyLines")),
        ("half a character \ud800", ("x: got",)),
        ({"half a character \ud800": 1}, ("x",)),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_json_is_refused(value: object, parts: tuple[str, ...]) -> None:
    """What would not come back as it was, or cannot be written, is refused in one line that says where it is."""
    with pytest.raises(InvalidInput) as refused:
        to_json(value, "x")

    one_line(refused.value, "expected", *parts)
    assert len(str(refused.value)) < 400


def test_what_is_nested_too_deeply_is_refused() -> None:
    """A hundred levels are read back wherever they were written; a value that holds itself has no end."""
    value: Any = "deep"
    for _ in range(MOST_LEVELS):
        value = [value]
    assert json.loads(to_json(value, "x")) == value
    endless: dict[str, Any] = {}
    endless["again"] = endless

    for wrong in ([value], endless):
        with pytest.raises(InvalidInput) as refused:
            to_json(wrong, "x")
        one_line(refused.value, "more than 100 levels")


def test_digest_is_sha_256_of_the_bytes() -> None:
    """Text is digested as its UTF-8 bytes, so that a document can be checked with any tool."""
    assert digest("ü") == digest(b"\xc3\xbc")
    assert digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
