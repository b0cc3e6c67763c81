"""The five success metrics, each from what the ledger recorded.

All are None until there is something to measure.
"""

from collections.abc import Mapping, Sequence

from perpetual_blocks.session.chain import SessionRecord, SessionState
from perpetual_blocks.work import ItemStatus


def resource_efficiency(sessions: Sequence[SessionRecord]) -> float | None:
    """How full budgets were when sessions wrapped.

    Mean over wrapped sessions of max over limits of used / amount. Sessions that ended for another reason than their
    budget (the queue was empty, a signal came) say nothing of the budget and are left out. 1 is a full budget.
    """
    fullness = [
        max(limit["used"] / limit["amount"] for limit in session.limits)
        for session in sessions
        if session.limits and (session.stop_reason or "").startswith(("budget:", "nothing-fits"))
    ]
    return sum(fullness) / len(fullness) if fullness else None


def resume_overhead(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the sessions' time went by before their first unit started: Σ resume seconds / Σ session seconds.

    Over sessions that resumed (all but the first) and have ended.
    """
    resumed = [s for s in sessions if s.ordinal > 1 and s.resume_seconds is not None and s.ended_at is not None]
    total = sum((s.ended_at or 0.0) - s.started_at for s in resumed)
    return sum(s.resume_seconds or 0.0 for s in resumed) / total if total > 0 else None


def context_preservation(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the checkpoint's fields agreed with the ledger on resume: Σ agreed / Σ checked."""
    verified = [session.verified for session in sessions if session.verified is not None]
    checked = sum(count for count, _ in verified)
    return sum(agreed for _, agreed in verified) / checked if checked else None


def graceful_shutdowns(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the ended sessions ended through their own shutdown."""
    ended = [session for session in sessions if session.state is not SessionState.RUNNING]
    return sum(session.graceful for session in ended) / len(ended) if ended else None


def work_completion_rate(counts: Mapping[ItemStatus, int]) -> float | None:
    """Which share of the items that are still wanted is completed: completed / (all − cancelled)."""
    wanted = sum(counts.values()) - counts.get(ItemStatus.CANCELLED, 0)
    return counts.get(ItemStatus.COMPLETED, 0) / wanted if wanted else None


def success_metrics(sessions: Sequence[SessionRecord], counts: Mapping[ItemStatus, int]) -> dict[str, float | None]:
    """All five by name, rounded to four places."""
    values = {
        "resource_efficiency": resource_efficiency(sessions),
        "resume_overhead": resume_overhead(sessions),
        "context_preservation": context_preservation(sessions),
        "graceful_shutdowns": graceful_shutdowns(sessions),
        "work_completion_rate": work_completion_rate(counts),
    }
    return {name: value if value is None else round(value, 4) for name, value in values.items()}
