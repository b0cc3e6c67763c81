"""Manners: what keeps a chain from going on for ever, and from going on by itself when nobody wants it to.

A chain starts its next session by itself, so it needs bounds that no single session can see: sessions that come to
nothing, more sessions than a person wants without having looked, hours in which it is to be quiet. All of it is
decided here, from the chain's record, when a session has ended; whatever a person starts is not held back.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import pairwise
from typing import Any, Literal
from zoneinfo import ZoneInfo

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.session.continuation import OUTAGE, WAITING, Ending

MOST_IDLE = 2
"""Sessions in a row that may end without having finished, or even tried, a unit."""

MOST_EVICTED = 10
"""Sessions in a row that may be asked to end before they have finished a unit: the price of cheap machines."""

MOST_CRASHED = 8
"""Sessions in a row that may die before they have finished a unit; with the back-off below, some two minutes."""

LONGEST_BACK_OFF = 300.0
WAITED_SECONDS = 60.0
"""A session that comes to nothing and then waits for so long, for a quota say, is no endless loop."""

ASK_HOURS, MOST_ASK_HOURS = 24.0, 8760

_QUIET = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)(?: (\S+))?")
_QUIET_EXPECTED = 'two times of day and a time zone, as "22:00-07:00 Europe/Berlin" (UTC if none is named)'


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How far a chain may go by itself.

    Attributes:
        max_sessions: How many sessions the chain may have in all; then it is Stalled.
        unattended_sessions: How many sessions may follow each other by themselves after a person has started, or
            resumed, the chain; then it is Paused.
        unattended_cost: How many US dollars these may spend; then it is Paused.
        quiet_hours: When no session starts by itself, and one that runs wraps: `"09:00-17:30 Europe/Berlin"`.
        ask_hours: For how many hours a run whose total is gone waits, suspended, for a person to approve more; 0 where
            it does not, and ends at once.

    Raises:
        InvalidInput: a bound that is not above 0, or quiet hours that are none.
    """

    max_sessions: int | None = None
    unattended_sessions: int | None = None
    unattended_cost: float | None = None
    quiet_hours: str | None = None
    ask_hours: float = ASK_HOURS

    def __post_init__(self) -> None:
        for name in ("max_sessions", "unattended_sessions", "unattended_cost"):
            value = getattr(self, name)
            kinds = (int, float) if name == "unattended_cost" else (int,)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
                raise InvalidInput.of(f"Manners.{name}", value, "a number above 0, or None")
        hours = self.ask_hours
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 <= hours <= MOST_ASK_HOURS:
            raise InvalidInput.of("Manners.ask_hours", hours, f"a number from 0 to {MOST_ASK_HOURS}")
        if self.quiet_hours is not None:
            _parse_quiet(self.quiet_hours)

    def to_json(self) -> dict[str, Any]:
        """As the chain's settings keep it."""
        usual = asdict(Manners())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Manners":
        """From a chain's settings."""
        return cls(**(settings.get("manners") or {}))

    def quiet_until(self, now: float) -> float | None:
        """The end of the quiet hours that it is now; None outside of them."""
        spans = _spans(self.quiet_hours, now)
        return next((end for start, end in spans if start <= now < end), None)

    def quiet_from(self, now: float) -> float | None:
        """When the next quiet hours begin; None without any."""
        return next((start for start, _ in _spans(self.quiet_hours, now) if start > now), None)


def _parse_quiet(text: str) -> tuple[time, time, tzinfo]:
    found = _QUIET.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is None:
            raise ValueError
        start, end = (time(int(found[first]), int(found[first + 1])) for first in (1, 3))
        zone: tzinfo = ZoneInfo(found[5]) if found[5] else UTC
    except (ValueError, OSError, LookupError):
        raise InvalidInput.of("Manners.quiet_hours", text, _QUIET_EXPECTED) from None
    if start == end:
        raise InvalidInput.of("Manners.quiet_hours", text, "two different times of day")
    return start, end, zone


def _spans(text: str | None, now: float) -> list[tuple[float, float]]:
    """The quiet hours of yesterday, today and the two days after, in seconds since the Unix epoch."""
    if text is None:
        return []
    start, end, zone = _parse_quiet(text)
    today = datetime.fromtimestamp(now, zone).date()
    spans = []
    for day in (today + timedelta(days=shift) for shift in (-1, 0, 1, 2)):
        last = day if end > start else day + timedelta(days=1)
        begins = datetime.combine(day, start, zone).timestamp()
        ends = datetime.combine(last, end, zone).timestamp()
        if ends > begins:  # an hour that the clocks skip is nobody's
            spans.append((begins, ends))
    return spans


def restrain(end: Ending, chain: Chain, sessions: Sequence[SessionRecord], now: float) -> Ending:
    """What becomes of a chain that could go on: it does, later, or not at all.

    Args:
        sessions: The chain's, with the one that ends as it will be recorded.
    """
    if not end.goes_on or end.chain is not ChainStatus.WAITING:
        return end
    manners = Manners.of(chain.settings)
    waits = end.reason.resume_at is not None and end.reason.resume_at - now >= WAITED_SECONDS
    idle, evicted = (_fruitless(sessions, kind) for kind in ("idle", "evicted"))
    if idle >= MOST_IDLE and not waits:
        return _held(
            end, "no-progress", f"{idle} sessions in a row have finished no unit; the last: {end.reason.message}"
        )
    if evicted >= MOST_EVICTED:
        return _held(end, "evicted", f"{evicted} sessions in a row were asked to end before they had finished a unit")
    if manners.max_sessions is not None and len(sessions) >= manners.max_sessions:
        return _held(end, "max-sessions", f"it has had {len(sessions)} sessions, as many as it may")
    if (why := _unattended(manners, chain, sessions)) is not None:
        why = f"{why}; `perpetual resume {chain.name}` goes on"
        return Ending(SessionState.PAUSED, ChainStatus.PAUSED, StopReason("unattended", why), goes_on=True)
    starts = end.reason.resume_at or now
    quiet_until = manners.quiet_until(starts)
    return end if quiet_until is None else replace(end, reason=replace(end.reason, resume_at=quiet_until))


def _held(end: Ending, code: str, why: str) -> Ending:
    return Ending(SessionState.STALLED, ChainStatus.STALLED, StopReason(code, why), goes_on=False)


def _unattended(manners: Manners, chain: Chain, sessions: Sequence[SessionRecord]) -> str | None:
    alone = [session for session in sessions if session.ordinal > chain.attended]
    if manners.unattended_sessions is not None and len(alone) >= manners.unattended_sessions:
        return f"{len(alone)} sessions since a person looked, as many as may follow by themselves"
    spent = sum(session.usage.get("cost", 0.0) for session in sessions if session.ordinal >= chain.attended)
    if manners.unattended_cost is not None and spent >= manners.unattended_cost:
        return f"${spent:,.2f} spent since a person looked, of at most ${manners.unattended_cost:,.2f}"
    return None


def after_crash(chain: Chain, sessions: Sequence[SessionRecord], now: float) -> Ending:
    """What becomes of a chain whose latest session was found dead: it goes on, after a back-off if it keeps dying.

    Args:
        sessions: The chain's, the dead one last.
    """
    crashed = _fruitless(sessions, "crashed")
    dead = sessions[-1]
    if crashed >= MOST_CRASHED:
        why = f"{crashed} sessions in a row died before they had finished a unit"
        return Ending(SessionState.CRASHED, ChainStatus.STALLED, StopReason("crash-loop", why), goes_on=False)
    wait = back_off(crashed)
    why = f"session {dead.ordinal} died (process {dead.pid} on {dead.host})"
    reason = StopReason("crashed", why, now + wait if wait else None)
    end = Ending(SessionState.CRASHED, ChainStatus.WAITING, reason, goes_on=True)
    return restrain(end, chain, sessions, now)


def back_off(crashed: int) -> float:
    """Seconds to wait after so many sessions in a row have died for nothing: 0, 2, 4, 8, … up to five minutes."""
    return 0.0 if crashed <= 1 else min(LONGEST_BACK_OFF, 2.0 ** min(crashed - 1, 9))


Kind = Literal["idle", "evicted", "crashed", "held"]


def _fruitless(sessions: Sequence[SessionRecord], kind: Kind) -> int:
    """How many of the latest sessions in a row that came to nothing did so in this way."""
    count = 0
    for session, later in [*pairwise(sessions), (sessions[-1], None)][::-1] if sessions else []:
        how = _kind(session)
        waited = later is not None and later.started_at - (session.ended_at or later.started_at) >= WAITED_SECONDS
        if session.units or session.attempts or how == "held":
            break
        count += how == kind and not (waited and kind == "idle")
    return count


def _kind(session: SessionRecord) -> Kind:
    if session.state is SessionState.CRASHED:
        return "crashed"
    if session.stop_reason == "signal":
        return "evicted"
    # A person, an error that is counted elsewhere, an item that is left alone, or what others do, was the cause.
    others = (SessionState.PAUSED, SessionState.CANCELLED, SessionState.FAILED, SessionState.FINISHED)
    if session.state in others or session.stop_reason in ("backing-off", WAITING, OUTAGE):
        return "held"
    return "idle"
