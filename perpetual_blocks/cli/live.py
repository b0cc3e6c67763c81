"""How a chain at work looks in a terminal."""

import time
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from perpetual_blocks.cli.render import agents_table, bar, headline, sessions_table
from perpetual_blocks.handoff.markup import one_line
from perpetual_blocks.session.progress import Progress
from perpetual_blocks.session.progress_words import end_in_words, next_in_words
from perpetual_blocks.usage import show, show_duration
from perpetual_blocks.work import Item

LATEST_SESSIONS = 8


def progress_view(progress: Progress, note: str = "") -> RenderableType:
    """A chain at work: how far, when it is over, its limits, what runs, what was given up, and its latest sessions.

    Args:
        note: What is to be said beside it.
    """
    return Group(
        headline(progress.status),
        _facts(progress),
        _levels(progress),
        _items_in_hand(progress),
        *(("", agents_table(progress.agents)) if progress.agents else ()),
        *(("", sessions_table(progress.status["sessions"], LATEST_SESSIONS)) if progress.session else ()),
        *((Text(f"\n{note}", style="yellow"),) if note else ()),
    )


def _facts(progress: Progress) -> RenderableType:
    """When it is over, how fast it goes, and what comes next: a line each."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    if progress.eta is not None:
        grid.add_row("end", end_in_words(progress.eta, local_time))
    if progress.goes_on and progress.per_minute:
        grid.add_row("pace", f"{progress.per_minute:,.1f} units a minute")
    if following := next_in_words(progress, local_time):
        grid.add_row("next", following)
    if progress.silent:
        said = f"its session has not been heard of for {show_duration(progress.silent)}; `perpetual supervise --once`"
        grid.add_row("", Text(said, style="red"))
    return grid


def _levels(progress: Progress) -> RenderableType:
    if not progress.levels or progress.session is None:
        return Group()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(f"limit, session {progress.session['ordinal']}", overflow="fold")
    table.add_column("used", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for level in progress.levels:
        limit, share = level.limit, level.used / level.limit.amount
        used = bar(share) + Text(f" {share:4.0%} {show(limit.resource, level.used)}")
        table.add_row(escape(limit.name), used, str(limit))
    return Group("", table)


def _items_in_hand(progress: Progress) -> RenderableType:
    """What is being worked on, and what was given up."""
    if not progress.running and not progress.discarded:
        return Group()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, max_width=40)
    table.add_column(overflow="ellipsis", no_wrap=True)
    counts = progress.status["items"]
    for name, count, items in (
        ("running", counts["claimed"], progress.running),
        ("discarded", counts["discarded"], progress.discarded),
    ):
        for number, item in enumerate(items):
            said = _doing(item) if name == "running" else Text(one_line(item.error), style="red")
            table.add_row("" if number else name, escape(item.id), said)
        if count > len(items):
            table.add_row("", f"and {count - len(items):,} more", "")
    return Group("", table)


def _doing(item: Item) -> Text:
    said = [f"unit {item.units + 1}"]
    said += [f"{item.progress[0]:g} of {item.progress[1]:g}"] if item.progress else []
    said += [one_line(item.next_action)] if item.next_action else []
    return Text(", ".join(said))


def local_time(at: float) -> str:
    """A moment as who sits here reads it, rounded up to the minute: `14:05`, or `Thu 26 Nov 14:05` on another day."""
    moment = datetime.fromtimestamp(at + 59.999).astimezone()
    today = datetime.fromtimestamp(time.time()).astimezone().date()
    return f"{moment:%H:%M}" if moment.date() == today else f"{moment:%a %d %b %H:%M}"
