"""The kill campaign: chains of real flow runs whose processes are killed again and again, and what came of them.

    python tests/faults/campaign.py --kills 1000 --seed 1 --json

Each *lane* is a way of running (`serve`, `worker`, `run` for `perpetual run`, or `orchestrate` for four agents of
`perpetual orchestrate` on one queue) on a ledger (`sqlite` or `postgres`) with a supervisor of its own; chain after
chain goes through it, and with `--concurrency N` each session does N units at once. Every process of a lane, sessions,
what serves them, and the supervisor, is killed by SIGKILL with some probability at every named point that it reaches
(see `perpetual_blocks.faults`), and at random moments from outside, alone or together with what serves it; whatever
serves is started again. When enough were killed, every chain must come to its end by itself. Then it is counted:

* lost: items that are not completed, results or context that lack something
* doubled: units that were committed, or counted as spent, more than once
* stuck: chains that did not come to their end
* superfluous: follow-on runs that were neither a session nor replaced one that came to nothing
* no_handoff: sessions of which there is no handoff
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

import psutil
from postgres_server import running_server
from prefect_server import PrefectServer, running_prefect
from workbench import PERPETUAL, Site

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.work import ItemStatus

Lanes = list[tuple[str, str]]

HERE = Path(__file__).parent
ADDER = HERE / "adder.py"
BY_THEMSELVES = ("run", "orchestrate")
"""Ways in which a process of our own starts the sessions of a chain, and no server does."""

AGENTS = 4
"""Of a queue that is orchestrated."""

OPEN = ("running", "waiting", "new")
"""How a chain stands that is to come to its end."""

PROBABILITY = 0.04
"""Of a kill at each point: some six units lie between two kills."""

AT_POINTS = 4
"""So many are killed at points before one is killed from outside."""

FROM_OUTSIDE = "from outside"

WAITED_SECONDS = 90.0
"""How long a person waits for a run that has not begun."""

CALM_SECONDS = 600.0
"""How long a chain may take to its end once nobody is killed any more."""

ITEMS = 40
"""Of each chain."""

LOOK_SECONDS = 8.0
"""Between two looks of a supervisor."""


@dataclass
class Lane:
    """A way of running, with a ledger, processes and chains of its own."""

    way: str
    database: str
    site: Site
    ledger: SqlLedger
    faults: dict[str, str]
    items: int = ITEMS
    every: float = LOOK_SECONDS
    chains: list[str] = field(default_factory=list)
    serving: "subprocess.Popen[bytes] | None" = None
    supervising: "subprocess.Popen[bytes] | None" = None
    triggered: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.way}-{self.database}"

    @property
    def notes(self) -> Path:
        return self.site.folder / f"notes-{self.chains[-1]}"

    def prepare(self) -> None:
        """Makes what the way needs on the server."""
        if self.way == "worker":
            code = (
                "from adder import adder; from pathlib import Path\n"
                f"type(adder).from_source(source={str(HERE)!r}, entrypoint='adder.py:adder')"
                f".deploy(name={self.name!r}, work_pool_name={self.name!r})"
            )
            pool = ["-m", "prefect", "work-pool", "create", self.name, "--type", "process"]
            for command in (pool, ["-c", code]):
                done = self.site.start(sys.executable, *command, cwd=HERE)
                if done.wait(120) != 0:
                    raise RuntimeError(f"{self.name}: {command} failed; see {self.site.folder}")

    def keep_alive(self) -> None:
        """Starts again what was killed, and the next chain where one has come to its end."""
        if self.supervising is None or self.supervising.poll() is not None:
            self.supervising = self.site.start(*PERPETUAL, "supervise", "--every", f"{self.every:g}", **self.faults)
        over = not self.chains or self.status() not in OPEN
        if over and not self.calm:
            self.chains.append(f"{self.name}-{len(self.chains)}")
        if self.serving is not None and self.serving.poll() is None:
            if over and not self.calm and self.way not in BY_THEMSELVES:
                self.trigger()
            return
        match self.way:
            case "serve":
                self.serving = self.site.start(sys.executable, str(ADDER), self.name, cwd=HERE, **self.faults)
            case "worker":
                command = ["-m", "prefect", "worker", "start", "--pool", self.name]
                self.serving = self.site.start(sys.executable, *command, cwd=HERE, **self.faults)
            case _:
                given = [f"--param={name}={value}" for name, value in self.parameters().items()]
                several = [f"--agents={AGENTS}"] if self.way == "orchestrate" else []
                self.serving = self.site.start(
                    *PERPETUAL, self.way, f"{ADDER}:adder", *several, *given, "--json", **self.faults
                )
        if over and not self.calm and self.way not in BY_THEMSELVES:
            self.trigger()

    @property
    def calm(self) -> bool:
        return Path(self.faults["PERPETUAL_FAULT"].split(":", 3)[3] + ".over").exists()

    def parameters(self) -> dict[str, Any]:
        return {"notes": str(self.notes), "n": self.items, "chain": self.chains[-1]}

    def trigger(self) -> None:
        """Starts the chain, as a person does: until it has begun."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(AssertionError):  # not served yet
                self.site.trigger(f"adder/{self.name}", self.parameters())
                self.triggered = time.monotonic()
                return
            time.sleep(0.5)
        raise RuntimeError(f"{self.name} is not served; see {self.site.folder}")

    def status(self) -> str:
        """Of the latest chain; of several on one queue, of one that is still to come to its end."""
        found = [chain.status.value for chain in self.ledger.chains(queue=self.chains[-1])] or ["new"]
        return next((status for status in found if status in OPEN), found[0])

    def victim(self, chance: random.Random) -> list[int]:
        """Processes to be killed together: a session, what serves it, both, or the supervisor."""
        chains = self.ledger.chains(queue=self.chains[-1])
        latest = [one for chain in chains for one in self.ledger.sessions(chain.name)[-1:]]
        running = [one.pid for one in latest if one.state is SessionState.RUNNING]
        session = [chance.choice(running)] if running else []
        tree: list[int] = []
        if self.serving is not None and self.serving.poll() is None:
            with suppress(psutil.NoSuchProcess):
                tree = [self.serving.pid, *(one.pid for one in psutil.Process(self.serving.pid).children(True))]
        supervising = [self.supervising.pid] if self.supervising and self.supervising.poll() is None else []
        return chance.choice([session, session, session, tree[:1], tree, supervising])

    def restart_if_never_begun(self) -> None:
        """A run that dies before it has made its chain leaves nothing to be rescued: a person starts it again.

        Where its worker dies with it, Prefect shows it as pending for ever; a person waits for a while then.
        """
        if not self.chains or self.way in BY_THEMSELVES or self.status() != "new":
            return
        if not self.site.open_runs(self.chains[-1]) or time.monotonic() > self.triggered + WAITED_SECONDS:
            self.trigger()


def kill(pids: list[int], log: Path) -> int:
    """Kills these processes, which are all ours, and says so in the log; how many there were."""
    count = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            count += 1
            with log.open("ab", buffering=0) as lines:
                lines.write(f"{pid} {FROM_OUTSIDE}\n".encode())
    return count


def killed(log: Path, but: str = "nothing") -> int:
    """How many were killed so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(not line.endswith(but) for line in lines)


@dataclass
class Count:
    """What came of the chains."""

    chains: int = 0
    sessions: int = 0
    crashed: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    superfluous: list[str] = field(default_factory=list)
    no_handoff: list[str] = field(default_factory=list)
    rerun: int = 0
    gaps: list[float] = field(default_factory=list)

    def add(self, lane: Lane, chain: str, ledger: SqlLedger) -> None:
        """Counts one chain, with those that work on its queue."""
        self.chains += 1
        rows = ledger.chains(queue=chain)
        if not rows:
            self.stuck.append(f"{chain}: it never began")
            return
        sessions = [session for row in rows for session in ledger.sessions(row.name)]
        items = ledger.items(chain, limit=10_000)
        self.sessions += len(sessions)
        self.crashed += sum(session.state is SessionState.CRASHED for session in sessions)
        self.stuck += [f"{row.name}: {row.status} ({row.reason})" for row in rows if row.status.value != "finished"]
        wrong = [f"{chain}: {item.id} is {item.status}" for item in items if item.status is not ItemStatus.COMPLETED]
        self.lost += wrong if len(items) == lane.items else [*wrong, f"{chain}: {len(items)} of {lane.items} items"]
        found = {
            "units": (sum(session.units for session in sessions), 2 * lane.items),
            "tokens": (
                sum(one.amount for row in rows for one in ledger.spends(row.name, "tokens", 0)),
                20 * lane.items,
            ),
        }
        if len(rows) == 1:  # what one agent has persisted, and another finds, is not in the memory of either
            found["in the sum"] = (rows[0].context.get("sum", 0), sum(range(lane.items)))
        for what, (amount, right) in found.items():
            if amount != right:
                (self.lost if amount < right else self.doubled).append(f"{chain}: {amount:g} {what}, not {right}")
        for item in items:
            if item.status is ItemStatus.COMPLETED and item.units != 2:
                self.doubled.append(f"{chain}: {item.id} has {item.units} units")
        notes = lane.site.folder / f"notes-{chain}"
        ran = Counter(" ".join(line.split()[:2]) for line in notes.read_text().splitlines())
        self.rerun += sum(times - 1 for times in ran.values())
        for row in rows:
            own = ledger.sessions(row.name)
            handoffs = {document.ordinal for document in ledger.documents(row.name, "handoff")}
            self.no_handoff += [f"{row.name} · {s.ordinal} ({s.state})" for s in own if s.ordinal not in handoffs]
            for before, after in pairwise(own):
                if before.ended_at is not None:
                    self.gaps.append(after.started_at - before.ended_at)
        if lane.way not in BY_THEMSELVES:
            self.superfluous += superfluous_runs(lane, chain, ledger)


def superfluous_runs(lane: Lane, chain: str, ledger: SqlLedger) -> list[str]:
    """Follow-ons that were neither a session, nor replaced a run that came to nothing."""
    were_sessions = {session.flow_run_id for session in ledger.sessions(chain)}
    by_key: Counter[str] = Counter()
    found = []
    for run in lane.site.runs_of(chain):
        key = run["idempotency_key"] or ""
        by_key[key] += bool(key)
        message = run["state"]["message"] or ""
        # One that was created ahead may not be needed in the end, or gave its invitation back.
        sent_away = any(text in message for text in ("is not needed", "in another flow run", "while the run waited"))
        if key and run["id"] not in were_sessions and run["state_name"] == "Superseded" and not sent_away:
            found.append(f"{chain}: {run['name']} ended Superseded")
    return found + [f"{chain}: {count} runs with {key}" for key, count in by_key.items() if count > 1]


@contextmanager
def stage(
    lanes: Lanes,
    seed: int,
    probability: float,
    folder: Path,
    server: PrefectServer | None,
    concurrency: int = 1,
    **of_lane: Any,
) -> Iterator[tuple[list[Lane], Path]]:
    """A Prefect server if none is given, a PostgreSQL server where one is needed, and the lanes."""
    log = folder / "kills"
    with ExitStack() as stack:
        server = server or stack.enter_context(running_prefect(folder / "prefect"))
        postgres = stack.enter_context(running_server()) if any(kind == "postgres" for _, kind in lanes) else None
        made = []
        for number, (way, database) in enumerate(lanes):
            own = folder / f"{way}-{database}"
            own.mkdir()
            address = str(own / "ledger.db")
            if database == "postgres":
                assert postgres is not None
                address = postgres.make_database()
            environment = {
                **server.environment,
                "PREFECT_LOCAL_STORAGE_PATH": str(own / "results"),
                "PERPETUAL_LEDGER": address,
                "ADDER_CONCURRENCY": str(concurrency),
                "PREFECT_RUNNER_POLL_FREQUENCY": "1",
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "PREFECT_LOGGING_LEVEL": "WARNING",
                "PREFECT_LOGGING_TO_API_ENABLED": "false",
            }
            faults = {"PERPETUAL_FAULT": f"*:{probability}:{seed}-{number}:{log}"}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of many processes compiles everything anew
            made.append(Lane(way, database, Site(server.api, own, environment), SqlLedger(address), faults, **of_lane))
        try:
            for lane in made:
                lane.prepare()
            yield made, log
        finally:
            for lane in made:
                lane.ledger.close()
                for child in lane.site.children:
                    end_tree(child)


def end_tree(child: "subprocess.Popen[bytes]") -> None:
    """Ends a child of ours and what it has started."""
    with suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


def run(
    kills: int,
    seed: int,
    lanes: Lanes,
    probability: float = PROBABILITY,
    server: PrefectServer | None = None,
    **of_lane: Any,
) -> dict[str, Any]:
    """One campaign; what came of it.

    Args:
        of_lane: `items` and `every` of each lane, and the `concurrency` of its sessions.
    """
    chance, began = random.Random(seed), time.monotonic()
    keep = os.environ.get("CAMPAIGN_FOLDER")
    with ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        made, log = stack.enter_context(stage(lanes, seed, probability, folder, server, **of_lane))
        from_outside = 0
        while killed(log) < kills:
            for lane in made:
                lane.keep_alive()
                lane.restart_if_never_begun()
            if killed(log, but=FROM_OUTSIDE) >= AT_POINTS * (from_outside + 1):
                from_outside += kill(chance.choice(made).victim(chance), log)
            show(f"{killed(log)} of {kills} killed, {sum(len(lane.chains) for lane in made)} chains")
            time.sleep(0.5)
        log.with_name(f"{log.name}.over").touch()
        calm_until = time.monotonic() + CALM_SECONDS
        while time.monotonic() < calm_until and any(lane.status() in OPEN for lane in made):
            for lane in made:
                lane.keep_alive()
                lane.restart_if_never_begun()
            show(f"{killed(log)} killed; {', '.join(f'{lane.chains[-1]} {lane.status()}' for lane in made)}")
            time.sleep(0.5)
        count = Count()
        for lane in made:
            for chain in lane.chains:
                count.add(lane, chain, lane.ledger)
        by_point = Counter(line.split(None, 1)[1].decode() for line in log.read_bytes().splitlines())
        return report(count, killed(log), seed, lanes, by_point, time.monotonic() - began)


def report(count: Count, kills: int, seed: int, lanes: Lanes, by_point: Counter[str], seconds: float) -> dict[str, Any]:
    """The figures, and what they are of."""
    faults = ("lost", "doubled", "stuck", "superfluous", "no_handoff")
    return {
        "kills": kills,
        "seed": seed,
        "lanes": [f"{way}-{database}" for way, database in lanes],
        "seconds": round(seconds),
        "chains": count.chains,
        "sessions": count.sessions,
        "crashed_sessions": count.crashed,
        "units_run_again": count.rerun,
        **{name: len(getattr(count, name)) for name in faults},
        "handoff_gap_median_s": round(statistics.median(count.gaps), 2) if count.gaps else None,
        "handoff_gap_max_s": round(max(count.gaps), 2) if count.gaps else None,
        "found": {name: getattr(count, name)[:20] for name in faults if getattr(count, name)},
        "killed_at": dict(by_point.most_common()),
    }


def show(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<100}", end="", file=sys.stderr)


def main() -> int:
    """Runs a campaign from the command line; exit code 1 if anything was lost, doubled, stuck or superfluous."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", default="serve,worker", help="of serve, worker, run, orchestrate")
    parser.add_argument("--concurrency", type=int, default=1, help="how many units a session does at once")
    parser.add_argument("--databases", default="sqlite,postgres", help="of sqlite, postgres")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that what was started is ended too
    lanes = [(way, database) for way in asked.ways.split(",") for database in asked.databases.split(",")]
    found = run(asked.kills, asked.seed, lanes, concurrency=asked.concurrency)
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:>22}  {value}")
    return int(any(found[name] for name in ("lost", "doubled", "stuck", "superfluous")))


if __name__ == "__main__":
    sys.exit(main())
