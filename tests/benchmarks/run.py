"""Runs the benchmarks: `python tests/benchmarks/run.py [--json] [--quick] [--only NAME]`.

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
sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[2]))

import handoff
import imports
import ledger
import pool
import stopping
import unit_overhead
from harness import Result

BENCHMARKS: dict[tuple[str, ...], Callable[[bool], list[Result]]] = {
    ("handoff_gap_median_s", "handoff_gap_max_s"): handoff.measure,
    ("import_ms", "import_vs_bare", "import_vs_prefect"): imports.measure,
    ("ledger_commit_ms", "ledger_vs_raw"): ledger.measure_commit,
    ("claim_ratio_100k_1k",): ledger.measure_claim,
    ("pool_overshoot", "pool_use"): pool.measure,
    ("stopping_decision_us",): stopping.measure,
    ("unit_overhead_ratio", "unit_overhead_ratio_quiet"): unit_overhead.measure,
}


def main() -> None:
    """Runs what was asked for and prints the report."""
    names = [name for family in BENCHMARKS for name in family]
    parser = argparse.ArgumentParser(description="Benchmarks of perpetual-blocks.")
    parser.add_argument("--json", action="store_true", help="print the results as a JSON list, and nothing else")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller queues: a smoke test")
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help="may be given several times")
    options = parser.parse_args()
    wanted = set(options.only or names)
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
        table.add_row(result.name, f"{result.value:g}", result.unit, result.against, detail)
    return table


if __name__ == "__main__":
    main()
