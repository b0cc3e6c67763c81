"""A handoff as it leaves: without secrets, as text for whoever comes next, and as a page for people."""

import json

from perpetual_blocks.handoff import Handoff, budget_chart, in_a_line, standalone, to_markdown
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.ports import SavedWork
from perpetual_blocks.usage import show, show_bytes

SHOWN_CONTEXT = 32 * 2**10
"""A larger context is left out of the page that people see: in bytes."""


def masked_markdown(handoff: Handoff, redactor: Redactor) -> str:
    """The handoff's text without secrets.

    Masked twice: a secret's name is seen in the value, and what the whole text holds is seen in the text.
    """
    return redactor(to_markdown(handoff.model_copy(update={"context": redactor.shown(handoff.context)})))


def masked_page(handoff: Handoff, redactor: Redactor) -> str:
    """The handoff as it is published: the same text, with a chart, and without a context that is too large to read."""
    size = len(json.dumps(handoff.context, ensure_ascii=False).encode())
    if size > SHOWN_CONTEXT:
        told = f"it has {show_bytes(size)}; `perpetual handoff {handoff.chain}` prints it"
        handoff = handoff.model_copy(update={"context": {"left out": told}})
    amounts = {limit.name: show(limit.resource, limit.amount) for limit in handoff.limits}
    picture = redactor(standalone(budget_chart(handoff.history, amounts)))
    shown = handoff.model_copy(update={"context": redactor.shown(handoff.context)})
    return redactor(to_markdown(shown, picture=picture))


def publish(handoff: Handoff, saved_work: SavedWork, redactor: Redactor) -> None:
    """Shows the handoff where people look."""
    told = redactor(in_a_line(handoff))
    saved_work.publish(handoff.chain, handoff.ordinal, masked_page(handoff, redactor), told)
