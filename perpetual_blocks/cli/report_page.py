"""A chain's report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from collections.abc import Mapping, Sequence
from math import ceil, log2
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from perpetual_blocks import __version__
from perpetual_blocks.cli.timeline import stretches, timeline
from perpetual_blocks.clock import show_past
from perpetual_blocks.handoff import HistoryLine, budget_chart
from perpetual_blocks.usage import show, show_duration

WIDTHS = {"wide": (880, 110), "narrow": (340, 44)}
"""The width of each drawing, and how many columns it has room for: one is for desks and paper, one for telephones."""

LATEST, MOST = 20, 500
"""How many sessions the table shows at once, and how many at all."""

GAPS = {
    "work": "at work",
    "handoff": "handing over",
    "wait": "waiting for room or time",
    "held": "held, or over",
    "down": "nobody at work",
}

METRICS = {
    "resource_efficiency": "how full budgets were when sessions ended for them",
    "resume_overhead": "of the sessions' time went by before their first unit; less is better",
    "context_preservation": "of the checkpoint's fields agreed with the ledger on resuming",
    "graceful_shutdowns": "of the sessions ended through their own shutdown",
    "work_completion_rate": "of the items that are wanted are done",
}

STOPS = {
    "queue-empty": "the queue was empty",
    "blocked": "all that was left was blocked",
    "backing-off": "all that was left had just failed",
    "waiting": "others had the rest of the queue",
    "nothing-fits": "nothing that was left fitted the budget",
    "too-large": "an item fits into no session",
    "budget": "budget: {}",
    "exhausted": "total used up: {}",
    "session-length": "the length at which a unit costs least",
    "signal": "a signal",
    "paused": "paused by a person",
    "cancelled": "cancelled by a person",
    "quiet-hours": "quiet hours",
    "fenced": "another session had taken over",
    "unreachable": "something could not be reached",
    "asked": "asked to end",
    "error": "an error",
    "outage": "an outage",
    "crashed": "its process died",
    "no-progress": "sessions without progress",
    "evicted": "evicted again and again",
    "crash-loop": "processes that died again and again",
    "max-sessions": "as many sessions as it may have",
    "unattended": "as far as it may go unattended",
}


def report_page(report: Mapping[str, Any]) -> str:
    """The page. All that comes from the report is escaped; only the drawings, which escape it themselves, are not."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "amount": lambda amount, resource: show(resource, amount),
        "figure": lambda amount, resource: show(resource, amount).removesuffix(f" {resource}"),
        "duration": show_duration,
        "moment": show_past,
        "stop": stop_words,
        "count": lambda number: f"{number:,}",
    }
    drawn = stretches(report)
    return environment.get_template("report.html").render(
        r=report,
        version=__version__,
        timelines={name: timeline(drawn, width) for name, (width, _) in WIDTHS.items()},
        charts={name: budgets(report["sessions"], *sizes) for name, sizes in WIDTHS.items()},
        gaps=[(kind, told, report["time"][kind]) for kind, told in GAPS.items() if report["time"][kind]],
        waits=sum(gap["kind"] == "wait" for gap in report["gaps"]),
        before={gap["after"] + 1: gap for gap in report["gaps"]},
        metrics=[(name, told, report["metrics"][name]) for name, told in METRICS.items()],
        calibration=[(line, ratio_place(line["ratio"])) for line in report["calibration"]],
        most_units=max((kind["units"] for kind in report["kinds"]), default=0),
        most_stops=max(report["stop_reasons"].values(), default=0),
        sessions=list(reversed(report["sessions"]))[:MOST],
        latest=LATEST,
        fullest=fullest,
    )


def budgets(sessions: Sequence[Mapping[str, Any]], width: int, columns: int) -> str:
    """How full each budget was, session by session; a column is the fullest of a few where there is no room for all."""
    history = [
        HistoryLine(
            ordinal=session["ordinal"],
            used={limit.get("name", limit["resource"]): limit["used"] / limit["amount"] for limit in session["limits"]},
            graceful=session["graceful"] or session["state"] == "Running",
        )
        for session in sessions
    ]
    limits = {
        limit.get("name", limit["resource"]): show(limit["resource"], limit["amount"])
        for session in sessions
        for limit in session["limits"]
    }
    each = max(1, ceil(len(history) / columns))
    return budget_chart(_thinned(history, each), limits, width=width, margin=0, each=each)


def _thinned(history: Sequence[HistoryLine], each: int) -> list[HistoryLine]:
    groups = [history[place : place + each] for place in range(0, len(history), each)]
    return [
        HistoryLine(
            ordinal=group[-1].ordinal,
            used={name: max(one.used.get(name, 0.0) for one in group) for one in group for name in one.used},
            graceful=all(one.graceful for one in group),
        )
        for group in groups
    ]


def fullest(session: Mapping[str, Any]) -> str:
    """The limit that a session used most of, and how much."""
    if not session["limits"]:
        return ""
    limit = max(session["limits"], key=lambda limit: limit["used"] / limit["amount"])
    return f"{limit['used'] / limit['amount']:.0%} {limit.get('name', limit['resource'])}"


def stop_words(reason: str) -> str:
    """A stop reason's code, in words."""
    code, _, resource = reason.partition(":")
    return STOPS.get(code, reason).format(resource)


def ratio_place(ratio: float | None) -> float | None:
    """Where used / foretold is between a quarter (0 %) and four times (100 %); even is in the middle."""
    if ratio is None:
        return None
    return round(min(100.0, max(0.0, 50 + 25 * log2(ratio))) if ratio > 0 else 0.0, 1)
