"""From `path/to/file.py:name` to a perpetual flow."""

import json
from typing import Any

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.flow import PerpetualFlow

EXPECTED = "path/to/file.py:name or package.module:name of a flow made by as_flow()"


def load_perpetual_flow(entrypoint: str) -> PerpetualFlow:
    """The flow of this entrypoint.

    Raises:
        InvalidInput: there is none, or it is not made by `as_flow()`.
    """
    from prefect.exceptions import MissingFlowError, ScriptError
    from prefect.flows import load_flow_from_entrypoint

    if ":" not in entrypoint:
        raise InvalidInput.of("entrypoint", entrypoint, EXPECTED)
    try:
        flow: object = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except ScriptError as error:
        cause = error.user_exc
        raise InvalidInput.of(entrypoint, f"{type(cause).__name__}: {cause}", "a file that can be imported") from error
    except (MissingFlowError, ImportError, AttributeError, OSError, ValueError) as error:
        raise InvalidInput.of("entrypoint", entrypoint, f"{EXPECTED} ({' '.join(str(error).split())})") from error
    if not isinstance(flow, PerpetualFlow):
        raise InvalidInput.of("entrypoint", entrypoint, f"{EXPECTED}; this is a {type(flow).__name__}")
    return flow


def parse_parameters(flow: PerpetualFlow, pairs: list[str]) -> dict[str, Any]:
    """The flow's parameters from `name=value` pairs; a value that is JSON is read as JSON, else it is text.

    Raises:
        InvalidInput: a pair is none, a parameter is unknown or missing, or a value does not fit.
    """
    from pydantic import ValidationError

    fields = flow.agent.model_fields
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or name not in (*fields, "chain"):
            raise InvalidInput.of("--param", pair, f"name=value, with a name of {', '.join((*fields, 'chain'))}")
        values[name] = _value(text)
    chain = values.pop("chain", None)
    try:
        flow.agent(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidInput.of(f"--param {name}", first.get("input"), f"a value that fits ({first['msg']})") from error
    return values if chain is None else {**values, "chain": str(chain)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
