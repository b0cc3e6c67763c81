"""A conversation with a model as it is kept between units: how large it is, and how it is made smaller.

A turn is a user's prompt with all that follows until the next one. What a tool has returned is most of a conversation,
and can be asked for again; so it goes first, and the conclusions that the model drew from it stay.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart, UserPromptPart

CHARACTERS_PER_TOKEN = 3
"""Fewer than most texts have, so that a size errs on the safe side."""

MESSAGE_TOKENS = 8
"""What a message costs besides its text."""

DROPPED = "(dropped to save room; call the tool again if you need it)"


def size(messages: Sequence[ModelMessage]) -> int:
    """About how many tokens the messages have; rather too many than too few."""
    parts = [part for message in messages for part in message.parts]
    texts = [getattr(part, "content", None) or getattr(part, "args", None) or "" for part in parts]
    characters = sum(len(text if isinstance(text, str) else repr(text)) for text in texts)
    return characters // CHARACTERS_PER_TOKEN + MESSAGE_TOKENS * len(texts)


def compacted(messages: Sequence[ModelMessage], most: int) -> list[ModelMessage]:
    """The conversation in at most so many tokens, as far as that is possible.

    First go what tools have returned in earlier turns, the oldest first; then earlier turns, but for the first one,
    which a session's handoff is in; then what tools have returned in this turn, but for the latest. A call always
    keeps its return: providers refuse one without the other.
    """
    kept = list(messages)
    here = (_turns(kept) or [0])[-1]
    for place in range(here):
        if size(kept) > most:
            kept[place] = _without_returns(kept[place])
    while size(kept) > most and len(turns := _turns(kept)) > 2:
        del kept[turns[1] : turns[2]]
    for place in range((_turns(kept) or [0])[-1], len(kept) - 1):
        if size(kept) > most:
            kept[place] = _without_returns(kept[place])
    return kept


def _turns(messages: Sequence[ModelMessage]) -> list[int]:
    """Where each turn begins."""
    return [
        place
        for place, message in enumerate(messages)
        if isinstance(message, ModelRequest) and any(isinstance(part, UserPromptPart) for part in message.parts)
    ]


def _without_returns(message: ModelMessage) -> ModelMessage:
    if not isinstance(message, ModelRequest):
        return message
    parts = [
        ToolReturnPart(part.tool_name, DROPPED, part.tool_call_id, timestamp=part.timestamp)
        if isinstance(part, ToolReturnPart)
        else part
        for part in message.parts
    ]
    return replace(message, parts=parts)
