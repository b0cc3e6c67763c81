"""The handoff gap: from the end of the last unit of a session to the beginning of the first of the next, under serve.

All settings are Prefect's own. Beside it: a plain flow that creates its follow-on run when it has done its work.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness import Result

sys.path.insert(1, str(Path(__file__).parents[1] / "integration"))

from handoff_agent import UNITS
from workbench import Site

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.local_server import local_server, stop

HERE = Path(__file__).parent
HANDOFFS, QUICK_HANDOFFS, PLAIN_HANDOFFS = 20, 2, 5
MOST_SECONDS = 120.0
"""How long a session and its handoff may take."""


def measure(quick: bool) -> list[Result]:
    """The median and the worst gap of a chain of real runs."""
    handoffs = QUICK_HANDOFFS if quick else HANDOFFS
    with _served() as site:
        sessions = _run_chain(site, handoffs)
        plain = _run_plain(site, 1 if quick else PLAIN_HANDOFFS)
    gaps = [session["gap"] for session in sessions]
    detail = {
        "handoffs": len(gaps),
        "warm": sum(session["waited"] > 0 for session in sessions),
        **{part: round(median(session[part] for session in sessions), 3) for part in ("shutdown", "open", "resume")},
        "plain_median_s": round(median(plain), 2),
        "plain_max_s": round(max(plain), 2),
    }
    against = "run_deployment at the end of a plain flow"
    return [
        Result("handoff_gap_median_s", round(median(gaps), 3), "s", against, detail),
        Result("handoff_gap_max_s", round(max(gaps), 3), "s", against, detail),
    ]


@contextmanager
def _served() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="perpetual-handoff-") as name:
        folder = Path(name)
        before = os.environ.get("PREFECT_HOME")
        os.environ["PREFECT_HOME"] = str(folder / "home")
        try:
            with local_server() as api:
                here = {
                    "PREFECT_API_URL": api,
                    "PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"),
                    "PERPETUAL_LEDGER": str(folder / "ledger.db"),
                    "PYTHONPATH": str(HERE.parents[1]),
                }
                site = Site(api, folder, {**os.environ, **here})
                try:
                    site.serve(HERE / "handoff_agent.py")
                    yield site
                finally:
                    for child in site.children:
                        stop(child, seconds=40)
        finally:
            os.environ.pop("PREFECT_HOME")
            if before is not None:
                os.environ["PREFECT_HOME"] = before


def _run_chain(site: Site, handoffs: int) -> list[dict[str, Any]]:
    """Each handoff: its gap, and of what it is made."""
    notes = site.folder / "notes"
    site.trigger("sleeper/bench", {"notes": str(notes), "n": UNITS * (handoffs + 1), "chain": "gaps"})
    over = ("finished", "stalled", "paused", "cancelled", "exhausted")
    _until(lambda: site.status("gaps").get("status") in over, handoffs + 1)
    ledger = SqlLedger(site.environment["PERPETUAL_LEDGER"])
    sessions = ledger.sessions("gaps")
    ledger.close()
    units, done = _units(notes), 0
    found = []
    for before, after in pairwise(sessions):
        done += before.units
        ended, began = units[done - 1][1], units[done][0]
        found.append(
            {
                "gap": began - ended,
                "waited": after.waited or 0.0,
                "shutdown": (before.ended_at or 0.0) - ended,
                "open": after.started_at - (before.ended_at or 0.0),
                "resume": began - after.started_at,
            }
        )
    return found


def _run_plain(site: Site, handoffs: int) -> list[float]:
    notes = site.folder / "plain"
    site.trigger("plain/bench", {"notes": str(notes), "left": handoffs})
    _until(lambda: notes.exists() and len(_units(notes)) > handoffs, handoffs + 1)
    return [after[0] - before[1] for before, after in pairwise(_units(notes))]


def _units(notes: Path) -> list[tuple[float, float]]:
    """When each unit began and ended, in order."""
    lines = (line.split() for line in notes.read_text().splitlines())
    return sorted((float(began), float(ended)) for began, ended in lines)


def _until(look: Callable[[], object], sessions: int) -> None:
    deadline = time.monotonic() + sessions * MOST_SECONDS
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done within {MOST_SECONDS:g} s a session")
        time.sleep(0.5)
