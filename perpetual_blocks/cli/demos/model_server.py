"""A small language model behind an HTTP server as OpenAI's: deterministic, counted, and with limits that are enforced.

`/v1/chat/completions`, streamed or not, with tools; `/v1/models`. The model reads with the tools that it is given, and
answers with the best sentences of what it has read.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any, ClassVar

MODEL = "extractive"
BYTES_PER_TOKEN, MESSAGE_TOKENS = 4, 4
SENTENCES = 3

_CONTINUE = re.compile(r"continue with (\w+)\((\{.*\})\)\s*$")
_SENTENCE = re.compile(r"[A-Z][\w ,;:'()/-]{30,400}[.!?]")
_WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answers: an HTTP status, a body, and headers of its own."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class ModelService:
    """The model, and what is allowed of it.

    Args:
        window: How many tokens a prompt and its answer may have together.
        requests: How many requests are allowed in a window of `seconds`; as many as there are if None.
        credit: US dollars that may be spent; as many as it takes if None.
        prices: US dollars for a million tokens, in and out.
        now: Seconds of any clock that goes on.

    Attributes:
        credit: US dollars that may be spent in all; None for as many as it takes.
        answered: How many requests were answered.
        billed: US dollars for them.
        refused: How many requests were refused, by the error's code.
    """

    def __init__(
        self,
        *,
        window: int = 128_000,
        requests: int | None = None,
        seconds: float = 60.0,
        credit: float | None = None,
        prices: tuple[float, float] = (0.0, 0.0),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window = window
        self._requests, self._seconds = requests, seconds
        self.credit = credit
        self._prices = prices
        self._now = now
        self._lock = Lock()
        self._resets_at, self._used = 0.0, 0
        self.answered = 0
        self.billed = 0.0
        self.refused: Counter[str] = Counter()

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """A chat completion, or why there is none, as OpenAI says it."""
        with self._lock:
            return self._refusal(request) or self._completion(request)

    def pay(self, dollars: float) -> None:
        """Adds to the credit."""
        with self._lock:
            self.credit = (self.credit or 0.0) + dollars

    def _refusal(self, request: Mapping[str, Any]) -> Answer | None:
        if self._requests is not None:
            if self._now() >= self._resets_at:
                self._resets_at, self._used = self._now() + self._seconds, 0
            if self._used >= self._requests:
                after = math.ceil(max(0.0, self._resets_at - self._now()))
                why = f"Rate limit reached: {self._requests} requests in {self._seconds:g} s"
                return self._refuse(429, "rate_limit_exceeded", why, {"retry-after": str(after)})
            self._used += 1
        prompt, wanted = prompt_tokens(request), most_tokens(request) or 0
        if prompt + wanted > self._window:
            asked = f"you requested {prompt + wanted} tokens ({prompt} in the messages, {wanted} in the completion)"
            why = f"This model's maximum context length is {self._window} tokens. However, {asked}."
            return self._refuse(400, "context_length_exceeded", why)
        if self.credit is not None and self.billed + self._price(prompt, wanted) > self.credit:
            why = f"Your credit of ${self.credit:g} is used up: ${self.billed:.6f} were billed"
            return self._refuse(402, "insufficient_quota", why)
        return None

    def _refuse(self, status: int, code: str, why: str, headers: Mapping[str, str] | None = None) -> Answer:
        self.refused[code] += 1
        error = {"message": why, "type": "invalid_request_error", "param": None, "code": code}
        return Answer(status, {"error": error}, headers or {})

    def _completion(self, request: Mapping[str, Any]) -> Answer:
        self.answered += 1
        message = next_message(request, self.answered)
        why = "tool_calls" if "tool_calls" in message else "stop"
        tokens = count_tokens(message["content"] or json.dumps(message["tool_calls"]))
        most = most_tokens(request)
        if most is not None and tokens > most and message["content"]:
            message["content"], tokens, why = message["content"][: most * BYTES_PER_TOKEN], most, "length"
        prompt = prompt_tokens(request)
        self.billed += self._price(prompt, tokens)
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        choice = {"index": 0, "message": message, "finish_reason": why, "logprobs": None}
        body = {
            "id": f"chatcmpl-{self.answered}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.get("model", MODEL),
            "choices": [choice],
            "usage": usage,
        }
        return Answer(200, body)

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self._prices[0] + tokens_out * self._prices[1]) / 1_000_000


def count_tokens(text: str) -> int:
    """The tokens of a text: one for each four bytes, as a rule of thumb has it."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def prompt_tokens(request: Mapping[str, Any]) -> int:
    """The tokens of a request: its messages, the calls in them, and the tools that it describes."""
    messages = request["messages"]
    texts = [_text(message) + json.dumps(message.get("tool_calls") or "") for message in messages]
    tools = count_tokens(json.dumps(request["tools"])) if request.get("tools") else 0
    return sum(MESSAGE_TOKENS + count_tokens(text) for text in texts) + tools


def most_tokens(request: Mapping[str, Any]) -> int | None:
    """How long the answer may be, by the name of today or the one before; None for any length."""
    return request.get("max_completion_tokens") or request.get("max_tokens")


def next_message(request: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the model says next: it calls the tool that the prompt names, goes on as the tool tells it, and answers.

    What came before the latest prompt changes nothing, so that the same document has the same summary in any
    conversation.
    """
    *_, begin = (place for place, message in enumerate(request["messages"]) if message["role"] == "user")
    prompt, *turn = request["messages"][begin:]
    returns = [_text(message) for message in turn if message["role"] == "tool"]
    names = [tool["function"]["name"] for tool in request.get("tools") or ()]
    call: tuple[str, str] | None = None
    if returns:
        told = _CONTINUE.search(returns[-1])
        call = (told[1], told[2]) if told and told[1] in names else None
    elif named := [name for name in names if name in _text(prompt)]:
        call = (named[0], "{}")
    if call is None:
        return {"role": "assistant", "content": summary("\n".join(returns) or _text(prompt))}
    function = {"name": call[0], "arguments": call[1]}
    calls = [{"id": f"call-{number}", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def summary(text: str) -> str:
    """The sentences whose words the text repeats most, in their order (Luhn 1958)."""
    sentences = list(dict.fromkeys(_SENTENCE.findall(" ".join(text.split()))))
    frequency = Counter(_WORD.findall(text.lower()))

    def weight(sentence: str) -> float:
        words = _WORD.findall(sentence.lower())
        return sum(frequency[word] for word in words) / len(words) if len(words) > 4 else 0.0

    best = sorted(range(len(sentences)), key=lambda place: -weight(sentences[place]))[:SENTENCES]
    return " ".join(sentences[place] for place in sorted(best)) or "It says nothing in sentences."


def chunks(completion: Mapping[str, Any], *, with_usage: bool) -> Iterator[dict[str, Any]]:
    """A completion as the parts in which it is streamed."""
    message = completion["choices"][0]["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if "tool_calls" in message:
        deltas += [{"tool_calls": [{"index": place, **call}]} for place, call in enumerate(message["tool_calls"])]
    else:
        deltas += [{"content": word} for word in re.findall(r"\S+\s*", message["content"])]
    frame = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for delta in deltas:
        yield frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": completion["choices"][0]["finish_reason"]}]}
    if with_usage:
        yield frame | {"choices": [], "usage": completion["usage"]}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


class ModelHandler(BaseHTTPRequestHandler):
    """Speaks HTTP for a service: `type("Handler", (ModelHandler,), {"service": ModelService()})`."""

    service: ClassVar[ModelService]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "perpetual-blocks"}]
        self._answer(Answer(200, {"object": "list", "data": models}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = self.service.answer(request)
        if answer.status == 200 and request.get("stream"):
            with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            self._stream(chunks(answer.body, with_usage=with_usage))
        else:
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        self._begin(answer.status, {**answer.headers, "content-type": "application/json", "content-length": len(body)})
        self.wfile.write(body)

    def _stream(self, parts: Iterable[Mapping[str, Any]]) -> None:
        self._begin(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        for text in (*(json.dumps(part) for part in parts), "[DONE]"):
            event = f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _begin(self, status: int, headers: Mapping[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Says nothing: the demo's screen is for the chain."""
