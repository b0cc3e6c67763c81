"""A queue at a glance, as a page of Markdown: what is done, who works on it, what was given up and why.

Links are relative to an artifact's page, which both of Prefect's UIs understand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from perpetual_blocks.clock import isoformat
from perpetual_blocks.handoff.markup import cell, one_line
from perpetual_blocks.session.agents import AgentLine, Agents, spent, together
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.work import Item, ItemStatus

LISTED = 10
"""How many items of a status are listed."""

COUNTED_BY_KIND = 1000
"""A queue of at most so many items is counted by kind, too: all of them are looked at for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """How a queue stands.

    Attributes:
        at: When that was, in seconds since the Unix epoch.
        kinds: Counts by kind, where the queue is small and has several.
        running: The first items that are being worked on, and `discarded` that were given up.
    """

    queue: str
    at: float
    counts: Mapping[ItemStatus, int]
    agents: Sequence[AgentLine]
    running: Sequence[Item] = ()
    discarded: Sequence[Item] = ()
    kinds: Mapping[str, Mapping[ItemStatus, int]] = field(default_factory=dict)

    @property
    def in_short(self) -> str:
        """A line of it."""
        return done_in_short(self.counts)


def done_in_short(counts: Mapping[ItemStatus, int]) -> str:
    """How much of a queue is done, and how much was given up."""
    done, discarded = counts.get(ItemStatus.COMPLETED, 0), counts.get(ItemStatus.DISCARDED, 0)
    return f"{done:,} of {sum(counts.values()):,} items done" + (f", {discarded:,} discarded" if discarded else "")


def summarise(ledger: Ledger, queue: str, now: float, agents: Agents) -> QueueSummary:
    """How a queue stands now.

    Args:
        agents: As far as they were looked at, which tells their rates.
    """
    counts = ledger.counts(queue)
    kinds = ledger.kinds(queue) if sum(counts.values()) <= COUNTED_BY_KIND else []
    return QueueSummary(
        queue=queue,
        at=now,
        counts=counts,
        agents=agents.lines(ledger, queue, now),
        running=ledger.items(queue, ItemStatus.CLAIMED, LISTED),
        discarded=ledger.items(queue, ItemStatus.DISCARDED, LISTED),
        kinds={kind.kind: kind.items for kind in kinds} if len(kinds) > 1 else {},
    )


def to_markdown(summary: QueueSummary) -> str:
    """The page."""
    queue, counts = summary.queue, summary.counts
    at = (isoformat(summary.at) or "")[:19].replace("T", " ")
    more = f"`perpetual items retry {queue}` tries them again" if summary.discarded else ""
    parts = [
        f"**{queue}**: {summary.in_short}",
        _counts(summary),
        agents_to_markdown(summary.agents),
        _section("Running", summary.running, counts.get(ItemStatus.CLAIMED, 0), _running),
        _section("Discarded", summary.discarded, counts.get(ItemStatus.DISCARDED, 0), _discarded, more),
        f"*As it stood at {at} UTC; `perpetual watch {queue}` shows it live.*",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def agents_to_markdown(agents: Sequence[AgentLine], decision: str = "") -> str:
    """One row an agent, with links to its runs, and what they come to together where there are several.

    Args:
        decision: How many were to work, and why.
    """
    rows = [
        f"| [{agent.chain}](../../runs?tags=chain:{agent.chain}&tag=chain:{agent.chain}) | {agent.state} | "
        f"{agent.sessions} | {agent.units:,} | {agent.per_minute:,.1f} | {spent(agent.usage)} | {cell(agent.takes)} | "
        f"{cell(agent.reason)} |"
        for agent in agents
    ]
    if len(agents) > 1 or decision:
        units, rate = sum(agent.units for agent in agents), sum(agent.per_minute for agent in agents)
        rows.append(f"| **together** | | | {units:,} | {rate:,.1f} | {spent(together(agents))} | | {cell(decision)} |")
    header = [
        "| agent | state | sessions | units | a minute | spent | takes | why |",
        "| --- | --- | ---: | ---: | ---: | --- | --- | --- |",
    ]
    return "\n".join([*header, *rows])


def _counts(summary: QueueSummary) -> str:
    shown = [status for status in ItemStatus if summary.counts.get(status, 0)]
    if not shown:
        return ""
    rows = {"all": summary.counts, **dict(sorted(summary.kinds.items()))}
    lines = [f"| kind | {' | '.join(shown)} | total |", f"| --- |{' ---: |' * (len(shown) + 1)}"]
    for kind, counts in rows.items():
        cells = " | ".join(f"{counts.get(status, 0):,}" for status in shown)
        lines.append(f"| {cell(kind)} | {cells} | {sum(counts.values()):,} |")
    return "\n".join(lines)


def _section(title: str, items: Sequence[Item], count: int, line: Callable[[Item], str], more: str = "") -> str:
    if not items:
        return ""
    lines = [f"- `{_plain(item.id)}`{line(item)}" for item in items]
    lines += [f"- and {count - len(items):,} more"] if count > len(items) else []
    return "\n".join([f"## {title}\n", *lines, *([f"\n{more}"] if more else [])])


def _running(item: Item) -> str:
    said = [f"unit {item.units + 1}"]
    said += [f"{item.progress[0]:g} of {item.progress[1]:g}"] if item.progress else []
    said += [f"of {item.claimant}"] if item.claimant else []
    said += [one_line(item.next_action)] if item.next_action else []
    return ": " + ", ".join(said)


def _discarded(item: Item) -> str:
    return f": {one_line(item.error)}" if item.error else ""


def _plain(text: str) -> str:
    return one_line(text).replace("`", "'")
