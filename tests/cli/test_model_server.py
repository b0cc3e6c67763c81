"""The demos' model server, by the client of OpenAI's own library."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from model_servers import KEY, model_server

from perpetual_blocks.cli.demos.model_server import ModelService, count_tokens, prompt_tokens, summary

openai = pytest.importorskip("openai")

TEXT = "The clock of the tower strikes every hour. The clock is old and the tower is older. Nobody knows who built it."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_document",
            "description": "Read.",
            "parameters": {"type": "object", "properties": {"start": {"type": "integer"}}},
        },
    }
]


def asks(content: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"model": "extractive", "messages": [{"role": "user", "content": content}], **more}


@pytest.fixture
def service() -> ModelService:
    """A model with a small window, at a dollar for a million tokens in and ten for a million out."""
    return ModelService(window=1000, prices=(1.0, 10.0))


@pytest.fixture
def client(service: ModelService) -> Iterator[Any]:
    """OpenAI's client, which asks once and not again."""
    with model_server(service) as url, openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


def test_it_answers_with_sentences_of_the_prompt_and_counts_them(client: Any, service: ModelService) -> None:
    """The usage is what the request and the answer have, and what is billed is their price."""
    answer = client.chat.completions.create(**asks())

    said = answer.choices[0].message.content
    assert said == summary(TEXT)
    assert all(sentence in TEXT for sentence in said.split(". "))
    assert answer.usage.prompt_tokens == prompt_tokens(asks())
    assert answer.usage.completion_tokens == count_tokens(said)
    assert service.billed == pytest.approx((answer.usage.prompt_tokens + 10 * answer.usage.completion_tokens) / 1e6)
    assert (service.answered, service.refused.total()) == (1, 0)


def test_a_streamed_answer_is_the_same(client: Any) -> None:
    """Word by word, with the usage in the last part if the client wants it."""
    whole = client.chat.completions.create(**asks())
    parts = list(client.chat.completions.create(**asks(), stream=True, stream_options={"include_usage": True}))

    words = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    assert len(words) > 5
    assert "".join(words) == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    assert parts[-2].choices[0].finish_reason == "stop"
    assert all(part.usage is None for part in client.chat.completions.create(**asks(), stream=True))


def test_it_calls_the_tool_that_the_prompt_names_until_all_is_read(client: Any) -> None:
    """It goes on where the tool says so, and then answers with what it has read, whatever came before the prompt."""
    earlier = [{"role": "user", "content": "The weather was fine in all of the years."}]
    messages: list[dict[str, Any]] = [*earlier, {"role": "user", "content": "Read it with read_document."}]
    calls = []
    for returned in ('The clock strikes every hour.\ncontinue with read_document({"start": 2})', TEXT):
        answer = client.chat.completions.create(model="extractive", messages=messages, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        message = answer.choices[0].message
        calls.append((message.tool_calls[0].function.name, json.loads(message.tool_calls[0].function.arguments)))
        messages += [message.model_dump(exclude_none=True)]
        messages += [{"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": returned}]
    said = client.chat.completions.create(model="extractive", messages=messages, tools=TOOLS).choices[0].message

    assert calls == [("read_document", {}), ("read_document", {"start": 2})]
    assert said.tool_calls is None
    assert "tower" in said.content
    assert "weather" not in said.content


@pytest.mark.parametrize(("words", "wanted"), [(1000, 0), (10, 990)])
def test_what_its_window_does_not_hold_is_refused(client: Any, service: ModelService, words: int, wanted: int) -> None:
    """A prompt that is too long by itself, or with the answer that is wanted."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asks("word " * words, max_tokens=wanted or None))

    assert refused.value.code == "context_length_exceeded"
    assert (service.answered, service.billed, service.refused["context_length_exceeded"]) == (0, 0.0, 1)


def test_too_many_requests_are_refused_until_the_window_ends() -> None:
    """It says when that is, in whole seconds."""
    now = [100.0]
    service = ModelService(requests=2, seconds=10, now=lambda: now[0])
    answers = [service.answer(asks()) for _ in range(3)]
    now[0] += 2.5
    late = service.answer(asks())
    now[0] += 7.5
    assert [answer.status for answer in (*answers, late, service.answer(asks()))] == [200, 200, 429, 429, 200]
    assert answers[2].headers == {"retry-after": "10"}
    assert late.headers == {"retry-after": "8"}
    assert service.refused == {"rate_limit_exceeded": 2}


def test_a_credit_is_never_overdrawn() -> None:
    """402 as soon as the answer that is wanted would cost more than is left."""
    each = ModelService(prices=(1.0, 10.0))
    each.answer(asks(max_tokens=20))
    credit = each.billed * 3.5
    service = ModelService(prices=(1.0, 10.0), credit=credit)
    statuses = [service.answer(asks(max_tokens=20)).status for _ in range(5)]

    assert statuses == [200, 200, 200, 402, 402]
    assert 0 < service.billed <= credit
    assert service.refused == {"insufficient_quota": 2}


def test_an_answer_is_as_long_as_it_may_be(client: Any) -> None:
    """And says that it was cut."""
    answer = client.chat.completions.create(**asks(max_tokens=5))
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)
    assert answer.choices[0].message.content == summary(TEXT)[:20]


def test_it_lists_its_model(client: Any) -> None:
    """As clients ask for it."""
    assert [model.id for model in client.models.list()] == ["extractive"]
