"""Parquet that does not fit: the sums are those of the database itself, and a session ends at four fifths."""

from pathlib import Path

import duckdb
from memory_bound import MemoryBound, family

from perpetual_blocks import Budget, Limit
from perpetual_blocks.cli.demos.memory import make_visits
from perpetual_blocks.testing import ScriptedMeter, run_chain, run_session

MIB = 2**20
FILES, ROWS = 4, 500


def agent_in(folder: Path) -> MemoryBound:
    """Four small files of visits, and a database that is not there yet."""
    make_visits(folder / "visits", FILES, ROWS)
    return MemoryBound(visits=folder / "visits", database=folder / "sums.duckdb")


def sums(folder: Path) -> dict[str, tuple[int, float]]:
    """What the database holds, by file."""
    with duckdb.connect(str(folder / "sums.duckdb"), read_only=True) as database:
        rows = database.execute("SELECT file, sum(visits), sum(seconds) FROM sums GROUP BY file").fetchall()
    return {file: (visits, seconds) for file, visits, seconds in rows}


def by_duckdb(folder: Path) -> dict[str, tuple[int, float]]:
    """The same, by DuckDB alone."""
    with duckdb.connect() as reading:
        rows = reading.execute(
            "SELECT parse_filename(filename) AS file, count(*), sum(seconds)"
            " FROM read_parquet(?, filename = true) GROUP BY file",
            [str(folder / "visits" / "*.parquet")],
        ).fetchall()
    return {file: (visits, seconds) for file, visits, seconds in rows}


def test_a_session_ends_at_four_fifths_of_the_container(tmp_path: Path) -> None:
    """Of a container that is smaller than what the budget names; the next session begins with what it has itself."""
    budget = Budget(memory=Limit("memory", "4GiB", threshold=0.8))
    meter = ScriptedMeter(100 * MIB, 300 * MIB, 490 * MIB, 100 * MIB, capacity=600.0 * MIB)

    first, second = run_chain(agent_in(tmp_path), budget=budget, meters={"memory": meter})

    assert (first.state, len(first.units), first.reason.code) == ("Wrapped", 2, "budget:memory")
    assert (second.state, len(second.units)) == ("Finished", 2)
    assert sums(tmp_path) == by_duckdb(tmp_path)


def test_a_unit_that_comes_again_counts_once(tmp_path: Path) -> None:
    """What a unit had written before its process died is replaced."""
    agent = agent_in(tmp_path)
    run_session(agent)

    again = run_session(agent)

    assert again.state == "Finished"
    assert sums(tmp_path) == by_duckdb(tmp_path)


def test_the_cache_is_never_emptied(tmp_path: Path) -> None:
    """It is what the application is about."""
    family.cache_clear()

    run_session(agent_in(tmp_path))

    assert family.cache_info().currsize == FILES * ROWS
