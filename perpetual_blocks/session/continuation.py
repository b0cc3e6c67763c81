"""What becomes of a session and its chain when it stops: pure functions of why, and of what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from perpetual_blocks.errors import LedgerError, RunsUnavailable, StorageError, described
from perpetual_blocks.session.chain import ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.work import ItemStatus


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ends.

    Attributes:
        goes_on: Whether a follow-on is to be recorded; it is created as soon as the chain waits for it.
        items: How many items of those that the chain takes have each status, where that was asked for.
    """

    session: SessionState
    chain: ChainStatus
    reason: StopReason
    goes_on: bool
    items: Mapping[ItemStatus, int] = field(default_factory=dict, compare=False)


_ENDS_ANYWAY = {
    "error": (SessionState.FAILED, ChainStatus.STALLED),
    "cancelled": (SessionState.CANCELLED, ChainStatus.CANCELLED),
}
_ENDS_WITH_WORK_LEFT = {
    "exhausted": (SessionState.EXHAUSTED, ChainStatus.EXHAUSTED),
    "too-large": (SessionState.STALLED, ChainStatus.STALLED),
}
_HELD = {"paused": (SessionState.PAUSED, ChainStatus.PAUSED)}


OUTAGE = "outage"
"""The code of a session's end that the world around it is to blame for."""

BACK_OFF_SECONDS = (30.0, 120.0, 480.0, *[1800.0] * 18)
"""How long a chain waits after an outage, and after the next ones in a row: for a night; then a person is asked."""


def after_error(error: Exception, errors_in_a_row: int, now: float) -> Ending:
    """How a session ends that an error has ended.

    Where the world failed (storage, ledger, Prefect's API) the chain tries again by itself, later and later. Where the
    agent or what it was given is wrong, trying again would give the same.

    Args:
        errors_in_a_row: How many sessions just before were ended by the world.
    """
    if not isinstance(error, StorageError | LedgerError | RunsUnavailable):
        return Ending(SessionState.FAILED, ChainStatus.STALLED, StopReason("error", described(error)), goes_on=False)
    reason = outage(described(error), errors_in_a_row, now)
    goes_on = reason.resume_at is not None
    return Ending(SessionState.FAILED, ChainStatus.WAITING if goes_on else ChainStatus.STALLED, reason, goes_on=goes_on)


def outage(what: str, before: int, now: float) -> StopReason:
    """Why a session ends that something else is to blame for, and when the next one tries again; never where so many
    sessions just before have ended in the same way that a person has to see to it."""
    if before >= len(BACK_OFF_SECONDS):
        return StopReason(OUTAGE, f"{what}; {before} sessions before ended in the same way")
    return StopReason(OUTAGE, what, resume_at=now + BACK_OFF_SECONDS[before])


def outages_in_a_row(sessions: Sequence[SessionRecord]) -> int:
    """How many of the latest sessions were ended by an outage before they had finished a unit."""
    return sum(1 for _ in takewhile(lambda one: one.stop_reason == OUTAGE and not one.units, reversed(sessions)))


WAITING = "waiting"
"""The code of a session's end that left the rest to other chains of its queue."""

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 60.0, 1800.0


def wait_for_others(sessions: Sequence[SessionRecord]) -> float:
    """Seconds until a chain looks again whether others of its queue have left it something: 60, 120, 240, … up to half
    an hour. It is woken earlier by whoever sees that they have; this is for where nobody looks.

    Args:
        sessions: The chain's, with the one that is about to wait last.
    """
    *before, this = sessions
    in_a_row = takewhile(lambda one: one.stop_reason == WAITING and not one.units, reversed(before))
    waits = 0 if this.units else sum(1 for _ in in_a_row)
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(waits, 10))


def ending(reason: StopReason, counts: Mapping[ItemStatus, int], *, elsewhere: bool = False) -> Ending:
    """How a session ends that stopped for this reason, with these items left of those that its chain takes.

    A chain goes on as long as there is an item that can be claimed; a budget that ran out just as the queue did is a
    finished chain.

    Args:
        elsewhere: Whether other chains of the queue have what may come back, or lead to more.
    """
    open_now = counts.get(ItemStatus.AVAILABLE, 0) + counts.get(ItemStatus.CLAIMED, 0) > 0 or elsewhere
    blocked, discarded = counts.get(ItemStatus.BLOCKED, 0), counts.get(ItemStatus.DISCARDED, 0)
    code = reason.code.partition(":")[0]
    if code in _ENDS_ANYWAY or (open_now and code in _ENDS_WITH_WORK_LEFT):
        session, chain = {**_ENDS_ANYWAY, **_ENDS_WITH_WORK_LEFT}[code]
        return Ending(session, chain, reason, goes_on=False)
    if open_now and code in _HELD:
        session, chain = _HELD[code]
        return Ending(session, chain, reason, goes_on=True)
    if open_now and code == OUTAGE and reason.resume_at is None:
        return Ending(SessionState.STALLED, ChainStatus.STALLED, reason, goes_on=False)
    if open_now:
        return Ending(SessionState.WRAPPED, ChainStatus.WAITING, reason, goes_on=True)
    if blocked:
        stuck = StopReason("blocked", f"{blocked} items wait for items that were discarded ({discarded})")
        return Ending(SessionState.STALLED, ChainStatus.STALLED, stuck, goes_on=False)
    left_out = f" but {discarded}, which {'were' if discarded > 1 else 'was'} discarded" if discarded else ""
    done = StopReason("queue-empty", f"every item is done{left_out}")
    return Ending(SessionState.FINISHED, ChainStatus.FINISHED, done, goes_on=False)
