"""The agent's context across units that run at once, and across versions of the agent."""

from typing import Any

from perpetual_blocks.errors import InvalidInput, described
from perpetual_blocks.session.ledger import Ledger, Opened
from perpetual_blocks.session.world import Agent
from perpetual_blocks.work import ContextChange
from perpetual_blocks.work.unit import checked_context


def merged_context(agent: Agent, context: dict[str, Any], change: ContextChange) -> dict[str, Any]:
    """The context with what a unit has changed of it.

    Raises:
        InvalidInput: the agent's `merge_context` raised, or what it makes of it is no context.
    """
    try:
        merged = change.apply(context, agent.merge_context)
    except Exception as error:
        raise InvalidInput(f"merge_context: got {described(error)}; expected the value of the key") from error
    checked_context(merged, "the context after merge_context")
    return merged


def upgraded_context(agent: Agent, ledger: Ledger, opened: Opened) -> tuple[dict[str, Any], str | None]:
    """The context in the version that the agent knows, committed; and a line that says so where it was upgraded.

    A context with nothing in it is of every version.

    Raises:
        InvalidInput: the agent does not say how, or what it makes of the context is none.
    """
    context, before, now = opened.chain.context, opened.chain.context_version, agent.context_version
    if before == now:
        return context, None
    if context:
        context = agent.on_context_upgrade(context, before)
        if not isinstance(context, dict):
            raise InvalidInput.of("on_context_upgrade", context, "the new context, a JSON object")
        checked_context(context, "on_context_upgrade")
    ledger.upgrade_context(opened.fence, context, now)
    return context, f"the context was upgraded from version {before} to {now}"
