"""Work: items, the units that they take, and what comes of a unit."""

from perpetual_blocks.work.item import TRANSITIONS, Item, ItemStatus, WorkItem, check_dependencies, sources
from perpetual_blocks.work.outcome import Outcome
from perpetual_blocks.work.unit import Advanced, CutOff, Unit

__all__ = [
    "TRANSITIONS",
    "Advanced",
    "CutOff",
    "Item",
    "ItemStatus",
    "Outcome",
    "Unit",
    "WorkItem",
    "check_dependencies",
    "sources",
]
