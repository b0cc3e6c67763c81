"""Prefect flows that stop just before a limit, save where they are, and continue in a fresh run.

Public names are loaded when they are first used: importing Prefect takes most of a second, and a command line or a test
of pure logic should not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from perpetual_blocks.adapters.git import worktree as worktree
    from perpetual_blocks.agent import PerpetualAgent as PerpetualAgent
    from perpetual_blocks.blocks import ResourceBudget as ResourceBudget
    from perpetual_blocks.blocks import StatePersistence as StatePersistence
    from perpetual_blocks.budget import Budget as Budget
    from perpetual_blocks.budget import Limit as Limit
    from perpetual_blocks.errors import Unavailable as Unavailable
    from perpetual_blocks.files import write_whole as write_whole
    from perpetual_blocks.handoff import Handoff as Handoff
    from perpetual_blocks.session.manners import Manners as Manners
    from perpetual_blocks.usage import define_resource as define_resource
    from perpetual_blocks.work import Unit as Unit
    from perpetual_blocks.work import WorkItem as WorkItem

_HOMES = {
    "PerpetualAgent": "perpetual_blocks.agent",
    "WorkItem": "perpetual_blocks.work",
    "Unit": "perpetual_blocks.work",
    "Budget": "perpetual_blocks.budget",
    "Limit": "perpetual_blocks.budget",
    "Handoff": "perpetual_blocks.handoff",
    "Manners": "perpetual_blocks.session.manners",
    "ResourceBudget": "perpetual_blocks.blocks",
    "StatePersistence": "perpetual_blocks.blocks",
    "Unavailable": "perpetual_blocks.errors",
    "define_resource": "perpetual_blocks.usage",
    "worktree": "perpetual_blocks.adapters.git",
    "write_whole": "perpetual_blocks.files",
}

__all__ = [
    "Budget",
    "Handoff",
    "Limit",
    "Manners",
    "PerpetualAgent",
    "ResourceBudget",
    "StatePersistence",
    "Unavailable",
    "Unit",
    "WorkItem",
    "__version__",
    "define_resource",
    "worktree",
    "write_whole",
]


def __getattr__(name: str) -> Any:
    # `prefect block register -m perpetual_blocks` walks dir() and so finds the blocks through here.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
