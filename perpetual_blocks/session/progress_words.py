"""How a chain gets on, in words: for a terminal's lines and for Prefect's UI."""

from collections.abc import Callable

from perpetual_blocks.handoff.markdown import why_then
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.session.progress import Eta, Progress
from perpetual_blocks.usage import show_duration

When = Callable[[float], str]
"""A moment, in seconds since the Unix epoch, as whoever reads it wants it."""


def end_in_words(eta: Eta, when: When) -> str:
    """When it will be over: `over by 14:05 (half of the time), by 15:10 (9 of 10 times)`."""
    text = f"over by {when(eta.p50)}"
    if when(eta.p90) != when(eta.p50):
        text += f" (half of the time), by {when(eta.p90)} (9 of 10 times)"
    more = [f"{eta.sessions:,} session{'s' if eta.sessions > 1 else ''} with this one"] if eta.sessions > 1 else []
    more += [f"{show_duration(eta.waiting)} of it waiting for quotas"] if eta.waiting >= 1 else []
    more += [f"in {eta.gone:.0%} of the futures a total is gone before that"] if eta.gone else []
    return f"{text}; {', '.join(more)}" if more else text


def next_in_words(progress: Progress, when: When) -> str:
    """What comes next; nothing where a session is at work and its end is not in sight."""
    session = progress.session
    if not progress.goes_on:
        return ""
    if session is None:
        return "the first session begins"
    number = session["ordinal"]
    if progress.status["status"] == ChainStatus.RUNNING:
        return _end_of_session(progress, number, when)
    if progress.resume_at is None:
        return f"session {number + 1} begins"
    return f"session {number + 1} at {when(progress.resume_at)}, {why_then(session['stop_reason'])}"


def _end_of_session(progress: Progress, number: int, when: When) -> str:
    eta = progress.eta
    if progress.ends_at is not None:
        return f"session {number} ends at {when(progress.ends_at)}, session {number + 1} is up ahead of that"
    if eta is None:
        return ""
    if eta.session_ends is None or eta.next_begins is None:
        return f"session {number} is the last one"
    text, then = f"session {number} ends at about {when(eta.session_ends)}", when(eta.next_begins)
    goes_on = f"{text}, session {number + 1} goes on"
    return goes_on if then == when(eta.session_ends) else f"{goes_on} at about {then}"


def in_words(progress: Progress, when: When) -> str:
    """All of it in plain text, what matters most first: a card shows the first 45 characters."""
    items, eta, session = progress.status["items"], progress.eta, progress.session
    first = f"{items['completed']:,} of {items['total']:,} items"
    first += f", over by {when(eta.p50)}" if eta is not None else " done" if progress.goes_on else ""
    parts = [first]
    if not progress.goes_on:
        parts[0] += f", {progress.status['status']}"
        parts += [progress.status["reason"]] if progress.status["reason"] else []
    others = [f"{items[one]:,} {one}" for one in ("claimed", "blocked", "discarded", "cancelled") if items[one]]
    parts += [", ".join(others)] if others else []
    parts += [end_in_words(eta, when)] if eta is not None else []
    parts += [f"used {', '.join(map(str, progress.levels))}"] if progress.levels else []
    if progress.goes_on and progress.per_minute:
        parts.append(f"{progress.per_minute:,.1f} units a minute")
    if session is not None and session["state"] == SessionState.RUNNING and progress.silent:
        parts.append(f"session {session['ordinal']} has not been heard of for {show_duration(progress.silent)}")
    following = next_in_words(progress, when)
    parts += [following] if following else []
    return ". ".join(_sentence(part) for part in parts) + "."


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text[:1].upper() + text[1:]
