"""The applications of `perpetual demo NAME`: each as meant, on the real parts that it starts itself."""

import json

import pytest
from workbench import PERPETUAL, REPOSITORY, Site

from perpetual_blocks.cli.demos import NAMES
from perpetual_blocks.cli.demos.application import DemoFailed
from perpetual_blocks.cli.demos.container import container
from perpetual_blocks.cli.demos.memory import make_visits


@pytest.mark.parametrize("name", NAMES)
def test_an_application_outlives_its_limit(site: Site, name: str) -> None:
    """It reaches its limit again and again, never overruns it, and finishes; the plain loop does not."""
    if name == "memory":
        need_containers()
    done = site.perpetual("demo", name, "--json")

    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    with_us, without = shown["with"], shown["without"]
    assert shown["as_meant"] is True
    assert (with_us["ended"], with_us["overruns"]) == ("finished", 0)
    assert with_us["kept"] == with_us["of"] > 0
    assert with_us["reached"] >= 2
    assert without["kept"] < without["of"]
    assert without["ended"] != "finished"


def need_containers() -> None:
    """Skips where this system does not let us make one: that is a right, and no part that could be installed."""
    try:
        with container(2**30):
            pass
    except DemoFailed as error:
        pytest.skip(str(error))


def test_a_chain_survives_the_kernels_kill(site: Site) -> None:
    """A file that needs more memory than its session has left: the kernel kills the session, and the next one, whose
    memory is empty, goes on with that file. No file is missing, and none is there twice."""
    import duckdb

    need_containers()
    visits, database = site.folder / "visits", site.folder / "sums.duckdb"
    make_visits(visits, 6, 160_000)
    make_visits(site.folder / "large", 1, 1_200_000)
    (site.folder / "large" / "day-00.parquet").rename(visits / "day-05-large.parquet")
    given = {"chain": "killed", "visits": visits, "database": database}
    command = [*PERPETUAL, "run", f"{REPOSITORY / 'flows' / 'memory_bound.py'}:sum_up_visits"]

    with container(600 * 2**20) as narrow:
        running = site.start(*narrow.inside([*command, *(f"--param={name}={value}" for name, value in given.items())]))
        code = running.wait()
        killed = narrow.killed()

    status = site.status("killed")
    assert (code, status["status"], status["items"]["completed"]) == (0, "finished", 7)
    assert killed >= 1
    assert "Crashed" in [session["state"] for session in status["sessions"]]
    with duckdb.connect(str(database), read_only=True) as reading:
        counts = dict(reading.execute("SELECT file, sum(visits) FROM sums GROUP BY file").fetchall())
    assert sorted(counts.values()) == [160_000] * 6 + [1_200_000]
