"""Handoffs: the document for whoever comes next, and how it reads."""

from perpetual_blocks.handoff.chart import budget_chart, standalone
from perpetual_blocks.handoff.document import (
    CalibrationLine,
    Handoff,
    HistoryLine,
    LimitLine,
    SessionLine,
    WorkLine,
)
from perpetual_blocks.handoff.markdown import in_a_line, to_markdown

__all__ = [
    "CalibrationLine",
    "Handoff",
    "HistoryLine",
    "LimitLine",
    "SessionLine",
    "WorkLine",
    "budget_chart",
    "in_a_line",
    "standalone",
    "to_markdown",
]
