"""From `path/to/file.py:name` to a perpetual flow."""

import json
from typing import TYPE_CHECKING, Any, get_args, get_origin

import httpx

from perpetual_blocks.errors import InvalidInput, StorageError
from perpetual_blocks.flow import PerpetualFlow

if TYPE_CHECKING:
    from prefect.blocks.core import Block

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
    named = [name for name in block_fields(flow) if isinstance(values.get(name), str)]
    try:
        flow.agent(**values)
    except ValidationError as error:
        wrong = [problem for problem in error.errors() if not problem["loc"] or problem["loc"][0] not in named]
        for problem in wrong[:1]:
            name = ".".join(map(str, problem["loc"]))
            raise InvalidInput.of(
                f"--param {name}", problem.get("input"), f"a value that fits ({problem['msg']})"
            ) from error
    return values if chain is None else {**values, "chain": str(chain)}


def block_fields(flow: PerpetualFlow) -> dict[str, type["Block"]]:
    """The agent's fields that are blocks, with the block's type."""
    from prefect.blocks.core import Block

    found: dict[str, type[Block]] = {}
    for name, field in flow.agent.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            origin = get_origin(kind) or kind
            if isinstance(origin, type) and issubclass(origin, Block):
                found[name] = origin
    return found


def resolve_blocks(flow: PerpetualFlow, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with references in place of the names of blocks: what they hold stays on the server.

    Raises:
        InvalidInput: there is no block of this name.
        StorageError: the Prefect server cannot be asked.
    """
    references = {}
    for name, kind in block_fields(flow).items():
        given = parameters.get(name)
        if not isinstance(given, str):
            continue
        slug = kind.get_block_type_slug()
        try:
            block: Any = kind.load(given.removeprefix(f"{slug}/"), _sync=True)  # type: ignore[call-arg]
        except ValueError:
            # Not what was given: it may be the secret itself.
            raise InvalidInput(
                f"--param {name}: got no saved {slug} block's name; expected one, as `prefect block ls` lists them"
            ) from None
        except httpx.HTTPError as error:
            raise StorageError(f"--param {name}: cannot ask the Prefect server for the block: {error}") from error
        references[name] = {"$ref": {"block_document_id": str(block._block_document_id)}}
    return {**parameters, **references}


def load_blocks(flow: PerpetualFlow, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the blocks themselves.

    Raises:
        InvalidInput: there is no block of this name.
        StorageError: the Prefect server cannot be asked.
    """
    from prefect.blocks.core import Block

    resolved = resolve_blocks(flow, parameters)
    for name in block_fields(flow):
        if isinstance(resolved.get(name), dict) and "$ref" in resolved[name]:
            resolved[name] = Block.load_from_ref(resolved[name]["$ref"], _sync=True)  # type: ignore[call-arg]
    return resolved


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
