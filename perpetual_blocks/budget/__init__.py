"""Budgets: limits, what is used of them, and when to stop."""

from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.monitor import BudgetMonitor, Meter
from perpetual_blocks.budget.stopping import Reading, Status, StopRule, Verdict, fixed_thresholds, misfit
from perpetual_blocks.budget.windows import Spend, Window

__all__ = [
    "Budget",
    "BudgetMonitor",
    "Limit",
    "Meter",
    "Reading",
    "Spend",
    "Status",
    "StopRule",
    "Verdict",
    "Window",
    "fixed_thresholds",
    "misfit",
]
