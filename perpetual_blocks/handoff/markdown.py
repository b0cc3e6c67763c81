"""The handoff as Markdown: for the artifact page, the terminal and the next agent's prompt alike."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence

from perpetual_blocks.clock import show_time
from perpetual_blocks.handoff.document import Handoff, WorkLine
from perpetual_blocks.handoff.markup import bar, cell, one_line
from perpetual_blocks.usage import show, show_duration

LISTED = 10
"""How many of the items that were passed over are listed."""


def to_markdown(handoff: Handoff, *, picture: str = "") -> str:
    """The document. Links are relative to an artifact's page, which both of Prefect's UIs understand.

    Args:
        picture: An SVG that is shown with the budget; for the artifact only, as no agent can read it.
    """
    done, total = handoff.items.get("completed", 0), sum(handoff.items.values())
    parts = [
        f"# {handoff.chain} · session {handoff.ordinal} · {handoff.state}",
        f"**{done:,} of {total:,} items done.** {_goes_on(handoff)}",
        f"*Why it stopped:* {one_line(handoff.stop_message)}.",
        f"*Outlook:* {one_line(handoff.outlook)}." if handoff.outlook else "",
        _links(handoff),
        f"## The task\n\n{handoff.task}",
        _limits(handoff, picture),
        f"## Done\n\n{_spent('This session', handoff.units, handoff.usage)}\n"
        f"{_spent('The chain', handoff.units_total, handoff.usage_total)}" + _committed(handoff),
        _section("Next", (_work(line) for line in handoff.next_items)),
        _section("Discarded", (_dead_letter(line) for line in handoff.discarded)),
        _passed_over(handoff),
        _section("Chosen automatically", (f"- {one_line(line)}" for line in handoff.choices)),
        _section("Advice", (f"- {one_line(line)}" for line in handoff.advice)),
        _section("On resuming", (f"- {one_line(line)}" for line in handoff.resumed)),
        _section("Went wrong at the end", (f"- {one_line(line)}" for line in handoff.steps)),
        _section("Notes", handoff.notes),
        _sessions(handoff),
        _calibration(handoff),
        _section("Metrics", (f"- {name.replace('_', ' ')}: {value:.1%}" for name, value in _known(handoff.metrics))),
        _folded("State", _state(handoff)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_a_line(handoff: Handoff) -> str:
    """What happened, the most important first: lists cut it after some 45 characters."""
    done, total = handoff.items.get("completed", 0), sum(handoff.items.values())
    told = f"Session {handoff.ordinal} {handoff.state.lower()}, {done:,} of {total:,} done"
    return f"{told}: {one_line(handoff.stop_message)}" if handoff.stop_message else told


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
            return f"It does not go on by itself. {what_to_do(handoff.chain, handoff.stop_reason)}"


def why_then(stop_reason: str | None) -> str:
    """Why a chain that waits goes on at that moment and no other, given why its last session ended."""
    match stop_reason:
        case "backing-off":
            return "when what has failed is tried again"
        case "waiting":
            return "when others may have left it something"
        case "outage":
            return "when what is away may be back"
        case _:
            return "when there is room"


def what_to_do(chain: str, stop_reason: str) -> str:
    """What a person can do for a chain that does not go on by itself, given why its last session ended."""
    code, _, resource = stop_reason.partition(":")
    again = f"run it again: `perpetual run FILE:FLOW --param chain={chain}`."
    match code:
        case "exhausted":
            more = f"`perpetual approve {chain} --more {resource}=AMOUNT` lets it go on"
            return f"{more}; or raise the total limit of {resource}, then {again}"
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


def _committed(handoff: Handoff) -> str:
    if not handoff.commit:
        return ""
    state = f" with checkpoint {handoff.ordinal} (`{handoff.checkpoint[:16]}`)" if handoff.checkpoint else ""
    return f"\n- Committed as `{handoff.commit}`{state}"


def _links(handoff: Handoff) -> str:
    tag, ordinal = f"chain:{handoff.chain}", handoff.ordinal
    runs = {
        f"← session {ordinal - 1}": handoff.previous_run_id,
        "this run": handoff.flow_run_id,
        f"session {ordinal + 1} →": handoff.next_run_id,
    }
    links = [f"[{name}](../../runs/flow-run/{run})" for name, run in runs.items() if run]
    links.append(f"[all runs of this chain](../../runs?tags={tag}&tag={tag})")
    links.append(f"[all handoffs](../key/handoff-{handoff.chain})")
    return " · ".join(links)


def linked(markdown: str, ui: str) -> str:
    """The handoff for a reader who is not in Prefect's UI, where its links lead from page to page.

    Args:
        ui: The UI's address.
    """
    return markdown.replace("](../../", f"]({ui}/").replace("](../key/", f"]({ui}/artifacts/key/")


def _limits(handoff: Handoff, picture: str) -> str:
    shown = f"![How full each budget was]({_data_uri(picture)})" if picture else ""
    if not handoff.limits:
        return f"## Budget\n\n{shown}" if shown else ""
    rows = [
        f"| {line.name} | `{bar(line.used / line.amount)}`\N{NO-BREAK SPACE}{line.used / line.amount:.0%} | "
        f"{show(line.resource, line.used)} | {show(line.resource, line.amount)} | "
        f"{show(line.resource, line.reserve) if line.reserve else ''} |"
        for line in handoff.limits
    ]
    header = ["| limit | | used | of | kept for the shutdown |", "| --- | --- | ---: | ---: | ---: |"]
    table = "\n".join([*header, *rows])
    return "\n\n".join(part for part in ("## Budget", shown, table) if part)


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _spent(who: str, units: int, usage: dict[str, float]) -> str:
    amounts = [show_duration(amount) if name == "seconds" else show(name, amount) for name, amount in usage.items()]
    return f"- {who}: {units:,} units" + (f", {', '.join(amounts)} of work" if amounts else "")


def _work(line: WorkLine) -> str:
    text = f"- `{line.id}`"
    if line.progress:
        text += f" ({line.progress[0]:g} of {line.progress[1]:g})"
    return f"{text}: {one_line(line.next_action)}" if line.next_action else text


def _dead_letter(line: WorkLine) -> str:
    attempts = told_attempts(line.failed, line.cut_off, line.sessions, line.wasted)
    return ": ".join(part for part in (_work(line), attempts, one_line(line.error)) if part)


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


def _section(title: str, lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"## {title}\n\n{text}" if text else ""


def _sessions(handoff: Handoff) -> str:
    if not handoff.sessions:
        return ""
    rows = [
        f"| {line.ordinal} | {line.state} | {line.units:,} | {show('tokens', line.usage.get('tokens', 0))} | "
        f"{'' if line.fullness is None else f'{line.fullness:.0%}'} | {cell(line.stop)} |"
        for line in handoff.sessions
    ]
    header = ["| | ended | units | used | full | why |", "| ---: | --- | ---: | ---: | ---: | --- |"]
    return "\n".join(["## Sessions\n", *header, *rows])


def _passed_over(handoff: Handoff) -> str:
    lines = [f"- `{item}`: {one_line(why)}" for item, why in handoff.passed_over.items()]
    more = [f"- and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return _section("Passed over", [*lines[:LISTED], *more])


def _calibration(handoff: Handoff) -> str:
    if not handoff.calibration:
        return ""
    rows = [
        f"| {line.resource} | {cell(line.kind)} | {line.units:,} | {show(line.resource, line.predicted)} | "
        f"{show(line.resource, line.used)} | {'' if line.ratio is None else f'{line.ratio:.2f}'} | "
        f"{line.p90_coverage:.0%} |"
        for line in handoff.calibration
    ]
    header = [
        "| | kind | units | foretold | used | ratio | within p90 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join(["## Forecasts\n", *header, *rows])


def _known(metrics: Mapping[str, float | None]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in metrics.items() if value is not None]


def _state(handoff: Handoff) -> dict[str, object]:
    """What a program may want of it, as far as there is any."""
    names = (
        "chain", "ordinal", "state", "stop_reason", "resume_at", "items", "usage_total", "metrics", "context", "commit",
        "checkpoint", "flow_run_id", "previous_run_id", "next_run_id",
    )  # fmt: skip
    values = handoff.model_dump(include=set(names))
    return {name: values[name] for name in names if values[name] not in (None, "", {})}


def _folded(title: str, value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    fence = "`" * 3
    return f"<details><summary>{title}</summary>\n\n{fence}json\n{text}\n{fence}\n\n</details>"
