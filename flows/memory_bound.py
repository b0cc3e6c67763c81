"""Sums up many Parquet files, more than fit into memory, by a program that needs more and more of it.

python flows/memory_bound.py         # serves the deployment `sum-up-visits/memory-bound` from this process
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import duckdb
from pydantic import Field

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unit, WorkItem

ROWS_AT_ONCE = 50_000


class MemoryBound(PerpetualAgent):
    """Sum up the visits in each Parquet file by the family of their browser, and keep the sums in a database.

    What a user agent's family is, is looked up in a cache that is never emptied, as it happens in life: memory grows
    with each file. At four fifths of what the process may use, the container's limit or ours, the session ends, and the
    next one begins with empty memory. A file is one item, and one transaction of the database: it is there with all of
    its sums, or not at all.
    """

    visits: Path = Field(default=Path("visits"), description="The folder with the Parquet files: user_agent, seconds.")
    database: Path = Field(default=Path("visits.duckdb"), description="The database that the sums are kept in.")

    def plan(self) -> Iterable[WorkItem]:
        for file in sorted(self.visits.glob("*.parquet")):
            yield WorkItem(id=file.name)

    def work_unit(self, unit: Unit) -> dict[str, int]:
        sums: dict[str, list[float]] = {}
        with duckdb.connect() as reading:
            rows = reading.execute("SELECT user_agent, seconds FROM read_parquet(?)", [str(self.visits / unit.id)])
            while some := rows.fetchmany(ROWS_AT_ONCE):
                for user_agent, seconds in some:
                    visits = sums.setdefault(family(user_agent), [0, 0.0])
                    visits[0] += 1
                    visits[1] += seconds
        with self._sums() as database:
            database.execute("DELETE FROM sums WHERE file = ?", [unit.id])  # of a unit whose process died
            rows_of_file = [(unit.id, name, *visits) for name, visits in sorted(sums.items())]
            database.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", rows_of_file)
        return {"families": len(sums), "visits": int(sum(count for count, _ in sums.values()))}

    @contextmanager
    def _sums(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The database, in a transaction."""
        with duckdb.connect(str(self.database)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS sums (file VARCHAR, family VARCHAR, visits BIGINT, seconds DOUBLE)"
            )
            database.begin()
            yield database
            database.commit()


@cache  # the leak: nothing is ever forgotten
def family(user_agent: str) -> str:
    """The family of a browser, which takes a while to find out."""
    return f"family-{int(hashlib.sha256(user_agent.encode()).hexdigest(), 16) % 40:02}"


sum_up_visits = MemoryBound.as_flow(
    name="sum-up-visits",
    # Of 4 GiB, or of what the container may use where that is less.
    budget=Budget(memory=Limit("memory", "4GiB", threshold=0.8)),
)

if __name__ == "__main__":
    sum_up_visits.serve(name="memory-bound", description=MemoryBound.task())
