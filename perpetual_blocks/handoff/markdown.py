"""The handoff as Markdown: for the artifact page, the terminal and the next agent's prompt alike."""

import json
from collections.abc import Iterable, Mapping, Sequence

from perpetual_blocks.clock import show_time
from perpetual_blocks.handoff.document import Handoff, WorkLine
from perpetual_blocks.usage import show, show_duration

_BAR = 20
LISTED = 10
"""How many of the items that were passed over are listed."""


def to_markdown(handoff: Handoff) -> str:
    """The document. Links are relative to an artifact's page, which both of Prefect's UIs understand."""
    done, total = handoff.items.get("completed", 0), sum(handoff.items.values())
    parts = [
        f"# {handoff.chain} · session {handoff.ordinal} · {handoff.state}",
        f"**{done:,} of {total:,} items done.** {_goes_on(handoff)}",
        f"*Why it stopped:* {_one_line(handoff.stop_message)}.",
        f"*Outlook:* {_one_line(handoff.outlook)}." if handoff.outlook else "",
        _links(handoff),
        f"## The task\n\n{handoff.task}",
        _limits(handoff),
        f"## Done\n\n{_spent('This session', handoff.units, handoff.usage)}\n"
        f"{_spent('The chain', handoff.units_total, handoff.usage_total)}"
        + (f"\n- Committed as `{handoff.commit}`" if handoff.commit else ""),
        _section("Next", (_work(line) for line in handoff.next_items)),
        _section("Discarded", (_dead_letter(line) for line in handoff.discarded)),
        _passed_over(handoff),
        _section("Chosen automatically", (f"- {_one_line(line)}" for line in handoff.choices)),
        _section("Advice", (f"- {_one_line(line)}" for line in handoff.advice)),
        _section("On resuming", (f"- {_one_line(line)}" for line in handoff.resumed)),
        _section("Went wrong at the end", (f"- {_one_line(line)}" for line in handoff.steps)),
        _section("Notes", handoff.notes),
        _sessions(handoff),
        _calibration(handoff),
        _folded("Metrics", handoff.metrics),
        _folded("Context", handoff.context),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _goes_on(handoff: Handoff) -> str:
    match handoff.state:
        case "Wrapped" if handoff.resume_at:
            then = show_time(handoff.resume_at)
            return f"Session {handoff.ordinal + 1} goes on at {then}, {why_then(handoff.stop_reason)}."
        case "Wrapped":
            return f"Session {handoff.ordinal + 1} goes on from here."
        case "Finished":
            return "The queue is empty."
        case "Crashed" | "Failed" if handoff.chain_status in ("running", "waiting"):
            when = f" at {show_time(handoff.resume_at)}" if handoff.resume_at else ""
            return f"The chain goes on by itself{when}: what was committed stands."
        case _:
            return f"It does not go on by itself. {_what_to_do(handoff.chain, handoff.stop_reason)}"


def why_then(stop_reason: str | None) -> str:
    """Why a chain that waits goes on at that moment and no other, given why its last session ended."""
    match stop_reason:
        case "backing-off":
            return "when what has failed is tried again"
        case "waiting":
            return "when others may have left it something"
        case _:
            return "when there is room"


def _what_to_do(chain: str, stop_reason: str) -> str:
    code, _, resource = stop_reason.partition(":")
    again = f"run it again: `perpetual run FILE:FLOW --param chain={chain}`."
    match code:
        case "exhausted":
            return f"Raise the total limit of {resource}, then {again}"
        case "blocked":
            return f"Mend what the discarded items died of, `perpetual items retry {chain}`, then {again}"
        case "too-large":
            return (
                f"Raise the session's limits, or give the item up (`perpetual items discard {chain} ID`), then {again}"
            )
        case "cancelled" | "paused" | "unattended" | "max-sessions":
            return f"`perpetual resume {chain}` lets it go on; without a deployment, then {again}"
        case "outage" | "error" | "crashed" | "no-progress" | "evicted":
            return f"Mend the cause, then `perpetual resume {chain}`; without a deployment, {again}"
        case _:
            return f"`perpetual status {chain}` says what to do."


def _links(handoff: Handoff) -> str:
    tag = f"chain:{handoff.chain}"
    links = [f"[all runs of this chain](../../runs?tags={tag}&tag={tag})"]
    links.append(f"[all handoffs](../key/handoff-{handoff.chain})")
    if handoff.flow_run_id:
        links.insert(0, f"[this run](../../runs/flow-run/{handoff.flow_run_id})")
    return " · ".join(links)


def _limits(handoff: Handoff) -> str:
    if not handoff.limits:
        return ""
    rows = [
        f"| {line.name} | `{_bar(line.used / line.amount)}` {line.used / line.amount:.0%} | "
        f"{show(line.resource, line.used)} | {show(line.resource, line.amount)} | "
        f"{show(line.resource, line.reserve) if line.reserve else ''} |"
        for line in handoff.limits
    ]
    header = ["| limit | | used | of | kept for the shutdown |", "| --- | --- | ---: | ---: | ---: |"]
    return "\n".join(["## Budget\n", *header, *rows])


def _bar(fraction: float) -> str:
    filled = min(_BAR, round(fraction * _BAR))
    return "█" * filled + "░" * (_BAR - filled)


def _spent(who: str, units: int, usage: dict[str, float]) -> str:
    amounts = [show_duration(amount) if name == "seconds" else show(name, amount) for name, amount in usage.items()]
    return f"- {who}: {units:,} units" + (f", {', '.join(amounts)} of work" if amounts else "")


def _work(line: WorkLine) -> str:
    text = f"- `{line.id}`"
    if line.progress:
        text += f" ({line.progress[0]:g} of {line.progress[1]:g})"
    return f"{text}: {_one_line(line.next_action)}" if line.next_action else text


def _dead_letter(line: WorkLine) -> str:
    attempts = told_attempts(line.failed, line.cut_off, line.sessions, line.wasted)
    return ": ".join(part for part in (_work(line), attempts, _one_line(line.error)) if part)


def told_attempts(failed: int, cut_off: int, sessions: Sequence[int], wasted: Mapping[str, float]) -> str:
    """Attempts that came to nothing, as a person reads them; nothing where there are none."""
    counts = [f"failed {_times(failed)}"] if failed else []
    counts += [f"cut off {_times(cut_off)}"] if cut_off else []
    if not counts:
        return ""
    where = f"session{'s' if len(sessions) > 1 else ''} {', '.join(map(str, sessions))}"
    amounts = ", ".join(show(name, amount) for name, amount in wasted.items() if amount)
    return f"{', '.join(counts)} ({where})" + (f", {amounts} spent in vain" if amounts else "")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _section(title: str, lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"## {title}\n\n{text}" if text else ""


def _sessions(handoff: Handoff) -> str:
    if not handoff.sessions:
        return ""
    rows = [
        f"| {line.ordinal} | {line.state} | {line.units:,} | {show('tokens', line.usage.get('tokens', 0))} | "
        f"{'' if line.fullness is None else f'{line.fullness:.0%}'} | {_cell(line.stop)} |"
        for line in handoff.sessions
    ]
    header = ["| | ended | units | used | full | why |", "| ---: | --- | ---: | ---: | ---: | --- |"]
    return "\n".join(["## Sessions\n", *header, *rows])


def _passed_over(handoff: Handoff) -> str:
    lines = [f"- `{item}`: {_one_line(why)}" for item, why in handoff.passed_over.items()]
    more = [f"- and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return _section("Passed over", [*lines[:LISTED], *more])


def _calibration(handoff: Handoff) -> str:
    if not handoff.calibration:
        return ""
    rows = [
        f"| {line.resource} | {_cell(line.kind)} | {line.units:,} | {show(line.resource, line.predicted)} | "
        f"{show(line.resource, line.used)} | {'' if line.ratio is None else f'{line.ratio:.2f}'} | "
        f"{line.p90_coverage:.0%} |"
        for line in handoff.calibration
    ]
    header = [
        "| | kind | units | foretold | used | ratio | within p90 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join(["## Forecasts\n", *header, *rows])


def _folded(title: str, value: object) -> str:
    if not value:
        return ""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    fence = "`" * 3
    return f"<details><summary>{title}</summary>\n\n{fence}json\n{text}\n{fence}\n\n</details>"
