"""Primes on machines that end: the counts are those of mathematics, however often the work is interrupted."""

import json
from pathlib import Path

import pytest
import time_boxed
from time_boxed import SEGMENT, TimeBoxed, primes_between

from perpetual_blocks import Budget
from perpetual_blocks.testing import assert_resumable, run_chain, run_session

PRIMES, TWINS = 78_498, 8_169
"""Below a million: OEIS A006880 and A007508."""


def test_primes_of_a_part() -> None:
    """A part of the numbers has the primes that trial division finds there."""
    by_division = [n for n in range(2, 500) if all(n % d for d in range(2, int(n**0.5) + 1))]
    for start, end in ((0, 500), (0, 2), (2, 3), (49, 50), (113, 114), (114, 127), (361, 500)):
        assert primes_between(start, end) == [prime for prime in by_division if start <= prime < end]


def test_the_counts_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges of a million add up, where each unit is one segment and sessions end within ranges."""
    monkeypatch.setattr(time_boxed, "UNIT_SECONDS", 0.0)

    chain = run_chain(TimeBoxed(upto=1_000_000, width=250_000, out=tmp_path), budget=Budget(seconds=4), unit_seconds=1)

    assert len(chain) > 2
    assert all(session.state == "Wrapped" for session in chain[:-1])
    counts = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert sum(count["primes"] for count in counts) == PRIMES
    assert sum(count["twins"] for count in counts) == TWINS


def test_a_half_done_range_goes_on_at_its_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is asked to stop within a range keeps what is counted; the next one counts nothing twice."""
    monkeypatch.setattr(time_boxed, "UNIT_SECONDS", 0.0)
    first = run_session(TimeBoxed(upto=400_000, width=400_000, out=tmp_path), stop_after=2)

    item = first.items["from-0"]
    assert (first.state, item.progress, item.cursor["at"]) == ("Wrapped", (2 * SEGMENT, 400_000), 2 * SEGMENT)
    assert item.next_action == "count on from 200,000"
    assert first.go_on().results["from-0"]["primes"] == 33_860


def test_it_is_resumable() -> None:
    """At every point, in every way."""
    print(assert_resumable(lambda folder: TimeBoxed(upto=2 * SEGMENT, width=SEGMENT, out=folder), most_cases=20))
