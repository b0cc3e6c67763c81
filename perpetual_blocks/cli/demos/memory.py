"""The memory: 290 MB of Parquet that need 1.2 GB of memory, in a container of 600 MiB."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpetual_blocks.cli.demos.application import Application, flow_module
from perpetual_blocks.cli.demos.container import Container, container

MEMORY = 600 * 2**20
FILES, ROWS = 28, 160_000


class Memory(Application):
    """Sums up visits in a container, whose kernel kills what needs more memory than it has."""

    name = "memory"
    flow = "memory_bound.py:sum_up_visits"
    needs = ("duckdb",)
    limit = f"{MEMORY // 2**20} MiB of memory"

    _container: Container

    @contextmanager
    def parts(self) -> Iterator[None]:
        """The Parquet files, and the container."""
        make_visits(self.folder / "visits", FILES, ROWS)
        with container(MEMORY) as self._container:
            yield

    def parameters(self) -> dict[str, Any]:
        return {"visits": str(self.folder / "visits"), "database": str(self.folder / "visits.duckdb")}

    def expected(self) -> int:
        return FILES

    def results(self) -> dict[str, str]:
        import duckdb

        if not (self.folder / "visits.duckdb").exists():
            return {}
        with duckdb.connect(str(self.folder / "visits.duckdb"), read_only=True) as database:
            sums = database.execute(
                "SELECT file, list((family, visits, seconds) ORDER BY family) FROM sums GROUP BY file"
            )
            return {file: repr(rows) for file, rows in sums.fetchall()}

    def overruns(self) -> int:
        return self._container.killed()

    def on_machine(self, command: list[str], environment: Mapping[str, str], log: Path) -> int:
        return super().on_machine(self._container.inside(command), environment, log)

    @staticmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        import duckdb

        flow = flow_module("memory_bound.py")
        sums: dict[str, float] = {}
        for file in sorted(Path(parameters["visits"]).glob("*.parquet")):
            with duckdb.connect() as reading:
                rows = reading.execute("SELECT user_agent, seconds FROM read_parquet(?)", [str(file)])
                while some := rows.fetchmany(flow.ROWS_AT_ONCE):
                    for user_agent, seconds in some:
                        family = flow.family(user_agent)
                        sums[family] = sums.get(family, 0.0) + seconds
            yield


def make_visits(folder: Path, files: int, rows: int) -> None:
    """Parquet files of visits, the same ones each time, by as many user agents as there are visits."""
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as making:
        for number in range(files):
            making.execute(
                f"""COPY (
                    SELECT 'Mozilla/5.0 (' || md5('{number}/' || i) || ') ' || md5(i || '/{number}') AS user_agent,
                           (hash(i * {files} + {number}) % 600)::DOUBLE AS seconds
                    FROM range({rows}) AS visit(i)
                ) TO '{folder / f"day-{number:02}.parquet"}' (FORMAT parquet)"""
            )
