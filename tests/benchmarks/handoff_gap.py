"""How long nobody works between two sessions of a served chain: from the end of a unit to the begin of the next one.

Beside it, on the same server at the same time: a plain flow that creates its next run as the last thing that it does.
"""

from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness import Result
from stage import HERE, prefect_server, site_environment
from workbench import Site, wait_until

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.local_server import stop

FLOWS = ("napper", "plain")
CHAIN = "naps"
MOST_SECONDS_A_RUN = 220.0
"""With the time until the next one; ten times as many as its naps take."""

Run = tuple[float, float]
"""The begin of its first nap and the end of its last one, in seconds since the Unix epoch."""


def measure(quick: bool) -> list[Result]:
    """The gaps of a chain with Prefect's default settings."""
    handoffs = 4 if quick else 20
    with TemporaryDirectory(prefix="perpetual-bench-") as home, prefect_server(home) as environment:
        folder = Path(home) / "site"
        site = Site(environment["PREFECT_API_URL"], folder, site_environment(environment, folder))
        try:
            runs = _run(site, handoffs)
            parts = _parts(site, runs["napper"])
        finally:
            for child in site.children:
                stop(child, seconds=40)
    ours, theirs = (_gaps(runs[flow]) for flow in FLOWS)
    detail: dict[str, Any] = {
        "handoffs": len(ours),
        "gaps_s": [round(gap, 2) for gap in ours],
        "warm": sum(waited > 0 for waited in parts["waited_s"]),
        **{part: round(median(seconds), 3) for part, seconds in parts.items()},
        "plain_median_s": round(median(theirs), 2),
        "plain_max_s": round(max(theirs), 2),
        "run_seconds": round(median(ended - began for began, ended in runs["napper"][:-1]), 1),
    }
    against = "run_deployment(timeout=0) at the end of a plain flow"
    return [
        Result("handoff_gap_median_s", round(median(ours), 3), "s", against, detail),
        Result("handoff_gap_max_s", round(max(ours), 3), "s", against, detail),
    ]


def _run(site: Site, handoffs: int) -> dict[str, list[Run]]:
    """The runs of each flow, by its name, until both have come to so many handoffs."""
    notes = {flow: site.folder / f"notes-{flow}" for flow in FLOWS}
    for flow in FLOWS:
        site.serve(HERE / "napping_flows.py", flow)
    for flow in FLOWS:
        chain = {"chain": CHAIN} if flow == "napper" else {}
        site.trigger(f"{flow}/served", {"notes": str(notes[flow]), "runs": handoffs + 1, **chain})
    wait_until(
        lambda: all(len(_read(notes[flow])) > handoffs for flow in FLOWS),
        f"{handoffs} handoffs",
        seconds=(handoffs + 1) * MOST_SECONDS_A_RUN,
    )
    return {flow: _read(notes[flow]) for flow in FLOWS}


def _read(notes: Path) -> list[Run]:
    """One run for each process that has napped."""
    runs: dict[str, Run] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        process, began, ended = line.split()
        runs[process] = (runs.get(process, (float(began),))[0], float(ended))
    return list(runs.values())


def _gaps(runs: list[Run]) -> list[float]:
    return [began - ended for (_, ended), (began, _) in pairwise(runs)]


def _parts(site: Site, runs: list[Run]) -> dict[str, list[float]]:
    """Of what each gap is made: until the session was closed, until the next was opened, until its first unit; and how
    long that one's process had waited."""
    ledger = SqlLedger(site.environment["PERPETUAL_LEDGER"])
    sessions = ledger.sessions(CHAIN)[: len(runs)]
    ledger.close()
    parts: dict[str, list[float]] = {"waited_s": [], "shutdown_s": [], "open_s": [], "resume_s": []}
    for (before, after), ((_, ended), (began, _)) in zip(pairwise(sessions), pairwise(runs), strict=True):
        closed = before.ended_at or ended
        parts["waited_s"].append(after.waited or 0.0)
        parts["shutdown_s"].append(closed - ended)
        parts["open_s"].append(after.started_at - closed)
        parts["resume_s"].append(began - after.started_at)
    return parts
