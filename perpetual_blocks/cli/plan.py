"""`perpetual plan`: how many sessions, how long and how much, before it happens."""

import time
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perpetual_blocks.budget import Budget
from perpetual_blocks.budget.plan import Plan, Run, with_changes
from perpetual_blocks.cli.output import Json, Where, out, print_json
from perpetual_blocks.clock import isoformat
from perpetual_blocks.session.planning import plan_chain, plan_items
from perpetual_blocks.usage import RESOURCES, show, show_duration

HERE = Where()
WIDTH = 60


def plan(
    what: str,
    *,
    what_if: Annotated[list[str] | None, Parameter(negative="")] = None,
    param: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Say how many sessions a chain will take, how long, waits for quotas included, and what it will cost.

    Simulates many futures, from what the chain, or an earlier one of the same agent, has learned, and from estimates.

    Example: perpetual plan docs --what-if calls/day=1000

    Args:
        what: A chain's name, or path/to/file.py:name of a flow for a chain that is not started yet.
        what_if: Another amount for a limit: tokens=400000, calls/day=1000, cost/total=80. May be given several times.
        param: With a flow: one of its parameters, as name=value; may be given several times.
        json: Print one JSON object.
    """
    made, budget = _plan(what, what_if or [], param or [], where)
    now = time.time()
    print_json(_as_json(what, made, budget, now)) if json else out.print(_view(what, made, budget, now))


def _plan(what: str, changes: list[str], param: list[str], where: Where) -> tuple[Plan, Budget]:
    from perpetual_blocks.blocks.loading import load_budget
    from perpetual_blocks.cli.entrypoint import load_blocks, load_perpetual_flow, parse_parameters
    from perpetual_blocks.errors import InvalidInput

    if ":" not in what:
        if param:
            raise InvalidInput.of("--param", param[0], "none for a chain: its items are planned already")
        ledger = where.open_ledger()
        chain = ledger.chain(what)
        budget = with_changes(chain.budget, changes)
        return plan_chain(ledger, chain, budget, time.time()), budget
    flow = load_perpetual_flow(what)
    parameters = parse_parameters(flow, param)
    parameters.pop("chain", None)
    agent = flow.agent(**load_blocks(flow, parameters))
    budget = with_changes(load_budget(flow.budget), changes)
    ledger = where.get_store(flow.store).get_ledger()
    return plan_items(ledger, type(agent).__name__, agent.plan(), budget, time.time()), budget


def _as_json(what: str, made: Plan, budget: Budget, now: float) -> dict[str, Any]:
    def both(name: str) -> dict[str, float]:
        return {"p50": made.quantile(0.5, name), "p90": made.quantile(0.9, name)}

    seconds = both("duration")
    return {
        "plan": what,
        "budget": budget.to_json(),
        "units": made.units,
        "runs": len(made.runs),
        "finishes": made.finishes,
        "sessions": both("sessions"),
        "seconds": seconds,
        "waiting_seconds": both("waiting"),
        "finish": {share: isoformat(now + value) for share, value in seconds.items()},
        "usage": {name: both(name) for name in RESOURCES if any(run.usage.get(name) for run in made.runs)},
        "stopped_by": made.middle().stopped_by,
        "unknown": list(made.unknown),
    }


def _view(what: str, made: Plan, budget: Budget, now: float) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("")
    for name in ("half of the time", "9 of 10 times"):
        table.add_column(name, justify="right")
    both = (0.5, 0.9)
    table.add_row("sessions, at most", *(f"{made.quantile(share, 'sessions'):,.0f}" for share in both))
    table.add_row("takes", *(show_duration(made.quantile(share, "duration")) for share in both))
    if made.quantile(0.9, "waiting"):
        table.add_row("of it waiting for quotas", *(show_duration(made.quantile(share, "waiting")) for share in both))
    table.add_row("over by", *(_when(now + made.quantile(share, "duration")) for share in both))
    for name in RESOURCES:
        if any(run.usage.get(name) for run in made.runs):
            label = "time at work" if name == "seconds" else name
            table.add_row(label, *(show(name, made.quantile(share, name)) for share in both))
    parts: list[RenderableType] = [
        Text.assemble((what, "bold"), f"  {made.units:,} units left, {len(made.runs)} futures simulated"),
        Text("; ".join(map(str, budget)) or "no limits", style="dim"),
        Text(),
        table,
        Text(),
        _timeline(made.middle()),
    ]
    if made.finishes < 1:
        gone = f"In {1 - made.finishes:.0%} of the futures a total is gone before the work is done."
        parts.append(Text(gone, style="yellow"))
    if made.unknown:
        names = ", ".join(made.unknown)
        unknown = f"Nothing is known of {names} yet: give the items an estimate, or let a first session run."
        parts.append(Text(unknown, style="yellow"))
    return Group(*parts)


def _timeline(run: Run) -> RenderableType:
    """The middle future as a line: sessions at work, and waits."""
    text = Text()
    scale = WIDTH / max(run.duration, 1e-9)
    drawn = position = 0.0
    for stretch in run.stretches:
        position += stretch.seconds * scale
        cells = round(position) - round(drawn)
        text.append(("█" if stretch.kind == "work" else "░") * cells, "cyan" if stretch.kind == "work" else "dim")
        drawn = position
    causes = ", ".join(f"{count:,} by {name}" for name, count in run.stopped_by.items() if name != "queue-empty")
    legend = Text(f"█ at work  ░ waiting{f'; sessions ended: {causes}' if causes else ''}", style="dim")
    return Group(text, legend)


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%a %d %b %H:%M")
