"""What models cost, as the price list of genai-prices says; the extra `prices` installs it."""

import re

from perpetual_blocks.work.llm_usage import LlmUsage


def price(usage: LlmUsage) -> float | None:
    """The usage in US dollars at list prices; None where the model or its price per token is not known.

    The list is the one that was installed: nothing is fetched. A usage of several calls is priced as if it were one,
    which is never less where long inputs cost more. All of it is priced as that one model's.
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:
        return None
    if usage.model is None:
        return None
    amounts = Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    for provider, model in _readings(usage.model):
        try:
            found = calc_price(amounts, model, provider_id=provider)
        except LookupError:
            continue
        # The list has models whose prices it does not know, and models that are paid by the hour: that no token of
        # theirs has a price does not make them free.
        has_token_price = getattr(found.model_price, "input_mtok", None) is not None
        return float(found.total_price) if has_token_price else None
    return None


def _readings(name: str) -> list[tuple[str | None, str]]:
    """The provider and model that a name may mean: `openai/gpt-4o` and `openai:gpt-4o` name both, `gpt-4o` does not."""
    provider, *model = re.split("[/:]", name, maxsplit=1)
    return [*((provider, one) for one in model), (None, name)]
