"""What a unit costs on top of a Prefect task that persists its result as JSON."""

from tempfile import TemporaryDirectory

from harness import Comparison, Result
from stage import prefect_server, run_script


def measure(quick: bool) -> list[Result]:
    """A trivial unit in a real chain against a bare task, at Prefect's default log level and at WARNING."""
    rounds, units = (3, 30) if quick else (7, 60)
    results = []
    with TemporaryDirectory(prefix="perpetual-bench-") as home, prefect_server(home) as environment:
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


def _compare(rounds: int, units: int, environment: dict[str, str]) -> Comparison:
    """The rounds run in a process of their own, because Prefect reads its settings when it is imported."""
    return Comparison(**run_script("unit_rounds.py", rounds, units, environment=environment))
