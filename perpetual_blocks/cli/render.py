"""How a chain looks in a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perpetual_blocks.clock import show_past, show_time
from perpetual_blocks.handoff.markdown import told_attempts, why_then
from perpetual_blocks.session.agents import AgentLine, spent
from perpetual_blocks.session.approval import Approval
from perpetual_blocks.session.orchestrator import Report
from perpetual_blocks.usage import show
from perpetual_blocks.work.item import DEFAULT_KIND

_COLOURS = {
    "running": "cyan",
    "waiting": "blue",
    "finished": "green",
    "paused": "yellow",
    "exhausted": "yellow",
    "stalled": "red",
    "cancelled": "red",
}

NEARLY_FULL = 0.9


def chain_view(status: Mapping[str, Any]) -> RenderableType:
    """The whole chain: how far it is, its sessions, what lasts beyond them, its usage and metrics, and advice."""
    return Group(
        headline(status),
        sessions_table(status["sessions"]),
        _lasting_limits(status["sessions"]),
        *_approvals(status["approvals"]),
        _totals(status),
        *(Text(f"advice: {line}", style="yellow") for line in [*status["advice"], *_unfinished(status)]),
    )


def headline(status: Mapping[str, Any]) -> RenderableType:
    """A line and a bar: name, status, when it goes on where it waits for that, items done."""
    items = status["items"]
    colour = _COLOURS.get(status["status"], "white")
    line = Text.assemble(
        (status["chain"], "bold"), "  ", (status["status"], f"bold {colour}"), "  ", (status.get("reason", ""), "dim")
    )
    if status["status"] == "waiting" and status["resume_at"]:
        last = status["sessions"][-1]["stop_reason"] if status["sessions"] else None
        line.append(f"\ngoes on at {show_time(status['resume_at'])}, {why_then(last)}", style=colour)
    if status["asks_until"]:
        line.append(f"\nits run asks for more until {show_time(status['asks_until'])}", style=colour)
    return Group(line, *_shared(status), _items_done(items))


def _shared(status: Mapping[str, Any]) -> list[Text]:
    """What is to be said of a queue that several chains work on."""
    if not status["others"]:
        return []
    others = f"on the queue of {status['queue']}, with {', '.join(status['others'])}"
    takes = "" if status["takes"] == "everything" else f"; takes {status['takes']}"
    return [Text(others + takes, style="dim")]


def _items_done(items: Mapping[str, int]) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=max(1, items["total"]), completed=items["completed"], width=20, complete_style="cyan"),
        f"{items['completed']:,} of {items['total']:,} items",
        Text(_open_items(items), style="dim"),
    )
    return grid


def _open_items(items: Mapping[str, int]) -> str:
    named = ("available", "claimed", "blocked", "discarded", "cancelled")
    return ", ".join(f"{items[name]:,} {name}" for name in named if items[name])


def sessions_table(sessions: Sequence[Mapping[str, Any]], last: int | None = None) -> Table:
    """One row a session; `last` shows only the latest few."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("#", "process", "units", "tokens", "fullest limit", "ended", "stopped by"):
        numeric = name in ("#", "process", "units", "tokens")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for session in sessions[-last:] if last else sessions:
        running = session["state"] == "Running"
        table.add_row(
            str(session["ordinal"]),
            str(session["pid"]),
            f"{session['units']:,}",
            f"{session['usage'].get('tokens', 0):,.0f}",
            _fullest(session["limits"]),
            Text(session["state"], style="cyan" if running else "green" if session["graceful"] else "red"),
            Text(session["stop_reason"] or "", style="dim"),
        )
    return table


def _fullest(limits: Sequence[Mapping[str, Any]]) -> Text | str:
    if not limits:
        return ""
    fullest = max(limits, key=lambda limit: limit["used"] / limit["amount"])
    share = fullest["used"] / fullest["amount"]
    return bar(share) + Text(f" {share:4.0%} {fullest['resource']}")


def _lasting_limits(sessions: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Windows and totals, which outlive a session, as the last session that has ended left them."""
    for session in reversed(sessions):
        lasting = [limit for limit in session["limits"] if "/" in limit.get("name", "")]
        if lasting:
            break
    else:
        return Group()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(f"limit, after session {session['ordinal']}", overflow="fold")
    table.add_column("used", no_wrap=True)
    table.add_column("of", justify="right", no_wrap=True)
    for limit in lasting:
        name = limit["resource"]
        share = limit["used"] / limit["amount"]
        used = bar(share) + Text(f" {share:4.0%} {show(name, limit['used'])}")
        table.add_row(escape(limit["name"]), used, show(name, limit["amount"]))
    return Group("", table)


def bar(share: float) -> Text:
    """A share of a limit as a bar of ten cells."""
    filled = min(10, round(10 * share))
    colour = "cyan" if share < NEARLY_FULL else "yellow" if share <= 1 else "red"
    return Text.assemble(("█" * filled, colour), ("░" * (10 - filled), "dim"))


def _unfinished(status: Mapping[str, Any]) -> list[str]:
    """What people have to see to, where a chain has ended and something of it is not done."""
    chain, items = status["chain"], status["items"]
    if status["status"] != "finished":
        return []
    if not items["total"]:
        return ["There was nothing to do: the agent's plan() yielded no item, and none was added."]
    if not items["discarded"]:
        return []
    return [
        f"{items['discarded']:,} given up: `perpetual items list {chain} --status discarded` says why, and "
        f"`perpetual items retry {chain}` gives them another try."
    ]


def _approvals(approvals: Sequence[Mapping[str, Any]]) -> list[Text]:
    """What was decided when a total was gone; what was approved is in the totals."""
    return [
        Text(f"after session {one['session']}: {Approval.from_json({**one, 'at': 0.0})}, {show_past(one['at'])}", "dim")
        for one in approvals
    ]


def _totals(status: Mapping[str, Any]) -> Text:
    usage = ", ".join(show(name, amount) for name, amount in status["usage"].items())
    metrics = ", ".join(
        f"{name.replace('_', ' ')} {value:.0%}" for name, value in status["metrics"].items() if value is not None
    )
    resume = ", ".join(show(name, amount) for name, amount in status["resume"].items())
    lines = [f"used: {usage or 'nothing yet'}", f"a resume: {resume}" if resume else "", metrics]
    return Text("\n" + "\n".join(filter(None, lines)), style="dim")


def report_view(report: Report) -> RenderableType:
    """All agents of a queue: how far it is, one row an agent, and what they come to together."""
    items = {"total": sum(report.items.values()), **{status.value: count for status, count in report.items.items()}}
    table = agents_table(report.agents)
    parts = any(agent.takes != "everything" for agent in report.agents)
    totals = ("", "", f"{report.units:,}", f"{report.per_minute:,.1f}", spent(report.usage))
    table.add_row(Text("together", style="bold"), *totals, *(("",) if parts else ()))
    decision = Text(f"{report.decision.agents} agents: {report.decision.why}", style="dim")
    line = Text(report.queue, style="bold")
    return Group(line, _items_done(items), table, decision if not report.over else "")


def agents_table(agents: Sequence[AgentLine]) -> Table:
    """One row an agent of a queue."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    parts = any(agent.takes != "everything" for agent in agents)
    for name in ("agent", "state", "sessions", "units", "a minute", "spent", *(("takes",) if parts else ())):
        numeric = name in ("sessions", "units", "a minute")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name not in ("spent", "takes"))
    for agent in agents:
        table.add_row(
            agent.chain,
            agent.state,
            str(agent.sessions),
            f"{agent.units:,}",
            f"{agent.per_minute:,.1f}",
            spent(agent.usage),
            *((Text(agent.takes, style="dim"),) if parts else ()),
        )
    return table


def items_table(items: Sequence[Mapping[str, Any]]) -> Table:
    """One row an item; what is usual of all of them is left out."""
    columns = {
        "item": [escape(item["id"]) for item in items],
        "status": [item["status"] for item in items],
        "kind": [escape(item["kind"]) if item["kind"] != DEFAULT_KIND else "" for item in items],
        "priority": [str(item["priority"] or "") for item in items],
        "units": [str(item["units"]) for item in items],
        "attempts": [f"{item['attempts']} of {item['max_attempts']}" if item["attempts"] else "" for item in items],
        "progress": [
            f"{item['progress'][0]:g} of {item['progress'][1]:g}" if item["progress"] else "" for item in items
        ],
        "next action or error": [escape(item["error"] or item["next_action"] or "") for item in items],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells) or name in ("item", "status")}
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in shown:
        table.add_column(name, overflow="fold", no_wrap=name not in ("item", "kind", "next action or error"))
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def story_view(story: Mapping[str, Any]) -> RenderableType:
    """One item: where it stands, and each of its attempts that came to nothing."""
    line = Text.assemble((story["id"], "bold"), "  ", story["status"], f"  {story['units']:,} units finished")
    if story["crashes"]:
        line.append(f", its process has died {story['crashes']} times in a row")
    if story["retry_at"]:
        line.append(f", tried again at {show_time(story['retry_at'])}")
    parts: list[RenderableType] = [line]
    if story["error"]:
        parts.append(Text(story["error"], style="red"))
    if "result" in story:
        parts.append(Text(f"result: {json.dumps(story['result'], ensure_ascii=False)}"))
    attempts = story["story"]
    if not attempts:
        return Group(*parts, Text("no attempt of it has failed", style="dim"))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("#", "unit", "session", "at", "spent in vain"):
        table.add_column(name, justify="right" if name in ("#", "unit", "session") else "left", no_wrap=True)
    table.add_column("error", overflow="fold")
    several = len({attempt["chain"] for attempt in attempts}) > 1
    for attempt in attempts:
        table.add_row(
            str(attempt["number"]),
            str(attempt["unit"]),
            f"{attempt['chain']} · {attempt['session']}" if several else str(attempt["session"]),
            show_past(attempt["at"]),
            ", ".join(show(name, amount) for name, amount in attempt["usage"].items() if amount),
            Text(("cut off: " if attempt["cut_off"] else "") + attempt["error"]),
        )
    cut_off = sum(attempt["cut_off"] for attempt in attempts)
    sessions = sorted({attempt["session"] for attempt in attempts})
    told = told_attempts(len(attempts) - cut_off, cut_off, sessions, story["wasted"])
    return Group(*parts, "", table, Text(f"\n{told}", style="dim"))
