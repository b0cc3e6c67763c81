"""How many trivial units a second a session does, beside what else remembers each step of a long program.

All run in turns, each time in a process of its own, and as durable as each is by default: DBOS and LangGraph sync each
step to the disk; sessions, and the raw commits, what they have done at their end (unless told `durability="full"`).
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from harness import Comparison, Result, Round, in_turns
from stage import prefect_server, run_script, site_environment

RIVALS = {
    "dbos": ("dbos", "steps of a DBOS workflow on SQLite"),
    "langgraph": ("langgraph.checkpoint.sqlite", "nodes of a LangGraph graph with SqliteSaver"),
}
"""By name: the module that it needs, and what is measured."""


def measure(quick: bool) -> list[Result]:
    """Units a second of a session's working loop, and how many times as many as the others do."""
    items, seconds, steps, rounds = (3_000, 15.0, 150, 1) if quick else (50_000, 40.0, 1_000, 5)
    found = {name: _is_installed(module) for name, (module, _) in RIVALS.items()}
    rivals: dict[str, Round] = {
        name: lambda name=name: [run_script(f"{name}_steps.py", steps) / steps]  # type: ignore[misc]
        for name in RIVALS
        if found[name]
    }
    with TemporaryDirectory(prefix="perpetual-bench-") as home, prefect_server(home) as environment:
        latest, noted = Path(home) / "site", {}

        def ours() -> list[float]:
            shutil.rmtree(latest, ignore_errors=True)
            done = run_script("trivial_session.py", items, seconds, environment=site_environment(environment, latest))
            assert done["units"], f"no unit ran in {seconds:g} s"
            noted["units"] = done["units"]
            noted["processor_us_a_unit"] = round(1e6 * done["processor_seconds"] / done["units"])
            return [done["seconds"] / done["units"]]

        def raw() -> list[float]:
            done = run_script("raw_commits.py", latest)
            noted["units_a_commit"] = round(done["units"] / done["commits"], 1)
            noted["outcome_bytes_a_unit"] = round(done["outcome_bytes"] / done["units"])
            return [done["seconds"] / done["units"]]

        sides = {"ours": ours, "raw": raw, **rivals}
        measured = dict(zip(sides, in_turns(list(sides.values()), rounds), strict=True))
    detail = {**noted, "load": round(os.getloadavg()[0], 1)}
    rates = sorted(1 / each for each in measured["ours"])
    slowest, fastest = round(rates[0]), round(rates[-1])
    results = [
        Result(
            "batched_units_per_s",
            round(1 / median(measured["ours"])),
            "units/s",
            "nothing",
            {**detail, "slowest_round": slowest, "fastest_round": fastest, "rounds": rounds},
        )
    ]
    for name, (module, against) in RIVALS.items():
        if name in measured:
            results.append(_times_as_fast(f"batched_vs_{name}", against, measured["ours"], measured[name], detail))
        else:
            missing = {"skipped": f"{module} is not installed: pip install perpetual-blocks[bench]"}
            results.append(Result(f"batched_vs_{name}", None, "ratio", against, missing))
    against = "the same rows and bytes through sqlite3 and a file, as many to a transaction"
    results.append(_times_as_fast("batched_vs_raw", against, measured["ours"], measured["raw"], detail))
    return results


def _times_as_fast(name: str, against: str, ours: list[float], other: list[float], detail: dict[str, Any]) -> Result:
    compared = Comparison(ours, other).inverse()
    rates = {"ours_per_s": round(1 / median(ours)), "theirs_per_s": round(1 / median(other))}
    return Result(name, compared.ratio, "ratio", against, {**rates, **detail, **compared.spread()})


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
