"""JSON, one way: how everything that is saved becomes bytes, and how those bytes are recognised again."""

import hashlib
import json
import math
from typing import Any

from perpetual_blocks.errors import InvalidInput

# Made once: `json.dumps` would make one for each unit.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

MOST_LEVELS = 100
"""What is nested deeper may be written where the stack is low, and then be read by nobody whose stack is higher."""


def to_json(value: Any, field: str) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN, so that equal values have equal bytes.

    Raises:
        InvalidInput: the value is not JSON; the text says where.
    """
    _check(value, field)
    return canonical(value)


def canonical(value: Any) -> str:
    """Canonical JSON of a value that was checked before."""
    return _ENCODER.encode(value)


def _check(value: Any, field: str, level: int = 0) -> None:
    if level > MOST_LEVELS:
        # The field's name has all the levels in it, and the value may hold itself.
        where = f"{field[:60]}..."
        raise InvalidInput(f"{where}: got more than {MOST_LEVELS} levels of arrays and objects; expected at most these")
    # json.dumps would turn a tuple into a list and the key 1 into "1": what is read back must equal what was given.
    match value:
        case None | bool() | int():
            return
        case str():
            if not is_text(value):
                raise InvalidInput.of(field, value, "text that UTF-8 can hold (this has half a surrogate pair)")
        case float():
            if not math.isfinite(value):
                raise InvalidInput.of(field, value, "a finite number (JSON has no NaN or infinity)")
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise InvalidInput.of(f"{field} key", key, "a string (JSON objects have string keys)")
                _check(key, f"{field} key")
                _check(inner, f"{field}.{key}", level + 1)
        case list():
            for index, inner in enumerate(value):
                _check(inner, f"{field}[{index}]", level + 1)
        case _:
            expected = "JSON: an object, array, string, number, true, false or null"
            raise InvalidInput.of(field, value, f"{expected} (this is a {type(value).__name__})")


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8; half a surrogate pair, as a broken file name has it, cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain_text(value: str) -> bool:
    """Whether a string can be in a text column of any database: PostgreSQL's have no NUL. (JSON escapes it.)"""
    return "\0" not in value and is_text(value)


def copy_json(value: Any) -> Any:
    """A deep copy of a JSON value that was checked before."""
    if isinstance(value, dict):
        return {key: copy_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [copy_json(inner) for inner in value]
    return value


def digest(data: bytes | str) -> str:
    """SHA-256 of the bytes, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
