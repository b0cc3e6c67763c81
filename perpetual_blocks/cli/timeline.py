"""A chain in time, as SVG: its sessions, and what the time between them went into."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, floor
from typing import Any, NamedTuple

from perpetual_blocks.handoff.chart import Box, boxes, cross, element, label, line
from perpetual_blocks.usage import show_duration

MOST_ROWS = 14
ONE_ROW_SESSIONS, ONE_ROW_SECONDS = 30, 36 * 3600.0
DAY, WEEK = 86400.0, 7 * 86400.0
SPANS = (300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 10800.0, 21600.0, 43200.0, DAY, WEEK, 4 * WEEK, 13 * WEEK)
MONDAY = 4 * DAY
"""The Unix epoch was a Thursday: rows of weeks begin on Mondays."""

_BAR, _ROW, _TOP = 16, 30, 20
_LETTER = 6.2
_SAID = {"wait": "waits", "plan": "goes on in", "held": "held for", "down": "nobody at work for"}


class Stretch(NamedTuple):
    """A session at work (`bar`), one that ended without its own shutdown (`over`), a gap of a kind, or one to come."""

    kind: str
    begin: float
    end: float
    ordinal: int = 0


def stretches(report: Mapping[str, Any]) -> list[Stretch]:
    """What a report tells of a chain's time, in order; up to the moment when it goes on, where it waits for one."""
    now, found = _seconds(report["at"]), list[Stretch]()
    gaps = {gap["after"]: gap["kind"] for gap in report["gaps"]}
    for session in report["sessions"]:
        begin, end = _seconds(session["started_at"]), _seconds(session["ended_at"] or report["at"])
        if found:
            kind = gaps.get(found[-1].ordinal, "handoff")
            found.append(Stretch(kind, found[-1].end, begin))
        whole = session["graceful"] or session["state"] == "Running"
        found.append(Stretch("bar" if whole else "over", begin, max(begin, end), session["ordinal"]))
    if found and report["status"] == "waiting" and report["resume_at"] and _seconds(report["resume_at"]) > now:
        found += [Stretch("wait", found[-1].end, now), Stretch("plan", now, _seconds(report["resume_at"]))]
    return found


def timeline(parts: Sequence[Stretch], width: int) -> str:
    """One row, or rows of a day, a week, or as long as fits, each below the one before. Times are UTC."""
    if not parts:
        return ""
    begin, end = parts[0].begin, max(parts[-1].end, parts[0].begin + 1.0)
    span, first, rows = _rows(begin, end, sum(part.ordinal > 0 for part in parts))
    left = 0 if rows == 1 else 58 if width < 500 else 92
    body = [_ticks(first, span, rows, left, width)]
    said: set[Stretch] = set()
    for row in range(rows):
        body.append(_row(parts, first + row * span, span, _TOP + row * _ROW, (left, width), said))
    first_last = " to ".join(_moment(at, "%Y-%m-%d %H:%M") for at in (begin, end))
    title = f"Sessions and the time between them, {first_last} UTC"
    return element(width, _TOP + rows * _ROW, "".join(body), title)


def _rows(begin: float, end: float, sessions: int) -> tuple[float, float, int]:
    """How long a row is, when the first begins, and how many there are."""
    total = end - begin
    if sessions <= ONE_ROW_SESSIONS and total <= ONE_ROW_SECONDS:
        return total, begin, 1
    for span in SPANS:
        if span < DAY and total > ONE_ROW_SECONDS:
            continue  # what begins at the same time of each day is to be seen as such
        first = _aligned(begin, span)
        if (rows := ceil((end - first) / span)) <= MOST_ROWS:
            return span, first, max(1, rows)
    first = _aligned(begin, WEEK)
    return WEEK * ceil((end - first) / WEEK / MOST_ROWS), first, MOST_ROWS


def _aligned(moment: float, span: float) -> float:
    shift = MONDAY if span >= WEEK else 0.0
    return floor((moment - shift) / span) * span + shift


def _row(
    parts: Sequence[Stretch], start: float, span: float, top: float, sides: tuple[float, float], said: set[Stretch]
) -> str:
    """The part of the time from `start` on; what `said` has is not said a second time."""
    left, right = sides
    scale, base = (right - left) / span, top + _BAR
    drawn: dict[str, list[Box]] = {"wait": [], "plan": [], "bar": [], "over": []}
    body = [line(left, base, right, base, "base")]
    if left:
        body.append(label(0, base - 3, _row_name(start, span, short=left < 60), "soft"))
    names: list[str] = []
    crosses: list[tuple[float, float]] = []
    for part in parts:
        if part.end < start or part.begin >= start + span or part.kind == "handoff":
            continue
        x1 = left + max(0.0, part.begin - start) * scale
        x2 = left + min(span, part.end - start) * scale
        told = str(part.ordinal) if part.ordinal else f"{_SAID[part.kind]} {show_duration(part.end - part.begin)}"
        if part not in said and x2 - x1 > _LETTER * (len(told) + 1):
            said.add(part)
            names.append(label((x1 + x2) / 2, base - 4, told, "on" if part.ordinal else "soft", "middle"))
        if part.ordinal:
            wide = max(1.5, x2 - x1 - (1.0 if x2 - x1 > 4 else 0.0))
            before = drawn[part.kind][-1:]
            if before and x1 < before[0][0] + before[0][2] and wide <= 1.5:
                continue  # there would be nothing to see of it
            drawn[part.kind].append((x1, base, wide, _BAR))
            if part.kind == "over":
                crosses.append(((x1 + x1 + wide) / 2, base + 6))
        elif part.kind in drawn:
            drawn[part.kind].append((x1, base, x2 - x1, _BAR))
        elif x2 - x1 > 1:
            body.append(line(x1, base, x2, base, part.kind))
    return "".join([*body, *(boxes(column, kind) for kind, column in drawn.items()), cross(crosses), *names])


def _row_name(start: float, span: float, *, short: bool) -> str:
    midnight = start % DAY < min(span, DAY)
    return _moment(start, "%d %b" if span >= DAY or (short and midnight) else "%H:%M" if short else "%d %b %H:%M")


def _ticks(first: float, span: float, rows: int, left: float, right: float) -> str:
    """Times above the first row, and a fine line down all of them."""
    many = 7 if span == WEEK and rows > 1 else 4 if right - left > 400 else 2
    found = []
    for place in range(many + 1 if rows == 1 else many):
        x, at = left + place * (right - left) / many, first + place * span / many
        found.append(line(x, _TOP - 6, x, _TOP + rows * _ROW - (_ROW - _BAR), "tick"))
        if rows == 1:
            form = "%d %b %H:%M" if place in (0, many) else "%H:%M" if span > 240 else "%H:%M:%S"
            found.append(label(x, _TOP - 9, _moment(at, form), "soft", "end" if place == many else _anchor(place)))
        elif span in (DAY, WEEK):
            found.append(label(x, _TOP - 9, _moment(at, "%a" if span == WEEK else "%H:%M"), "soft", _anchor(place)))
        elif place:
            words = re.sub(r" 0 \w+$", "", show_duration(at - first))
            found.append(label(x, _TOP - 9, f"+{words}", "soft", _anchor(place)))
    return "".join(found)


def _anchor(place: int) -> str:
    return "middle" if place else "start"


def _moment(at: float, form: str) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(form)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
