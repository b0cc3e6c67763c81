"""What becomes of a session and its chain when it stops: a pure function of why, and of what is left."""

from collections.abc import Mapping
from dataclasses import dataclass

from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.work import ItemStatus


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ends.

    Attributes:
        goes_on: Whether a follow-on is to be recorded; it is created as soon as the chain waits for it.
    """

    session: SessionState
    chain: ChainStatus
    reason: StopReason
    goes_on: bool


_ENDS_ANYWAY = {
    "error": (SessionState.FAILED, ChainStatus.STALLED),
    "cancelled": (SessionState.CANCELLED, ChainStatus.CANCELLED),
}
_ENDS_WITH_WORK_LEFT = {
    "exhausted": (SessionState.EXHAUSTED, ChainStatus.EXHAUSTED),
    "too-large": (SessionState.STALLED, ChainStatus.STALLED),
}
_HELD = {"paused": (SessionState.PAUSED, ChainStatus.PAUSED)}


def ending(reason: StopReason, counts: Mapping[ItemStatus, int]) -> Ending:
    """How a session ends that stopped for this reason, with these items left.

    A chain goes on as long as there is an item that can be claimed; a budget that ran out just as the queue did is a
    finished chain.
    """
    open_now = counts.get(ItemStatus.AVAILABLE, 0) + counts.get(ItemStatus.CLAIMED, 0)
    blocked, discarded = counts.get(ItemStatus.BLOCKED, 0), counts.get(ItemStatus.DISCARDED, 0)
    code = reason.code.partition(":")[0]
    if code in _ENDS_ANYWAY or (open_now and code in _ENDS_WITH_WORK_LEFT):
        session, chain = {**_ENDS_ANYWAY, **_ENDS_WITH_WORK_LEFT}[code]
        return Ending(session, chain, reason, goes_on=False)
    if open_now and code in _HELD:
        session, chain = _HELD[code]
        return Ending(session, chain, reason, goes_on=True)
    if open_now:
        return Ending(SessionState.WRAPPED, ChainStatus.WAITING, reason, goes_on=True)
    if blocked:
        stuck = StopReason("blocked", f"{blocked} items wait for items that were discarded ({discarded})")
        return Ending(SessionState.STALLED, ChainStatus.STALLED, stuck, goes_on=False)
    left_out = f"; {discarded} items were discarded" if discarded else ""
    done = StopReason("queue-empty", f"every item is done{left_out}")
    return Ending(SessionState.FINISHED, ChainStatus.FINISHED, done, goes_on=False)
