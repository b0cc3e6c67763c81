"""What `import perpetual_blocks` costs, so that it stays lazy."""

import subprocess
import sys

from harness import Result, Round, side_by_side, timed


def measure(quick: bool) -> list[Result]:
    """A fresh interpreter that imports the package, against one that does nothing and one that imports Prefect."""
    rounds = 3 if quick else 15
    ours = _interpreter("import perpetual_blocks")
    bare = side_by_side(ours, _interpreter("pass"), rounds)
    prefect = side_by_side(ours, _interpreter("import prefect"), 3 if quick else 7)
    return [
        Result(
            "import_ms",
            round(bare.ours_ms - bare.other_ms, 2),
            "ms",
            "the process's time without the import",
            {"with_ms": bare.ours_ms, "without_ms": bare.other_ms, **bare.spread()},
        ),
        Result("import_vs_bare", bare.ratio, "ratio", "python -c pass", bare.spread()),
        Result(
            "import_vs_prefect",
            prefect.ratio,
            "ratio",
            'python -c "import prefect"',
            {"ours_ms": prefect.ours_ms, "prefect_ms": prefect.other_ms, **prefect.spread()},
        ),
    ]


def _interpreter(code: str) -> Round:
    command = [sys.executable, "-c", code]
    return lambda: timed(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL), 3)
