"""`perpetual orchestrate`: real processes on one queue, some of which are really killed."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from workbench import HERE, PERPETUAL, REPOSITORY, Site, hurry, ran, successor, wait_until

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.budget import Limit
from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.work import ItemStatus

SHARING = HERE / "sharing.py"
PACED = HERE / "paced.py"
ITEMS, CALLS = 40, 44
ENDS = (SessionState.WRAPPED, SessionState.FINISHED)
POOL = Limit("calls", CALLS, scope="total", pool="team")


class Watched:
    """What a test sees of a queue while its agents work."""

    def __init__(self, ledger: SqlLedger, queue: str = "docs") -> None:
        self.ledger = ledger
        self.queue = queue
        self.most_used = 0.0

    def at_work(self) -> dict[str, int]:
        """The processes of the sessions that are at work, by their chains."""
        found = {}
        for chain in self.ledger.chains(self.queue):
            latest = self.ledger.sessions(chain.name)[-1:]
            if chain.status is ChainStatus.RUNNING and latest and latest[0].state is SessionState.RUNNING:
                found[chain.name] = latest[0].pid
        return found

    def claimed(self) -> int:
        """How many items are in the hands of sessions."""
        return self.ledger.counts(self.queue)[ItemStatus.CLAIMED]

    def completed(self) -> int:
        """How many items are done; how much of the pool is used and reserved is looked at on the way."""
        from perpetual_blocks.adapters.database import pools
        from perpetual_blocks.adapters.database.engine import writing
        from perpetual_blocks.adapters.database.rows import pool_key

        with writing(self.ledger._engine) as connection:
            level = pools.level(connection, pool_key(POOL), POOL.resource, None, self.ledger.now())
        self.most_used = max(self.most_used, sum(level))
        return self.ledger.counts(self.queue)[ItemStatus.COMPLETED]


@pytest.fixture
def watched(site: Site, request: pytest.FixtureRequest) -> Watched:
    """The ledger in a PostgreSQL database; four agents' sessions are short, and there are several of each."""
    server: PostgresServer = request.getfixturevalue("postgres")
    site.environment["PERPETUAL_LEDGER"] = server.lend_ledger()
    return Watched(site.ledger)


def command(site: Site, notes: Path, *options: str) -> list[str]:
    values = {"notes": notes, "chain": "docs", "n": ITEMS, "gate": site.folder / "gate"}
    parameters = [f"--param={name}={value}" for name, value in values.items()]
    return [*PERPETUAL, "orchestrate", f"{SHARING}:sharing", *parameters, *options]


def test_four_agents_on_one_queue_of_which_one_is_killed(site: Site, watched: Watched) -> None:
    """Every item is done exactly once, also that of the agent that is killed in the middle of it; what they share is
    never overrun; and the orchestrator, killed too and started again, finds its agents."""
    notes = site.folder / "notes"
    first = site.start(*command(site, notes, "--agents", "4"))
    wait_until(lambda: watched.claimed() == 4, "four agents in the middle of a unit")
    killed = watched.at_work()["docs-3"]
    os.kill(killed, signal.SIGKILL)
    first.kill()
    first.wait()
    (site.folder / "gate").touch()

    second = site.start(*command(site, notes, "--agents", "4", "--json"))
    wait_until(lambda: (watched.completed(), second.poll() is not None)[1], "the end", seconds=300)

    said = (site.folder / f"child-{site.children.index(second)}.log").read_text()
    assert second.returncode == 0, said
    report = json.loads(said)
    assert (report["finished"], report["items"]["completed"], report["units"]) == (True, ITEMS, ITEMS)
    assert sorted(agent["chain"] for agent in report["agents"]) == ["docs", "docs-2", "docs-3", "docs-4"]
    assert {agent["state"] for agent in report["agents"]} == {"finished"}
    assert sum(agent["units"] for agent in report["agents"]) == ITEMS
    assert report["usage"]["calls"] == ITEMS
    sessions = watched.ledger.sessions("docs-3")
    assert SessionState.CRASHED in {session.state for session in sessions}
    assert ran(notes) == {f"n/{number}": 1 for number in range(ITEMS)}
    assert str(killed) not in notes.read_text().split()
    assert watched.most_used <= CALLS
    assert sum(spend.amount for spend in watched.ledger.pool_spends(POOL, 0.0)) == ITEMS


def test_a_pools_hard_limit_ends_all_agents(site: Site, watched: Watched) -> None:
    """Together they spend all of it, and not one call more; then it is over, and the exit code says so."""
    notes = site.folder / "notes"
    (site.folder / "gate").touch()
    done = site.perpetual(*command(site, notes, "--agents", "3", "--json", f"--param=n={CALLS + 20}")[3:])

    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["finished"], report["usage"]["calls"]) == (False, CALLS)
    assert {agent["state"] for agent in report["agents"]} == {"exhausted"}
    assert report["items"]["completed"] == CALLS
    assert len(ran(notes)) == CALLS


def test_sigterm_wraps_all_agents_and_the_same_command_goes_on(site: Site) -> None:
    """On SQLite, with one machine's processes: a stop happens between units, and nothing is done twice."""
    notes = site.folder / "notes"
    arguments = command(site, notes, "--agents", "2", "--param=n=20")
    child = site.start(*arguments)
    watched, ledger = Watched(site.ledger), site.ledger
    wait_until(lambda: watched.claimed() == 2, "two agents in the middle of a unit")
    child.send_signal(signal.SIGTERM)
    (site.folder / "gate").touch()
    assert child.wait(60) == 130
    assert {chain.status for chain in ledger.chains("docs")} == {ChainStatus.WAITING}
    assert watched.claimed() == 0

    done = site.perpetual(*arguments[3:])
    assert done.returncode == 0, done.stderr
    assert ran(notes) == {f"n/{number}": 1 for number in range(20)}
    assert "20 of 20 items" in done.stdout
    assert "docs-2: " in done.stderr


def test_agents_have_successors(site: Site) -> None:
    """The processes of the next sessions are started ahead, wait, and go on; nothing is done twice."""
    notes, n = site.folder / "notes", 30
    arguments = [f"--param={name}={value}" for name, value in {"notes": notes, "chain": "docs", "n": n}.items()]
    child = site.start(*PERPETUAL, "orchestrate", f"{PACED}:paced", "--agents", "2", "--json", *arguments)
    for name in ("docs", "docs-2"):
        successor(site, name)
    hurry(notes, session=1)
    # There is something to do for both as long as one of them is at its naps.
    for name in ("docs", "docs-2"):
        wait_until(lambda name=name: len(site.status(name)["sessions"]) == 2, f"session 2 of {name}")
    hurry(notes)

    assert child.wait(120) == 0
    report = json.loads((site.folder / f"child-{site.children.index(child)}.log").read_text())
    assert (report["finished"], report["items"]["completed"], report["units"]) == (True, n, n)
    assert ran(notes) == {f"n/{number}": 1 for number in range(n)}
    sessions = {name: site.ledger.sessions(name) for name in ("docs", "docs-2")}
    assert all(of_one[0].units == 10 and of_one[1].waited for of_one in sessions.values())
    assert all(session.state in ENDS for of_one in sessions.values() for session in of_one)


# Deployed -------------------------------------------------------------------------------------------------------------

FLOW = """
import sys
sys.path.insert(0, "flows")
from orchestrator import AgentForPart, orchestrate
parts = [AgentForPart(name="tens", ids=["n/1*"])]
state = orchestrate(
    "sharing/served", "fleet", "2", parts, {"notes": sys.argv[1], "gate": sys.argv[2], "n": 24}, every_seconds=1.0,
    return_state=True,
)
print("state:", state.name, state.message)
"""


def test_a_flow_looks_after_the_runs_of_a_deployment(site: Site) -> None:
    """Each agent is a chain of runs; the orchestrator's run is killed in the middle, and started again finds them: no
    run is created twice, everything is done once, and its page says how all stand."""
    notes, gate = site.folder / "notes", site.folder / "gate"
    site.serve(SHARING)
    watched = Watched(site.ledger, "fleet")
    run = (sys.executable, "-c", FLOW, str(notes), str(gate))
    first = site.start(*run, cwd=REPOSITORY)
    wait_until(lambda: watched.ledger.has_chain("fleet") and watched.claimed() == 3, "three agents in a unit")
    first.kill()
    first.wait()
    gate.touch()

    second = site.start(*run, cwd=REPOSITORY)
    assert second.wait(240) == 0
    said = (site.folder / f"child-{site.children.index(second)}.log").read_text()

    assert "state: Finished 24 of 24 items done" in said
    assert ran(notes) == {f"n/{number}": 1 for number in range(24)}
    chains = {chain.name: chain for chain in watched.ledger.chains("fleet")}
    assert sorted(chains) == ["fleet", "fleet-2", "fleet-tens"]
    for name, chain in chains.items():
        assert chain.status is ChainStatus.FINISHED
        sessions = watched.ledger.sessions(name)
        runs = [one for one in site.runs_of(name) if one["state_name"] not in ("Cancelled", "Superseded")]
        assert len(runs) == len(sessions), name
        assert {one["parameters"]["chain"] for one in runs} == {name}
    assert {item.id for item in watched.ledger.items("fleet-tens", taken=True)} == {
        "n/1",
        *(f"n/{n}" for n in range(10, 20)),
    }
    found = site.call("POST", "/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["agents-fleet"]}}})
    assert "[fleet-tens](../../runs?tags=chain:fleet-tens" in found[0]["data"]


def test_what_is_wrong_is_said_before_anything_begins(site: Site) -> None:
    """A deployment that is not there, a parameter that it does not have."""
    code = (
        "import sys; sys.path.insert(0, 'flows'); from orchestrator import orchestrate; "
        "orchestrate('sharing/nowhere', 'docs')"
    )
    said = site.start(sys.executable, "-c", code, cwd=REPOSITORY)
    assert said.wait(120) != 0
    log = (site.folder / "child-0.log").read_text()
    assert "deployment: got 'sharing/nowhere'; expected a deployment, as flow-name/deployment-name" in log
