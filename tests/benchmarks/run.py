"""Runs the benchmarks: `python tests/benchmarks/run.py [--json] [--quick] [NAME...]`.

A benchmark is a function that takes `quick` and returns results; to add one, write it in a file next to this one and
enter it in `BENCHMARKS` with the names of its results.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

# The checkout's own package, whatever else is installed, and what benchmarks share with tests.
sys.path.insert(1, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import agents
import batched
import handoff_gap
import imports
import ledger
import long_ledger
import pool
import session_memory
import stopping
import unit_overhead
from harness import Result

BENCHMARKS: dict[tuple[str, ...], Callable[[bool], list[Result]]] = {
    ("agents_scaling_pg_8_1",): agents.measure,
    ("batched_units_per_s", "batched_vs_dbos", "batched_vs_langgraph", "batched_vs_raw"): batched.measure,
    ("handoff_gap_median_s", "handoff_gap_max_s"): handoff_gap.measure,
    ("import_ms", "import_vs_bare", "import_vs_prefect"): imports.measure,
    ("ledger_commit_ms", "ledger_vs_raw"): ledger.measure_commit,
    ("claim_ratio_1m_1k", "resume_ratio_1m_1k", "status_ratio_1m_1k"): long_ledger.measure,
    ("pool_overshoot", "pool_use"): pool.measure,
    ("session_rss_growth_mb_per_100k_units",): session_memory.measure,
    ("stopping_decision_us",): stopping.measure,
    ("unit_overhead_ratio", "unit_overhead_ratio_quiet"): unit_overhead.measure,
}


def main() -> None:
    """Runs what was asked for and prints the report."""
    names = [name for family in BENCHMARKS for name in family]
    parser = argparse.ArgumentParser(description="Benchmarks of perpetual-blocks.")
    parser.add_argument("--json", action="store_true", help="print the results as a JSON list, and nothing else")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller queues: a smoke test")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"all if none is given, of: {', '.join(names)}")
    options = parser.parse_args()
    wanted = set(options.names or names)
    if unknown := wanted.difference(names):
        parser.error(f"no benchmark: {', '.join(sorted(unknown))}")
    results: list[Result] = []
    for family, measure in BENCHMARKS.items():
        if wanted.intersection(family):
            results += [result for result in measure(options.quick) if result.name in wanted]
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        Console().print(_table(results))


def _table(results: Iterable[Result]) -> Table:
    table = Table("benchmark", "value", "unit", "against", "detail")
    table.columns[1].justify = "right"
    for result in results:
        detail = ", ".join(f"{name} {value}" for name, value in result.detail.items())
        value = "none" if result.value is None else f"{result.value:g}"
        table.add_row(result.name, value, result.unit, result.against, detail)
    return table


if __name__ == "__main__":
    main()
