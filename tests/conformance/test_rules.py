"""The table of rules is true: what it names as a proof is there, and is run."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rules import RULES

ROOT = Path(__file__).parents[2]
SUITES = {1: 20, 2: 5, 3: 18, 4: 19, 5: 16, 6: 13, 7: 15, 8: 22, 9: 20, 10: 7}
"""How many requirements each of AWS's suites has."""


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """The tests that pytest collects of the files that the table names, without those that a mark skips."""
    files = sorted({proof.partition("::")[0] for row in RULES for proof in row.proof})
    command = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    marked = ["-m", "not skip and not skipif and not xfail"]
    done = subprocess.run(
        [sys.executable, *command, *marked, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_rule_has_a_row() -> None:
    """The ten of dhp-conform, and all of AWS's suites, each once."""
    ids = Counter(row.id for row in RULES)
    assert [id for id, count in ids.items() if count > 1] == []
    assert sum(row.source == "dhp" for row in RULES) == 10
    expected = {f"{suite}-{n}" for suite, count in SUITES.items() for n in range(1, count + 1)}
    assert {row.id for row in RULES if row.source == "aws"} == expected


def test_every_row_says_how_it_stands() -> None:
    """A rule is proven, or waits for something, or does not apply."""
    unclear = [row.id for row in RULES if bool(row.proof) is (row.not_ours is not None)]
    assert unclear == []


def test_every_proof_is_run(collected: list[str]) -> None:
    """A test that is named exists and is collected; one of this folder is run for the very rule."""
    cases: dict[str, list[str]] = {}
    for node in collected:
        name, _, case = node.partition("[")
        cases.setdefault(name, []).append(case.rstrip("]"))
    missing = []
    for row in RULES:
        for proof in row.proof:
            own = proof.startswith("tests/conformance/")
            found = [case for case in cases.get(proof, []) if not own or re.search(rf"(^|-){row.id}(-|$)", case)]
            if not found:
                missing.append(f"{row.id}: {proof}")
    assert missing == []
