"""Dollars: the price list of genai-prices, asked with what we know of a usage."""

import builtins
import threading
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.adapters.prices import price
from perpetual_blocks.work.llm_usage import LlmUsage

MILLION = 1_000_000


def test_the_price_is_that_of_the_list() -> None:
    """Input, cached input, cache writes and output, each at its own price."""
    usage = LlmUsage(100, 60, cached_tokens=70, cache_write_tokens=20, reasoning_tokens=40, model="claude-sonnet-4-5")

    listed = calc_price(
        Usage(input_tokens=100, cache_read_tokens=70, cache_write_tokens=20, output_tokens=60),
        "claude-sonnet-4-5",
        provider_id="anthropic",
    )

    assert price(usage) == pytest.approx(float(listed.total_price))
    assert price(usage) == pytest.approx((10 * 3 + 70 * 0.3 + 20 * 3.75 + 60 * 15) / MILLION)


def test_cached_tokens_are_cheaper() -> None:
    """Input that was read from the cache costs less than input that was not, but it does cost."""
    fresh = price(LlmUsage(MILLION, 0, model="gpt-4o"))
    cached = price(LlmUsage(MILLION, 0, cached_tokens=MILLION, model="gpt-4o"))

    assert fresh is not None
    assert cached is not None
    assert 0 < cached < fresh


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("openai/gpt-4o", "gpt-4o"),
        ("openai:gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("anthropic:claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("anthropic/claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("google-gla:gemini-2.5-flash", "gemini-2.5-flash"),
        ("openrouter/openai/gpt-4o", "gpt-4o"),
    ],
)
def test_names_with_a_provider_are_understood(name: str, plain: str) -> None:
    """As litellm, OpenRouter and Pydantic AI write them."""
    amount = price(LlmUsage(1000, 100, model=name))

    assert amount is not None
    assert amount == price(LlmUsage(1000, 100, model=plain))


@pytest.mark.parametrize(
    "name", [None, "", "no-such-model", "nobody/gpt-none", "ollama/llama3.2:3b", "qwen3:8b", ":", "/"]
)
def test_an_unknown_model_has_no_price(name: str | None) -> None:
    """None, which is not 0."""
    assert price(LlmUsage(1000, 100, model=name)) is None


def test_a_model_without_a_price_for_tokens_is_not_free() -> None:
    """What is paid by the hour, and what the list has without prices."""
    assert price(LlmUsage(1000, 100, model="groq/whisper-large-v3-turbo")) is None


def test_nothing_used_costs_nothing() -> None:
    """Of a model that is known."""
    assert price(LlmUsage(0, 0, model="gpt-4o")) == 0.0


def test_without_the_library_no_price_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `prices` may be missing."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("genai_prices"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)

    assert price(LlmUsage(1000, 100, model="gpt-4o")) is None


def test_prices_are_not_fetched() -> None:
    """No thread is started that would ask the network for a newer list."""
    before = set(threading.enumerate())

    price(LlmUsage(1000, 100, model="gpt-4o"))

    assert set(threading.enumerate()) == before


TOKENS = st.integers(0, 10**9)


@given(
    fresh=TOKENS,
    cached=TOKENS,
    written=TOKENS,
    said=TOKENS,
    thought=TOKENS,
    model=st.sampled_from(["gpt-4o", "gpt-5", "claude-sonnet-4-5", "gemini-2.5-flash", "deepseek-chat"]),
)
def test_every_usage_of_a_known_model_has_a_price(
    fresh: int, cached: int, written: int, said: int, thought: int, model: str
) -> None:
    """Whatever the proportions are; and using more does not cost less."""
    amount = price(LlmUsage(fresh + cached + written, said + thought, cached, written, thought, model=model))
    more = price(LlmUsage(fresh + cached + written, said + thought + 1000, cached, written, thought, model=model))

    assert amount is not None
    assert more is not None
    assert 0 <= amount < more
