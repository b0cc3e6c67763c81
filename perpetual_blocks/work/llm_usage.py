"""What a language model used, read from the usage objects of the libraries that call one.

They are known by their fields and not by their classes, so that none of those libraries is needed here, and a dict that
was JSON is as good as an object. The trouble is that the same word means different things: Anthropic's `input_tokens`
leaves out what was read from and written to the cache, everyone else's includes it.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from perpetual_blocks.errors import InvalidInput

# One amount has several names; an object that has two of them (litellm's) says the same with both.
_CACHED = (
    "prompt_tokens_details.cached_tokens",  # OpenAI chat completions, litellm
    "input_tokens_details.cached_tokens",  # OpenAI responses
    "input_token_details.cache_read",  # LangChain
    "cache_read_input_tokens",  # Anthropic
    "cache_read_tokens",  # Pydantic AI
    "prompt_cache_hit_tokens",  # DeepSeek
)
_CACHE_WRITTEN = (
    "prompt_tokens_details.cache_write_tokens",
    "input_tokens_details.cache_write_tokens",
    "input_token_details.cache_creation",
    "cache_creation_input_tokens",
    "cache_write_tokens",
)
_REASONING = (
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "output_tokens_details.thinking_tokens",  # Anthropic
    "output_token_details.reasoning",
    "output_reasoning_tokens",  # Pydantic AI 2
    "details.reasoning_tokens",  # Pydantic AI 1
)
_INPUT_AND_OUTPUT = (
    ("prompt_tokens", "completion_tokens"),
    ("prompt_tokens", "total_tokens"),  # embeddings have no output
    ("input_tokens", "output_tokens"),
    ("request_tokens", "response_tokens"),  # Pydantic AI before 1
)
_HOLDERS = ("usage", "usage_metadata")
_APART = ("compaction", "advisor_message")
"""Anthropic's iterations that its own totals leave out."""

UNDERSTOOD = (
    "the usage, or the whole response, of OpenAI, Anthropic, Pydantic AI, LangChain or litellm; "
    "or say it yourself: unit.spend(tokens=…, cost=…)"
)


@dataclass(frozen=True, slots=True)
class LlmUsage:
    """What one or more calls of a model used.

    Attributes:
        input_tokens: All input, with what was read from and written to the cache.
        output_tokens: All output, reasoning included.
        cached_tokens: The part of the input that was read from the cache.
        cache_write_tokens: The part of the input that was written to the cache.
        reasoning_tokens: The part of the output that was reasoning.
        requests: Calls of the model.
        model: Its name, as far as known.
        cost: US dollars, where the library or the provider says them itself.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 1
    model: str | None = None
    cost: float | None = None

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


def is_llm_usage(value: object) -> bool:
    """Whether it has the fields of a usage, or of a response that holds one."""
    return _names(value) is not None or any(_names(_get(value, holder)) is not None for holder in _HOLDERS)


def read_llm_usage(usage: object, model: str | None = None) -> LlmUsage:
    """What a usage object, or a whole response, says; None counts as 0.

    Args:
        usage: The usage or the response of OpenAI (chat completions, responses, embeddings), Anthropic, Pydantic AI
            (`result.usage` may still be a method, called or not), LangChain or litellm; an object or a dict.
        model: The model's name; the response's own if None.

    Raises:
        InvalidInput: it is none of these, or an amount in it is no whole number of at least 0.
    """
    usage = _called(usage)
    names = _names(usage)
    if names is None:
        return _read_response(usage, model)
    input_tokens = _amount(usage, names[0])
    output_tokens = _amount(usage, names[1]) if names[1] != "total_tokens" else 0
    cached, written = _largest(usage, _CACHED), _largest(usage, _CACHE_WRITTEN)
    # LangChain has Anthropic's writes under these names instead, one for each lifetime.
    by_lifetime = (_amount(usage, f"input_token_details.ephemeral_{time}_input_tokens") for time in ("5m", "1h"))
    written = max(written, sum(by_lifetime))
    if _leaves_out_cache(usage, names[0]):
        input_tokens += cached + written
        apart = [read_llm_usage(one) for one in _get(usage, "iterations") or () if _get(one, "type") in _APART]
        input_tokens += sum(one.input_tokens for one in apart)
        output_tokens += sum(one.output_tokens for one in apart)
        cached += sum(one.cached_tokens for one in apart)
        written += sum(one.cache_write_tokens for one in apart)
    reasoning = _largest(usage, _REASONING)
    # A part that is larger than its whole was left out of it. Some providers have reasoning in the total only.
    input_tokens = max(input_tokens, cached + written)
    output_tokens = max(output_tokens, reasoning, _amount(usage, "total_tokens") - input_tokens)
    return LlmUsage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        requests=_amount(usage, "requests") if _get(usage, "requests") is not None else 1,
        model=model,
        cost=_dollars(_get(usage, "cost")),
    )


def _read_response(response: object, model: str | None) -> LlmUsage:
    for holder in _HOLDERS:
        inner = _called(_get(response, holder))
        if _names(inner) is not None:
            read = read_llm_usage(inner, model or _model_of(response))
            charged = _dollars(_get(response, "_hidden_params.response_cost"))  # litellm's
            return read if charged is None else replace(read, cost=charged)
    # Not its repr: a response is long, and what is in it is nobody's business in a log.
    raise InvalidInput(f"unit.spend: got a {_type_name(response)}; expected {UNDERSTOOD}")


def _model_of(response: object) -> str | None:
    paths = ("model", "model_name", "response_metadata.model_name", "response_metadata.model", "response.model_name")
    return next((name for name in (_get(response, path) for path in paths) if isinstance(name, str) and name), None)


def _leaves_out_cache(usage: object, input_name: str) -> bool:
    """Whether it is Anthropic's, the only one whose input tokens do not include those of the cache."""
    named = any(_has(usage, name) for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
    return named and input_name == "input_tokens" and not _has(usage, "input_tokens_details")


def _names(usage: object) -> tuple[str, str] | None:
    """The names that it has for input and output."""
    return next((names for names in _INPUT_AND_OUTPUT if all(_has(usage, name) for name in names)), None)


def _called(usage: object) -> object:
    # Pydantic AI's `result.usage` was a method once; its usages of today can still be called, but are no methods.
    return usage() if inspect.ismethod(usage) else usage


def _has(source: object, name: str) -> bool:
    return name in source if isinstance(source, Mapping) else hasattr(source, name)


def _get(source: object, path: str) -> Any:
    for name in path.split("."):
        source = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return source


def _amount(usage: object, path: str) -> int:
    value = _get(usage, path)
    if value is None:
        return 0
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or value < 0:
        raise InvalidInput.of(f"{_type_name(usage)}.{path}", value, "a whole number of at least 0")
    return int(value)


def _largest(usage: object, paths: tuple[str, ...]) -> int:
    return max(_amount(usage, path) for path in paths)


def _dollars(value: object) -> float | None:
    # What is no amount of dollars (some providers have an object here) is no reason to lose the tokens beside it.
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value >= 0 else None  # type: ignore[arg-type, operator]


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
