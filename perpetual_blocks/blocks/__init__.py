"""Prefect blocks: what people pick in a form. Fields and a `get_…()`; no connections, no logic.

`loading` finds them by their names.
"""

from perpetual_blocks.blocks.resource_budget import LimitSettings, ResourceBudget
from perpetual_blocks.blocks.state_persistence import StatePersistence

__all__ = ["LimitSettings", "ResourceBudget", "StatePersistence"]
