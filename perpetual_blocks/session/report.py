"""The report of a chain: all that can be said of it afterwards, or while it runs, as one JSON object.

Beside what `status` says: the time between sessions and what it went into, units by kind, why sessions ended, how well
units were foretold, and what was given up.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import pairwise
from typing import Any

from perpetual_blocks.clock import isoformat, show_time
from perpetual_blocks.handoff.markdown import told_attempts, what_to_do, why_then
from perpetual_blocks.session.account import learned
from perpetual_blocks.session.attempts import Story
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState
from perpetual_blocks.session.continuation import WAITING
from perpetual_blocks.session.documents import calibration_of
from perpetual_blocks.session.ledger import KindCount, Ledger
from perpetual_blocks.session.planning import outlook
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.work import ItemStatus

HANDOFF_SECONDS = 20.0
"""What a handoff takes at most, where nothing is waited for: a worker starts a run within 14 s."""

LISTED = 50
"""How many discarded items are told of."""


class Gap(StrEnum):
    """What the time between two sessions went into."""

    HANDOFF = "handoff"  # one ends, the next begins
    WAIT = "wait"  # for room in a window, for another try, for others of the queue, for the end of quiet hours
    HELD = "held"  # a person, or a limit that a person has set, held the chain, or it was over
    DOWN = "down"  # nobody was at work, though somebody could have been: a dead process, no worker


def gap_after(session: SessionRecord, seconds: float) -> Gap:
    """What the time after a session went into."""
    code, _, resource = (session.stop_reason or "").partition(":")
    match session.state:
        case SessionState.WRAPPED:
            waits = code in ("backing-off", "quiet-hours", WAITING) or _ended_for_window(session, code, resource)
            short = seconds <= HANDOFF_SECONDS
            return Gap.HANDOFF if short else Gap.WAIT if waits else Gap.DOWN
        case SessionState.CRASHED | SessionState.FAILED:
            return Gap.DOWN
        case _:
            return Gap.HELD


def _ended_for_window(session: SessionRecord, code: str, resource: str) -> bool:
    """Whether the limit that decided is one that outlives the session: the fullest of those that the reason names."""
    named = [limit for limit in session.limits if not resource or limit["resource"] == resource]
    if code not in ("budget", "nothing-fits") or not named:
        return False
    return "/" in max(named, key=lambda limit: limit["used"] / limit["amount"])["name"]


def chain_report(ledger: Ledger, name: str, now: float) -> dict[str, Any]:
    """What is told of a chain; reads its sessions, sums over its items, and the first of those that were discarded.

    Raises:
        UnknownChain: there is no such chain.
    """
    status = chain_status(ledger, name)
    chain, sessions = ledger.chain(name), ledger.sessions(name)
    forecasts = learned(ledger, chain)
    foreseen = None
    with suppress(Exception):  # no report is to be lost for an outlook
        foreseen = outlook(ledger, chain, chain.budget, now, forecasts)
    gaps = gaps_between(sessions)
    return {
        **status,
        "at": isoformat(now),
        "task": str(chain.settings.get("task") or ""),
        "next": what_follows(chain, sessions),
        "outlook": foreseen,
        "created_at": isoformat(chain.created_at),
        "gaps": gaps,
        "time": _time(sessions, gaps, now),
        "stop_reasons": dict(Counter(one.stop_reason for one in sessions if one.stop_reason).most_common()),
        "kinds": [_kind(kind) for kind in ledger.kinds(name)],
        "calibration": [line.model_dump() for line in calibration_of(forecasts)],
        "discarded": [
            _dead_letter(ledger.story(name, item.id)) for item in ledger.items(name, ItemStatus.DISCARDED, LISTED)
        ],
    }


def what_follows(chain: Chain, sessions: Sequence[SessionRecord]) -> str:
    """How a chain goes on, and what a person can do where it does not by itself."""
    latest = sessions[-1] if sessions else None
    reason = latest.stop_reason if latest else None
    match chain.status:
        case ChainStatus.RUNNING:
            ends = (
                f", and will probably end at {show_time(isoformat(latest.ends_at) or '')}"
                if latest and latest.ends_at
                else ""
            )
            return f"Session {chain.ordinal} is at work{ends}."
        case ChainStatus.WAITING if chain.resume_at is not None:
            at = show_time(isoformat(chain.resume_at) or "")
            return f"Session {chain.ordinal + 1} goes on at {at}, {why_then(reason)}."
        case ChainStatus.WAITING:
            return f"Session {chain.ordinal + 1} is to begin."
        case ChainStatus.FINISHED:
            return "The queue is empty."
        case ChainStatus.PAUSED | ChainStatus.CANCELLED:
            return f"It does not go on by itself. {what_to_do(chain.name, chain.status)}"
        case _:
            return f"It does not go on by itself. {what_to_do(chain.name, reason or '')}"


def gaps_between(sessions: Sequence[SessionRecord]) -> list[dict[str, Any]]:
    """The time after each session that was followed by another."""
    found = []
    for before, after in pairwise(sessions):
        if before.ended_at is not None:
            seconds = max(0.0, after.started_at - before.ended_at)
            found.append(
                {"after": before.ordinal, "kind": gap_after(before, seconds).value, "seconds": round(seconds, 3)}
            )
    return found


def _time(sessions: Sequence[SessionRecord], gaps: Sequence[dict[str, Any]], now: float) -> dict[str, float]:
    """Seconds at work, and those between sessions by what they went into."""
    work = sum((now if one.ended_at is None else one.ended_at) - one.started_at for one in sessions)
    between = {kind.value: sum(gap["seconds"] for gap in gaps if gap["kind"] == kind) for kind in Gap}
    return {name: round(seconds, 3) for name, seconds in {"work": max(0.0, work), **between}.items()}


def _kind(kind: KindCount) -> dict[str, Any]:
    items = {status.value: kind.items.get(status, 0) for status in ItemStatus}
    return {"kind": kind.kind, "units": kind.units, "items": {"total": sum(items.values()), **items}}


def _dead_letter(story: Story) -> dict[str, Any]:
    return {
        "id": story.item.id,
        "kind": story.item.kind,
        "error": story.item.error,
        "attempts": told_attempts(story.failed, story.cut_off, story.sessions, story.wasted),
        "wasted": story.wasted,
    }
