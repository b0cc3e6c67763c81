"""JSON columns as text."""

import json
from typing import Any

from pydantic_core import from_json


def read_json(text: str) -> Any:
    """What a JSON column holds. Most of an item's hold nothing, and there are five of them in each that is claimed."""
    match text:
        case "null":
            return None
        case "{}":
            return {}
        case _:
            return from_json(text)


def write_json(value: Any) -> str:
    """What is put into one."""
    return "null" if value is None else json.dumps(value)
