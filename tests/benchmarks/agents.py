"""How much more eight agents do than one, all on one PostgreSQL ledger, where units wait and need no processor."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from harness import Result
from postgres_server import PostgresServer, running_server
from stage import HERE, prefect_server, site_environment
from workbench import wait_until

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.local_server import stop
from perpetual_blocks.session.orchestration import agent_name

AGENTS = 8
QUEUE = "agents"
GO = "go"
WARM_UP_SECONDS = 2.0
GRACE_SECONDS = 60
START_SECONDS = 600


def measure(quick: bool) -> list[Result]:
    """Units a second of eight agents, each in a process of its own, against one."""
    seconds, rounds = (10.0, 1) if quick else (30.0, 3)
    rates: dict[int, list[float]] = {1: [], AGENTS: []}
    with (
        TemporaryDirectory(prefix="perpetual-bench-") as home,
        prefect_server(home) as environment,
        running_server() as server,
    ):
        for number in range(rounds):
            for count in rates if number % 2 else reversed(rates):
                folder = Path(home) / f"{number}-{count}"
                rates[count].append(_rate(server, folder, environment, count, seconds))
    several, one = (median(rates[count]) for count in (AGENTS, 1))
    detail = {
        "agents": AGENTS,
        "units_per_s": round(several),
        "one_agent_units_per_s": round(one),
        "of_each_round": [round(many / few, 2) for many, few in zip(rates[AGENTS], rates[1], strict=True)],
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    return [Result("agents_scaling_pg_8_1", round(several / one, 2), "ratio", "one agent", detail)]


def _rate(server: PostgresServer, folder: Path, environment: Mapping[str, str], count: int, seconds: float) -> float:
    """Units a second of so many agents together, once all of them work."""
    folder.mkdir()
    site = {**site_environment(environment, folder), "PERPETUAL_LEDGER": server.make_database()}
    with _working_agents(folder, site, count) as all_notes:
        wait_until(lambda: all(notes.exists() for notes in all_notes), "all agents at work", seconds=START_SECONDS)
        (folder / GO).touch()
        time.sleep(WARM_UP_SECONDS)
        since = time.time()
        time.sleep(seconds)
        until = time.time()
    ended = [float(line) for notes in all_notes for line in notes.read_text().splitlines()]
    return sum(since < at <= until for at in ended) / (until - since)


@contextmanager
def _working_agents(folder: Path, environment: Mapping[str, str], count: int) -> Iterator[list[Path]]:
    """So many agents on one queue, which are asked to end at the end; yields where each notes its units."""
    ledger = SqlLedger(environment["PERPETUAL_LEDGER"])
    names = [agent_name(QUEUE, number + 1) for number in range(count)]
    for name in names:
        ledger.add_chain(name, queue=QUEUE)
    ledger.close()
    all_notes = [folder / f"notes-{number}" for number in range(count)]
    agents = []
    try:
        for number, (name, notes) in enumerate(zip(names, all_notes, strict=True)):
            command = [
                sys.executable,
                str(HERE / "napping_session.py"),
                name,
                str(notes),
                str(folder / GO),
            ]
            with (folder / f"agent-{number}.log").open("wb") as log:
                agents.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                    )
                )
        yield all_notes
    finally:
        with ThreadPoolExecutor(count) as all_at_once:
            list(all_at_once.map(lambda agent: stop(agent, GRACE_SECONDS), agents))
