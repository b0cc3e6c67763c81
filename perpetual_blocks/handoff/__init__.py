"""Handoffs: the document for whoever comes next, and how it reads."""

from perpetual_blocks.handoff.document import CalibrationLine, Handoff, LimitLine, SessionLine, WorkLine
from perpetual_blocks.handoff.markdown import to_markdown

__all__ = ["CalibrationLine", "Handoff", "LimitLine", "SessionLine", "WorkLine", "to_markdown"]
