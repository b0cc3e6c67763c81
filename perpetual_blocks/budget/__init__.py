"""Budgets: limits, what is used of them, and when to stop."""

from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.monitor import BudgetMonitor, Meter
from perpetual_blocks.budget.stopping import Reading, Status, StopRule, Verdict, fixed_thresholds, misfit

__all__ = [
    "Budget",
    "BudgetMonitor",
    "Limit",
    "Meter",
    "Reading",
    "Status",
    "StopRule",
    "Verdict",
    "fixed_thresholds",
    "misfit",
]
