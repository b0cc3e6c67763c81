"""What the forms of Prefect's UIs save of a block, and what is wrong with it, as the server lets everything through."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


def filled(values: Any, **shown: object) -> Any:
    """A block's values, and what its form shows for those that were left as they were, or emptied.

    The v1 UI saves no field that nobody has touched, and null for an emptied number; the v2 UI leaves that out.

    Args:
        shown: What the form shows for fields that have no default of their own, because one has to be required.
    """
    if not isinstance(values, Mapping):
        return values
    return {**shown, **{name: value for name, value in values.items() if value is not None}}


def explained(error: BaseException) -> str:
    """What is wrong with each field, in one line and without its value, which may be a secret.

    Args:
        error: Prefect's, which says only that a block could not be loaded, or pydantic's.
    """
    cause = error.__cause__ or error.__context__ or error
    if not isinstance(cause, ValidationError):
        return str(cause)
    found = []
    for detail in cause.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in detail["loc"])
        pattern = detail["type"] == "string_pattern_mismatch"
        text = "is not written as the form says" if pattern else detail["msg"].removeprefix("Value error, ")
        found.append(f"{where}: {text}" if where and not text.startswith(f"{where}:") else text)
    return "; ".join(found)
