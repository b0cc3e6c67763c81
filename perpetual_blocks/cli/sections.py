"""Which section of the README says more about an error."""

import re

from perpetual_blocks.errors import InvalidInput, LedgerError, PerpetualError, RunsUnavailable, StorageError

_SECTIONS = (
    (r"Budget|Limit|Resource Budget|unit\.(spend|report_quota)|define_resource|PERPETUAL_DEADLINE|--more", "budgets"),
    (r"WorkItem|plan\b|unit\.|work_unit|as_flow\((budget|store)\)|signing_secret", "write-an-agent"),
    (r"Selector|agents|--agent|--take|as_flow\((concurrency|task_runner)\)|merge_context", "many-units"),
    (r"Manners|on_context_upgrade|PERPETUAL_GRACE_SECONDS|--from", "when-something-goes-wrong"),
    (r"chain\b|queue\b|session\b", "look-and-steer"),
)
"""What an error of wrong input begins with, and the section."""


def section_of(error: PerpetualError) -> str | None:
    """The anchor of the section; None where none says more than the error itself."""
    match error:
        case InvalidInput():
            said = str(error)
            return next((section for begins, section in _SECTIONS if re.match(begins, said)), None)
        case LedgerError() | StorageError() | RunsUnavailable():
            return "when-something-goes-wrong"
        case _:
            return None
