"""What a unit costs on top of a Prefect task that persists its result as JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Comparison, Result

ROUNDS = Path(__file__).with_name("unit_rounds.py")


def measure(quick: bool) -> list[Result]:
    """A trivial unit in a real chain against a bare task, at Prefect's default log level and at WARNING."""
    rounds, units = (3, 30) if quick else (7, 60)
    results = []
    with TemporaryDirectory(prefix="perpetual-bench-") as home, _server(home) as environment:
        for name, level in (("unit_overhead_ratio", None), ("unit_overhead_ratio_quiet", "WARNING")):
            compared = _compare(rounds, units, {**environment, **({"PREFECT_LOGGING_LEVEL": level} if level else {})})
            detail = {
                "unit_ms": compared.ours_ms,
                "task_ms": compared.other_ms,
                "units_a_round": units,
                "log_level": level or "Prefect's default",
                **compared.spread(),
            }
            results.append(Result(name, compared.ratio, "ratio", "a bare Prefect task with a JSON result", detail))
    return results


@contextmanager
def _server(home: str) -> Iterator[dict[str, str]]:
    """The environment with a Prefect home of its own and a server: the configured one, or one started for this."""
    os.environ["PREFECT_HOME"] = home
    os.environ.pop("PREFECT_LOGGING_LEVEL", None)
    from perpetual_blocks.adapters.local_server import local_server

    if "PREFECT_API_URL" in os.environ:
        yield dict(os.environ)
    else:
        with local_server() as address:
            yield {**os.environ, "PREFECT_API_URL": address}


def _compare(rounds: int, units: int, environment: dict[str, str]) -> Comparison:
    """The rounds run in a process of their own, because Prefect reads its settings when it is imported."""
    command = [sys.executable, str(ROUNDS), str(rounds), str(units)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return Comparison(**json.loads(done.stdout))
