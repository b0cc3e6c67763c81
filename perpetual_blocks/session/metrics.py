"""The five success metrics, and what resuming costs, each from what the ledger recorded.

All are None until there is something to measure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from perpetual_blocks.session.chain import SessionRecord, SessionState
from perpetual_blocks.usage import reported
from perpetual_blocks.work import ItemStatus


def resource_efficiency(sessions: Sequence[SessionRecord]) -> float | None:
    """How full budgets were when sessions wrapped.

    Mean over sessions that ended for their budget of max over limits of used / amount. Sessions that ended for another
    reason (the queue was empty, a signal came) say nothing of the budget and are left out. 1 is a full budget.
    """
    fullness = [
        max(limit["used"] / limit["amount"] for limit in session.limits)
        for session in sessions
        if session.limits and _ended_for_budget(session)
    ]
    return sum(fullness) / len(fullness) if fullness else None


def useful_share(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the limits that ended sessions went into units.

    Mean over sessions that ended for a limit of the session of (what its units used) / amount, of the limit that
    decided: the one named by the stop reason, else the fullest. The rest went into starting, into the shutdown, or was
    left over. Windows and totals, which other sessions use too, and memory say nothing of it and are left out.
    """
    shares = []
    for session in sessions:
        own = own_limits(session)
        named = (session.stop_reason or "").partition(":")[2]
        limits = [limit for limit in session.limits if not named or limit["resource"] == named]
        if limits and _ended_for_budget(session):
            deciding = max(limits, key=lambda limit: limit["used"] / limit["amount"])
            if deciding in own and deciding["resource"] in session.usage:
                shares.append(session.usage[deciding["resource"]] / deciding["amount"])
    return sum(shares) / len(shares) if shares else None


def own_limits(session: SessionRecord) -> list[dict[str, Any]]:
    """A session's limits that are for it alone: no windows, no totals."""
    return [limit for limit in session.limits if "/" not in limit.get("name", "")]


def _ended_for_budget(session: SessionRecord) -> bool:
    return (session.stop_reason or "").startswith(("budget:", "nothing-fits"))


def resume_overhead(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the sessions' time went by before their first unit: Σ resume seconds / Σ session seconds.

    Over sessions that resumed (all but the first) and have ended; a session's seconds are those from its start to its
    end.
    """
    resumed = [s for s in sessions if s.ordinal > 1 and s.resume_seconds is not None and s.ended_at is not None]
    total = sum((s.ended_at or 0.0) - s.started_at for s in resumed)
    return sum(s.resume_seconds or 0.0 for s in resumed) / total if total > 0 else None


def resume_cost(sessions: Sequence[SessionRecord]) -> dict[str, float]:
    """What a resume costs on average, of each resource where it can be known.

    * seconds: mean over the sessions that resumed (all but the first) of the seconds before their first unit
    * tokens, cost, calls: max(0, mean over the sessions that resumed and finished a unit of what their first one used,
      minus Σ usage / Σ units of the chain): what it takes to read in again what the session before knew
    """
    seconds = [s.resume_seconds for s in sessions if s.ordinal > 1 and s.resume_seconds is not None]
    found = {"seconds": sum(seconds) / len(seconds)} if seconds else {}
    firsts = [s.first_usage for s in sessions if s.ordinal > 1 and s.first_usage is not None]
    units = sum(session.units for session in sessions)
    for name in reported() if firsts and units else ():
        spent = sum(session.usage.get(name, 0.0) for session in sessions)
        if spent:
            found[name] = max(0.0, sum(usage.get(name, 0.0) for usage in firsts) / len(firsts) - spent / units)
    return {name: round(amount, 6) for name, amount in found.items()}


def context_preservation(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the checkpoint's fields agreed with the ledger on resume: Σ agreed / Σ checked.

    Over sessions that found a whole checkpoint when they started.
    """
    verified = [session.verified for session in sessions if session.verified is not None]
    checked = sum(count for count, _ in verified)
    return sum(agreed for _, agreed in verified) / checked if checked else None


def graceful_shutdowns(sessions: Sequence[SessionRecord]) -> float | None:
    """Which share of the ended sessions ended through their own shutdown: Σ graceful / Σ ended."""
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
