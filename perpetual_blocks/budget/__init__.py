"""Budgets: limits, what is used of them, what is to be expected, and when to stop."""

from perpetual_blocks.budget.account import Account, Quota, latest_quota
from perpetual_blocks.budget.forecast import Forecast, Hint
from perpetual_blocks.budget.gauges import Meter, check_metered
from perpetual_blocks.budget.limits import Budget, Limit
from perpetual_blocks.budget.monitor import BudgetMonitor, Record
from perpetual_blocks.budget.stopping import Expectation, Reading, Refusal, Status, Verdict, judge, refuse
from perpetual_blocks.budget.windows import Spend, Window, parse_length

__all__ = [
    "Account",
    "Budget",
    "BudgetMonitor",
    "Expectation",
    "Forecast",
    "Hint",
    "Limit",
    "Meter",
    "Quota",
    "Reading",
    "Record",
    "Refusal",
    "Spend",
    "Status",
    "Verdict",
    "Window",
    "check_metered",
    "judge",
    "latest_quota",
    "parse_length",
    "refuse",
]
