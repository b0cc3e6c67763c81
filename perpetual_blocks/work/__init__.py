"""Work: items, the units that they take, and what comes of a unit."""

from perpetual_blocks.work.context import ContextChange
from perpetual_blocks.work.item import TRANSITIONS, Item, ItemStatus, WorkItem, check_dependencies, sources
from perpetual_blocks.work.llm_usage import LlmUsage, read_llm_usage
from perpetual_blocks.work.outcome import Outcome
from perpetual_blocks.work.selector import EVERYTHING, Selector
from perpetual_blocks.work.unit import Advanced, CutOff, Unit

__all__ = [
    "EVERYTHING",
    "TRANSITIONS",
    "Advanced",
    "ContextChange",
    "CutOff",
    "Item",
    "ItemStatus",
    "LlmUsage",
    "Outcome",
    "Selector",
    "Unit",
    "WorkItem",
    "check_dependencies",
    "read_llm_usage",
    "sources",
]
