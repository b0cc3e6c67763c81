"""The LLM agent: its conversation, budget and handoffs, with the library's own test models and a local server."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import token_agent
from conversation import DROPPED, compacted, size
from hypothesis import given
from hypothesis import strategies as st
from model_servers import MODEL_NAME, model_in_environment
from pydantic import PrivateAttr
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from token_agent import TokenAgent

from perpetual_blocks import Budget, Limit, Unit
from perpetual_blocks.cli.demos.model_server import ModelService
from perpetual_blocks.testing import ManualClock, run_chain, run_session

LINE = "The machine {name} has a part, number {number}.\n"
UNLIMITED = Budget()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six documents of 250 lines: each is read in two pieces."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.txt").write_text("".join(LINE.format(name=name, number=n) for n in range(250)))
    return folder


class Scripted(TokenAgent):
    """Its model is a function, which notes what it is asked: it reads the document's beginning, and answers."""

    _asked: list[list[ModelMessage]] = PrivateAttr(default_factory=list)

    def language_model(self, unit: Unit) -> Agent[None, str]:
        agent = super().language_model(unit)
        agent.model = FunctionModel(stream_function=self._say)
        return agent

    async def _say(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, Any]]:
        self._asked.append(list(messages))
        if isinstance(messages[-1].parts[-1], ToolReturnPart):
            yield "It is a machine. "
            yield "It has parts.\n\nOpen question: who built it?"
            return
        tools = {tool.name for tool in info.function_tools}
        name = next(name for name in re.findall(r"\w+", prompt(messages)) if name in tools)
        yield {0: DeltaToolCall(name, "{}")}


def prompt(messages: list[ModelMessage]) -> str:
    """The latest prompt of a conversation."""
    parts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return str(parts[-1].content)


def prompts(messages: list[ModelMessage]) -> list[str]:
    """All of them, the first line of each."""
    parts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return [str(part.content).partition("\n")[0] for part in parts]


# With the library's test models ---------------------------------------------------------------------------------------


def test_every_document_has_a_finding(corpus: Path, tmp_path: Path) -> None:
    """The library's test model calls every tool, whatever they do; its usage is what the session has spent."""
    run = run_session(TokenAgent(corpus=corpus, findings=tmp_path / "out", model="test"))

    assert (run.state, run.errors) == ("Finished", {})
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{name}.txt.md" for name in "abcdef"}
    assert run.results["a.txt"] == {"finding": (tmp_path / "out" / "a.txt.md").as_posix()}
    assert run.usage["calls"] == 7, "it calls the tools once in a conversation, and answers each prompt"
    assert run.usage["tokens"] > 0


def test_a_session_is_one_conversation_and_the_next_begins_with_its_handoff(corpus: Path, tmp_path: Path) -> None:
    """The model knows what it has read before; a new session knows it from the handoff and the findings."""
    agent = Scripted(model="test", corpus=corpus, findings=tmp_path / "out")
    first = run_session(agent, stop_after=2)
    read = [f"Read the document {name}.txt with read_document, to its end, and say what you find." for name in "abc"]
    assert [prompts(messages) for messages in agent._asked] == [read[:1]] * 2 + [read[:2]] * 2

    del agent._asked[:]
    second = first.go_on(stop_after=1)
    assert second.units == ("c.txt",)
    heading = "# tested · session 1 · Wrapped"
    assert [prompts(messages) for messages in agent._asked] == [[heading]] * 2 + [[heading, read[2]]] * 2
    begun = prompt(agent._asked[0])
    assert begun.startswith(first.handoff.partition("<details>")[0])
    assert "- a.txt: It is a machine" in begun
    assert "- Open question: who built it?" in begun
    found = agent._asked[1][-1].parts[-1]
    assert isinstance(found, ToolReturnPart)
    assert found.content == "- a.txt: It is a machine\n- b.txt: It is a machine"


def test_the_conversation_is_no_part_of_the_handoff(corpus: Path, tmp_path: Path) -> None:
    """It is in the context, which the handoff would repeat to the next session's model."""
    run = run_session(Scripted(model="test", corpus=corpus, findings=tmp_path / "out"), stop_after=1)
    assert "has a part, number" in str(run.context)
    assert "has a part, number" not in run.handoff


def test_a_long_conversation_stays_within_half_of_the_window(corpus: Path, tmp_path: Path) -> None:
    """What was read of earlier documents is dropped, what was said of them stays."""
    agent = Scripted(model="test", corpus=corpus, findings=tmp_path / "out", window=7_000)
    run = run_session(agent)

    assert run.state == "Finished"
    assert max(size(messages) for messages in agent._asked) <= 3_500
    last = agent._asked[-1]
    assert len(prompts(last)) == 6
    returns = [part.content for message in last for part in message.parts if isinstance(part, ToolReturnPart)]
    assert returns[0] == DROPPED
    assert "machine f has a part" in returns[-1]


def test_findings_are_committed_if_that_is_wanted(tmp_path: Path) -> None:
    """The folder that they are in, or nothing."""
    assert list(TokenAgent(findings=tmp_path, commit=True).commit_changes()) == [tmp_path]
    assert list(TokenAgent(findings=tmp_path).commit_changes()) == []


# The conversation by itself -------------------------------------------------------------------------------------------


def turn(number: int, reads: list[int]) -> list[ModelMessage]:
    """A turn with so many calls, each with a return of so many characters."""
    messages: list[ModelMessage] = [ModelRequest([UserPromptPart(f"prompt {number}")])]
    for place, length in enumerate(reads):
        call = f"{number}-{place}"
        messages.append(ModelResponse([ToolCallPart("read", "{}", call)]))
        messages.append(ModelRequest([ToolReturnPart("read", "x" * length, call)]))
    return [*messages, ModelResponse([TextPart(f"answer {number}")])]


@given(st.lists(st.lists(st.integers(0, 3000), max_size=4), min_size=1, max_size=8), st.integers(0, 3000))
def test_compaction_keeps_what_must_stay(reads: list[list[int]], most: int) -> None:
    """Calls and their returns stay together and in order; the first and the latest prompt, and what the model has not
    seen yet, stay as they are; nothing is dropped that has room; what is compact stays so."""
    messages = [message for number, lengths in enumerate(reads) for message in turn(number, lengths)][:-1]
    kept = compacted(messages, most)

    calls = [part.tool_call_id for message in kept for part in message.parts if isinstance(part, ToolCallPart)]
    returns = [part.tool_call_id for message in kept for part in message.parts if isinstance(part, ToolReturnPart)]
    assert calls == returns
    assert prompts(kept)[0] == "prompt 0"
    assert prompts(kept)[-1] == prompts(messages)[-1]
    assert kept[-1] == messages[-1]
    assert compacted(kept, most) == kept
    if size(messages) <= most:
        assert kept == messages
    elif size(kept) > most:  # nothing is left that could go
        assert len(prompts(kept)) <= 2
        left = [part.content for one in kept[:-1] for part in one.parts if isinstance(part, ToolReturnPart)]
        assert set(left) <= {DROPPED}


# With a real server ---------------------------------------------------------------------------------------------------


def test_budgets_are_used_to_their_end_and_never_overrun(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is spent, over all sessions, is what the server has counted; it has had nothing to refuse."""
    service = ModelService(window=12_000, prices=(1.0, 1.0))
    with model_in_environment(service, monkeypatch):
        agent = TokenAgent(corpus=corpus, findings=tmp_path / "out", model=MODEL_NAME, window=12_000)
        runs = run_chain(agent, budget=Budget(tokens=25_000))

    assert runs[-1].state == "Finished"
    assert len(runs) >= 3
    assert all(run.usage["tokens"] <= 25_000 for run in runs)
    assert {run.reason.code for run in runs[:-1]} == {"budget:tokens"}
    assert sum(run.usage["calls"] for run in runs) == service.answered
    assert sum(run.usage["tokens"] for run in runs) == pytest.approx(service.billed * 1_000_000)
    assert service.refused.total() == 0


def test_findings_are_the_same_in_any_number_of_sessions(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sessions end, changes nothing of what is found."""
    found = []
    with model_in_environment(ModelService(), monkeypatch):
        for number, budget in enumerate((UNLIMITED, Budget(tokens=25_000))):
            agent = TokenAgent(corpus=corpus, findings=tmp_path / str(number), model=MODEL_NAME, window=12_000)
            assert run_chain(agent, budget=budget)[-1].state == "Finished"
            found.append({file.name: file.read_text() for file in agent.findings.iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_a_rate_limit_that_lasts_is_waited_for_by_the_chain(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session wraps until then, no attempt is counted, and what was answered is paid for."""
    clock = ManualClock()
    monkeypatch.setattr(token_agent, "time", SimpleNamespace(time=clock.now))
    service = ModelService(requests=4, seconds=3600, now=clock.now)
    budget = Budget(Limit("calls", 100, scope="window", window="hour"))
    with model_in_environment(service, monkeypatch):
        agent = TokenAgent(corpus=corpus, findings=tmp_path / "out", model=MODEL_NAME)
        first = run_session(agent, budget=budget, clock=clock)
        second = first.go_on()

    assert (first.state, first.reason.code, len(first.results)) == ("Wrapped", "budget:calls", 1)
    assert first.items["b.txt"].next_action == "ask again when the rate limit allows it"
    assert first.usage["calls"] == 4
    assert "b.txt" in second.units
    assert {item.failures for item in second.items.values()} == {0}


def test_what_the_models_window_does_not_hold_is_said_of_the_unit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that was told of a larger window than there is."""
    with model_in_environment(ModelService(window=2_000), monkeypatch):
        agent = TokenAgent(corpus=corpus, findings=tmp_path / "out", model=MODEL_NAME, window=200_000)
        run = run_session(agent, stop_after=1)

    assert run.results == {}
    assert "context_length_exceeded" in run.errors["a.txt"]


def test_sessions_are_as_long_as_a_unit_costs_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that grows makes each unit dearer, and a new one costs a handoff: sessions get shorter than their
    budget as soon as both are known."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(45):
        (corpus / f"{number:02}.txt").write_text("".join(LINE.format(name="x", number=n) for n in range(30)))
    with model_in_environment(ModelService(), monkeypatch):
        agent = TokenAgent(corpus=corpus, findings=tmp_path / "out", model=MODEL_NAME)
        runs = run_chain(agent, budget=Budget(tokens=150_000))

    codes = [run.reason.code for run in runs]
    assert codes[:2] == ["budget:tokens"] * 2
    assert "session-length" in codes
    short = [run for run in runs if run.reason.code == "session-length"]
    each = [run.usage["tokens"] / len(run.units) for run in (runs[0], *short)]
    assert max(each[1:]) < each[0]
