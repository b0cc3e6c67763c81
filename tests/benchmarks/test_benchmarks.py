"""The benchmarks run, and print what they promise; and the stopping policy is plugged in through what sessions run."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["stopping_decision_us", "ledger_vs_raw"])
def test_a_benchmark_prints_json(name: str) -> None:
    """Name, value, unit, what it is to be held against, and detail."""
    command = [sys.executable, str(HERE / "run.py"), "--json", "--quick", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)

    [result] = json.loads(done.stdout)
    assert set(result) == {"name", "value", "unit", "against", "detail"}
    assert result["name"] == name
    assert result["value"] > 0


def test_an_unknown_benchmark_is_refused() -> None:
    """With the names of those that there are."""
    command = [sys.executable, str(HERE / "run.py"), "batched_units_per_day"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)

    assert done.returncode == 2
    assert "no benchmark: batched_units_per_day" in done.stderr


def test_a_long_ledger_is_made_of_a_short_one(tmp_path: Path) -> None:
    """Half of its items are completed, sessions go on with it, and its units can be committed once more without us."""
    sys.path.insert(0, str(HERE))
    from long_ledger import CHAIN, Site

    site = Site(tmp_path / "site", 1_000)
    site.resume()
    counts = {status: count for status, count in site.ledger.counts(CHAIN).items() if count}
    units = len(site.ledger.spends(CHAIN, "calls", 0.0))
    site.ledger.close()
    command = [sys.executable, str(HERE / "raw_commits.py"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert counts == {"completed": 501, "available": 499}
    assert units == 501
    assert json.loads(done.stdout)["units"] == 501


@pytest.mark.parametrize("cancellable", [False, True])
def test_the_policy_of_sessions_is_plugged_in(cancellable: bool) -> None:
    """It fills budgets, keeps what shutdowns need, and knows as much in each session as in the one before."""
    sys.path.insert(0, str(HERE))
    from stopping_adapter import factory

    random_costs, budget = random.Random(1), 100.0
    policy = factory(budget, 2.0, cancellable, 2.0 if cancellable else None)
    used, overrun = 0.0, 0
    for session in range(200):
        remaining = budget
        policy.start(budget)
        while remaining == budget or policy.go(remaining, (None, None, None, 1)):
            cost = random_costs.expovariate(1.0)
            room = remaining - policy.reserve() if cancellable else remaining
            policy.seen(min(cost, room), (None, None, None, 1), cost <= room)
            remaining -= min(cost, room)
            if cost > room:
                break
        overrun += remaining < 2.0
        used += (budget - remaining) * (session >= 100)
        policy.closed(2.0, remaining >= 2.0)

    assert used / 100 / budget > 0.88
    assert overrun <= 5
