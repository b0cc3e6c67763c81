"""What the process of a session keeps of each unit that it has done."""

from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory

from harness import Result
from stage import prefect_server, run_script, site_environment

MIB = 1024 * 1024
PLANNING_SECONDS = 0.01
WARM_UP_SHARE = 0.2
"""Of a session's units: until then imports, caches, and what is kept of the last few units only, still grow."""


def measure(quick: bool) -> list[Result]:
    """The growth of the resident memory from the first fifth of a session's units to its last, for 100,000 units.

    Another session, which has no time for units, plans the queue: the memory that plans leave free in their process
    would hide what units fill.
    """
    items, seconds = (20_000, 30.0) if quick else (400_000, 90.0)
    with TemporaryDirectory(prefix="perpetual-bench-") as home, prefect_server(home) as environment:
        site = site_environment(environment, Path(home) / "site")
        run_script("trivial_session.py", items, PLANNING_SECONDS, environment=site)
        session = run_script("trivial_session.py", items, seconds, environment=site)
    units: int = session["units"]
    samples = [sample for sample in session["memory"] if sample[0] >= WARM_UP_SHARE * units]
    done, resident = zip(*samples, strict=True)
    per_100k = round(100_000 * linear_regression(done, resident).slope / MIB, 2)
    detail = {
        "units": units,
        "measured_units": done[-1] - done[0],
        "rss_before_mb": round(resident[0] / MIB, 1),
        "rss_after_mb": round(resident[-1] / MIB, 1),
    }
    return [Result("session_rss_growth_mb_per_100k_units", per_100k, "MB/100,000 units", "a flat line", detail)]
