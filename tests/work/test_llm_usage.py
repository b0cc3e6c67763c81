"""What a model used, whichever library says it; and what a unit makes of it.

The shapes below have been compared with the real classes of openai 3.57, anthropic 2.13, litellm 1.110, langchain-core
1.8 and pydantic-ai-slim 2.68, and with the sources of langchain-anthropic 1.7 and pydantic-ai-slim 1.50 and 0.4; what
OpenRouter and DeepSeek add has not been. Where a library is installed, its real classes are read as well.
"""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage, RunUsage
from support import one_line, some_item

from perpetual_blocks.budget.room import Room
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.work import Unit
from perpetual_blocks.work.llm_usage import LlmUsage, is_llm_usage, read_llm_usage

OPENAI_CHAT = {
    "completion_tokens": 60,
    "prompt_tokens": 100,
    "total_tokens": 160,
    "completion_tokens_details": {
        "accepted_prediction_tokens": 0,
        "audio_tokens": 0,
        "reasoning_tokens": 40,
        "rejected_prediction_tokens": 0,
    },
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 70},
}
OPENAI_RESPONSES = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 70, "cache_write_tokens": 20},
    "output_tokens": 60,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 160,
}
ANTHROPIC = {
    "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 20},
    "cache_creation_input_tokens": 20,
    "cache_read_input_tokens": 70,
    "inference_geo": None,
    "input_tokens": 10,
    "output_tokens": 60,
    "output_tokens_details": {"thinking_tokens": 40},
    "server_tool_use": None,
    "service_tier": "standard",
}
ANTHROPIC_ITERATION = {"input_tokens": 10, "output_tokens": 60, "cache_creation_input_tokens": 20}
ANTHROPIC_COMPACTED = {
    **ANTHROPIC,
    "iterations": [
        {**ANTHROPIC_ITERATION, "cache_read_input_tokens": 5, "type": "compaction"},
        {**ANTHROPIC_ITERATION, "cache_read_input_tokens": 5, "type": "advisor_message"},
        {**ANTHROPIC_ITERATION, "cache_read_input_tokens": 70, "type": "message"},
    ],
}
LITELLM_ANTHROPIC = {
    "completion_tokens": 60,
    "prompt_tokens": 100,
    "total_tokens": 160,
    "completion_tokens_details": {"reasoning_tokens": 40, "text_tokens": 20},
    "prompt_tokens_details": {"cache_write_tokens": 20, "cached_tokens": 70, "text_tokens": 10, "audio_tokens": None},
    "cache_creation_input_tokens": 20,
    "cache_read_input_tokens": 70,
    "iterations": None,
}
LANGCHAIN = {
    "input_tokens": 100,
    "output_tokens": 60,
    "total_tokens": 160,
    "input_token_details": {"cache_read": 70, "cache_creation": 20},
    "output_token_details": {"reasoning": 40},
}
LANGCHAIN_ANTHROPIC = {
    **LANGCHAIN,
    "input_token_details": {
        "cache_read": 70,
        "cache_creation": 0,
        "ephemeral_5m_input_tokens": 15,
        "ephemeral_1h_input_tokens": 5,
    },
}
OPENROUTER = {**OPENAI_CHAT, "cost": 0.0025, "cost_details": {"upstream_inference_cost": None}, "is_byok": False}
DEEPSEEK = {
    "completion_tokens": 60,
    "prompt_tokens": 100,
    "total_tokens": 160,
    "prompt_cache_hit_tokens": 70,
    "prompt_cache_miss_tokens": 30,
    "completion_tokens_details": {"reasoning_tokens": 40},
}
REASONING_IN_TOTAL_ONLY = {**OPENAI_CHAT, "completion_tokens": 20}
EMBEDDING = {"prompt_tokens": 100, "total_tokens": 100}
OLD_PYDANTIC_AI = {
    "requests": 3,
    "request_tokens": 100,
    "response_tokens": 20,
    "total_tokens": 160,
    "details": {"reasoning_tokens": 40},
}

ALL = LlmUsage(input_tokens=100, output_tokens=60, cached_tokens=70, cache_write_tokens=20, reasoning_tokens=40)
UNWRITTEN = replace(ALL, cache_write_tokens=0)
SHAPES: dict[str, tuple[dict[str, Any], LlmUsage]] = {
    "openai-chat": (OPENAI_CHAT, UNWRITTEN),
    "openai-responses": (OPENAI_RESPONSES, ALL),
    "openai-embedding": (EMBEDDING, LlmUsage(input_tokens=100, output_tokens=0)),
    "anthropic": (ANTHROPIC, ALL),
    "anthropic-compacted": (ANTHROPIC_COMPACTED, LlmUsage(170, 180, 80, 60, 40)),
    "litellm-anthropic": (LITELLM_ANTHROPIC, ALL),
    "langchain": (LANGCHAIN, ALL),
    "langchain-anthropic": (LANGCHAIN_ANTHROPIC, ALL),
    "openrouter": (OPENROUTER, replace(UNWRITTEN, cost=0.0025)),
    "deepseek": (DEEPSEEK, UNWRITTEN),
    "reasoning-in-total-only": (REASONING_IN_TOTAL_ONLY, UNWRITTEN),
    "pydantic-ai-0": (OLD_PYDANTIC_AI, LlmUsage(100, 60, reasoning_tokens=40, requests=3)),
}


def as_object(value: Any) -> Any:
    """The same with attributes in place of keys."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(one) for one in value] if isinstance(value, list) else value


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [dict, as_object])
@pytest.mark.parametrize("name", SHAPES)
def test_every_librarys_usage_is_read(name: str, form: Callable[[Any], Any]) -> None:
    """An object or a dict, input with the cached part and output with reasoning, each token once."""
    shape, expected = SHAPES[name]

    assert read_llm_usage(form(shape)) == expected
    assert is_llm_usage(form(shape))


@pytest.mark.parametrize("form", [dict, as_object])
@pytest.mark.parametrize("name", SHAPES)
def test_a_whole_response_knows_its_model(name: str, form: Callable[[Any], Any]) -> None:
    """A response is as good as its usage, and its model is known; a model that is named goes before it."""
    shape, expected = SHAPES[name]
    response = form({"id": "x", "model": "gpt-4o-2024-08-06", "usage": shape})

    assert read_llm_usage(response) == replace(expected, model="gpt-4o-2024-08-06")
    assert read_llm_usage(response, "gpt-4o").model == "gpt-4o"


def test_a_message_of_langchain_knows_its_model() -> None:
    """Usage and model of an AIMessage are under names of their own."""
    message = SimpleNamespace(content="", usage_metadata=LANGCHAIN, response_metadata={"model_name": "gpt-4o"})

    assert read_llm_usage(message) == replace(ALL, model="gpt-4o")


@pytest.mark.parametrize(("charged", "cost"), [(0.00225, 0.00225), (0.0, 0.0), (None, 0.5), (float("nan"), 0.5)])
def test_what_litellm_charged_is_the_cost(charged: float | None, cost: float) -> None:
    """The dollars that litellm has worked out go before those of the usage; none are no amount of dollars."""
    response = SimpleNamespace(
        model="gpt-4o", usage={**OPENAI_CHAT, "cost": 0.5}, _hidden_params={"response_cost": charged, "model_id": None}
    )

    assert read_llm_usage(response).cost == cost


@pytest.mark.parametrize("cost", [{"total_cost": 0.006}, "0.1", True, -1, float("nan"), float("inf"), None])
def test_a_cost_that_is_no_amount_of_dollars_is_unknown(cost: object) -> None:
    """It does not take the tokens with it."""
    assert read_llm_usage({**OPENAI_CHAT, "cost": cost}) == UNWRITTEN


def test_none_counts_as_nothing() -> None:
    """Anthropic's last event of a stream has no input, details may be missing."""
    delta = {"cache_creation_input_tokens": None, "cache_read_input_tokens": None, "input_tokens": None}

    assert read_llm_usage({**delta, "output_tokens": 5, "iterations": None}) == LlmUsage(0, 5)
    assert read_llm_usage({**OPENAI_CHAT, "prompt_tokens_details": None}).input_tokens == 100


def test_usages_of_pydantic_ai() -> None:
    """A request and a run of several, in today's classes, with the dollars that they know."""
    amounts = {"input_tokens": 100, "cache_read_tokens": 70, "cache_write_tokens": 20, "output_tokens": 60}
    request = RequestUsage(**amounts, output_reasoning_tokens=40, cost=Decimal("0.5"))
    run = RunUsage(**amounts, requests=3, details={"reasoning_tokens": 40})

    assert read_llm_usage(request) == replace(ALL, cost=0.5)
    assert read_llm_usage(run) == replace(ALL, requests=3)


def test_results_of_pydantic_ai() -> None:
    """A run's result and its last response, with the model's name."""
    result = Agent(TestModel(custom_output_text="one two three")).run_sync("Count.")
    used = result.usage

    read = read_llm_usage(result)

    assert (read.input_tokens, read.output_tokens) == (used.input_tokens, used.output_tokens)
    assert (read.requests, read.model) == (1, "test")
    assert read.total_tokens > 0
    assert read_llm_usage(result.response) == read_llm_usage(used, "test")


def test_usage_may_still_be_a_method() -> None:
    """In older versions of Pydantic AI it was; it is read uncalled too."""

    class Result:
        def usage(self) -> object:
            return as_object(OLD_PYDANTIC_AI)

    expected = LlmUsage(100, 60, reasoning_tokens=40, requests=3)

    assert read_llm_usage(Result()) == expected
    assert read_llm_usage(Result().usage) == expected


def real_openai() -> object:
    types = import_module("openai.types")
    return types.CompletionUsage.model_validate({**OPENAI_CHAT, "prompt_tokens_details": {"cached_tokens": 70}})


def real_responses() -> object:
    types = import_module("openai.types.responses")
    return types.ResponseUsage.model_validate(OPENAI_RESPONSES)


def real_anthropic() -> object:
    return import_module("anthropic.types").Usage.model_validate(ANTHROPIC)


def real_anthropic_beta() -> object:
    types = import_module("anthropic.types.beta")
    return types.BetaUsage.model_validate({**ANTHROPIC, "iterations": ANTHROPIC_COMPACTED["iterations"][2:]})


def real_langchain() -> object:
    return import_module("langchain_core.messages").AIMessage("", usage_metadata=LANGCHAIN)


@pytest.mark.parametrize("make", [real_openai, real_responses, real_anthropic, real_anthropic_beta, real_langchain])
def test_the_real_classes_are_read(make: Callable[[], object]) -> None:
    """The libraries' own objects."""
    assert read_llm_usage(make()) in (ALL, UNWRITTEN)


# What is none ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (None, "NoneType"),
        ("12 tokens", "str"),
        (12, "int"),
        ([OPENAI_CHAT], "list"),
        ({"usage": None, "model": "gpt-4o"}, "dict"),
        (SimpleNamespace(prompt_tokens=5), "types.SimpleNamespace"),
        (SimpleNamespace(usage=None), "types.SimpleNamespace"),
        (SimpleNamespace(usage_metadata=SimpleNamespace(prompt_token_count=5)), "types.SimpleNamespace"),
    ],
    ids=repr,
)
def test_what_is_no_usage_is_refused(value: object, type_name: str) -> None:
    """It is never counted as 0: the error names the type, what is understood, and what to do instead."""
    with pytest.raises(InvalidInput) as refused:
        read_llm_usage(value)

    one_line(refused.value, f"got a {type_name};", "OpenAI", "Anthropic", "unit.spend(tokens=…, cost=…)")


def test_what_a_response_says_is_not_in_the_error() -> None:
    """What a model wrote is long and private."""
    with pytest.raises(InvalidInput) as refused:
        read_llm_usage({"text": "private"})

    assert "private" not in str(refused.value)


@pytest.mark.parametrize(
    "value", [-1, 1.5, float("inf"), float("nan"), True, "5", pytest.param(object(), id="object")], ids=repr
)
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "cache_read_input_tokens", "requests"])
def test_amounts_that_are_none_are_refused(name: str, value: object) -> None:
    """Tokens and calls are whole numbers of at least 0; the error names the field."""
    with pytest.raises(InvalidInput) as refused:
        read_llm_usage({**ANTHROPIC, name: value})

    one_line(refused.value, f"dict.{name}", "a whole number of at least 0")


# No token is lost, none is counted twice ------------------------------------------------------------------------------

TOKENS = st.integers(0, 10**9)


@given(fresh=TOKENS, cached=TOKENS, written=TOKENS, said=TOKENS, thought=TOKENS)
def test_the_same_call_is_the_same_in_every_shape(
    fresh: int, cached: int, written: int, said: int, thought: int
) -> None:
    """One call of a model comes out the same, whichever library tells of it."""
    whole = {"in": fresh + cached + written, "out": said + thought}
    total = whole["in"] + whole["out"]
    chat = {
        "prompt_tokens": whole["in"],
        "completion_tokens": whole["out"],
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    amounts = {"input_tokens": whole["in"], "output_tokens": whole["out"]}
    shapes: list[object] = [
        chat,
        {**chat, "cache_read_input_tokens": cached, "cache_creation_input_tokens": written},
        {**chat, "completion_tokens": said},
        {
            **amounts,
            "total_tokens": total,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens_details": {"reasoning_tokens": thought},
        },
        {
            "input_tokens": fresh,
            "output_tokens": whole["out"],
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens_details": {"thinking_tokens": thought},
        },
        {
            **amounts,
            "input_token_details": {"cache_read": cached, "cache_creation": written},
            "output_token_details": {"reasoning": thought},
        },
        RequestUsage(**amounts, cache_read_tokens=cached, cache_write_tokens=written, output_reasoning_tokens=thought),
    ]

    read = {read_llm_usage(form(shape)) for shape in shapes for form in (lambda it: it, as_object)}

    assert read == {LlmUsage(whole["in"], whole["out"], cached, written, thought)}


ANY_AMOUNT = st.none() | TOKENS
DETAILS = st.none() | st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens", "cache_read", "reasoning"]), ANY_AMOUNT
)


@given(
    st.fixed_dictionaries(
        {"input_tokens": ANY_AMOUNT, "output_tokens": ANY_AMOUNT},
        optional={
            "total_tokens": ANY_AMOUNT,
            "cache_read_input_tokens": ANY_AMOUNT,
            "cache_creation_input_tokens": ANY_AMOUNT,
            "input_tokens_details": DETAILS,
            "input_token_details": DETAILS,
            "output_tokens_details": DETAILS,
            "output_token_details": DETAILS,
        },
    )
)
def test_however_the_fields_are_combined_no_token_is_lost(shape: dict[str, Any]) -> None:
    """A part never exceeds its whole, and the sum is at least every amount that was said."""
    read = read_llm_usage(shape)

    assert read.cached_tokens + read.cache_write_tokens <= read.input_tokens
    assert read.reasoning_tokens <= read.output_tokens
    assert read.total_tokens >= (shape["input_tokens"] or 0) + (shape["output_tokens"] or 0)
    assert read.total_tokens >= (shape.get("total_tokens") or 0)
    assert read == read_llm_usage(as_object(shape))


# A unit spends it -----------------------------------------------------------------------------------------------------


def a_cent_a_token(usage: LlmUsage) -> float | None:
    return usage.total_tokens / 100 if usage.model == "known" else None


def test_a_unit_spends_tokens_and_calls() -> None:
    """`unit.spend(reply.usage)`; what is known of the cost, too; calls add up."""
    unit = Unit(some_item(), {})

    unit.spend(as_object(ANTHROPIC))
    unit.spend({"usage": OPENROUTER})
    unit.spend(as_object(OLD_PYDANTIC_AI))
    unit.spend(tokens=1)

    assert unit.usage == {"tokens": 160 * 3 + 1, "calls": 5.0, "cost": 0.0025}


@pytest.mark.parametrize("needs_cost", [True, False])
def test_a_unit_prices_what_it_spends(needs_cost: bool) -> None:
    """The model is the response's or the one that is named; dollars that the usage says itself are not priced again."""
    unit = Unit(some_item(), {}, Room({"cost": 5.0}) if needs_cost else None, price=a_cent_a_token)

    unit.spend({"usage": OPENAI_CHAT, "model": "known"})
    unit.spend(as_object(OPENAI_CHAT), model="known")
    unit.spend(OPENROUTER, model="known")

    assert unit.usage == {"tokens": 480.0, "calls": 3.0, "cost": pytest.approx(3.2025)}


def test_an_unknown_price_is_not_counted_where_dollars_have_no_limit() -> None:
    """Tokens and calls are."""
    unit = Unit(some_item(), {}, price=a_cent_a_token)

    unit.spend(OPENAI_CHAT, model="new")

    assert unit.usage == {"tokens": 160.0, "calls": 1.0}


@pytest.mark.parametrize("price", [a_cent_a_token, None])
@pytest.mark.parametrize("model", ["new", None])
def test_an_unknown_price_is_no_free_call(price: Any, model: str | None) -> None:
    """Where dollars are limited it is an error that says what to do; what was used is recorded all the same."""
    unit = Unit(some_item(), {}, Room({"cost": 5.0}), price=price)

    with pytest.raises(InvalidInput) as refused:
        unit.spend(OPENAI_CHAT, model=model)

    one_line(refused.value, "unit.spend(model)", repr(model), "perpetual-blocks[prices]", "cost=…")
    assert unit.usage == {"tokens": 160.0, "calls": 1.0}


def test_what_is_named_goes_before_what_the_usage_says() -> None:
    """A caller who knows better is believed."""
    unit = Unit(some_item(), {}, Room({"cost": 5.0}), price=a_cent_a_token)

    unit.spend(OPENROUTER, model="known", cost=0.25, calls=2)

    assert unit.usage == {"tokens": 160.0, "calls": 2.0, "cost": 0.25}


def test_what_is_known_of_a_call_is_recorded_though_another_part_is_refused() -> None:
    """The call was made, whatever is wrong with its price, or with its usage."""
    bad_cost, bad_usage = Unit(some_item(), {}), Unit(some_item(), {}, price=a_cent_a_token)

    with pytest.raises(InvalidInput) as cost_refused:
        bad_cost.spend(OPENAI_CHAT, cost=float("nan"))
    with pytest.raises(InvalidInput) as usage_refused:
        bad_usage.spend(None, cost=0.5)

    one_line(cost_refused.value, "unit.spend.cost", "nan")
    one_line(usage_refused.value, "NoneType")
    assert bad_cost.usage == {"tokens": 160.0, "calls": 1.0}
    assert bad_usage.usage == {"cost": 0.5}


def test_a_response_without_usage_is_no_free_call() -> None:
    """A streamed response has None for its usage unless it was asked for: that is an error, not nothing."""
    unit = Unit(some_item(), {})

    with pytest.raises(InvalidInput) as refused:
        unit.spend(None)

    one_line(refused.value, "unit.spend", "NoneType", "tokens=…")


def test_a_model_without_its_usage_is_refused() -> None:
    """Input and output have different prices: of tokens alone none is known."""
    unit = Unit(some_item(), {}, price=a_cent_a_token)

    with pytest.raises(InvalidInput) as refused:
        unit.spend(tokens=5, model="known")

    one_line(refused.value, "unit.spend(model)", "'known'", "usage")
    assert unit.usage == {"tokens": 5.0}
