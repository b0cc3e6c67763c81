"""The ledger's database: its tables, its versions, and what is said when it cannot be used."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from processes import MANY
from sqlalchemy import Engine, event
from support import LedgerFactory, close, finish_next, one_line, open_ledgers, open_session, status_of

from perpetual_blocks.adapters.database import SqlLedger, engine, schema
from perpetual_blocks.errors import InvalidInput, LedgerError
from perpetual_blocks.work import ItemStatus, WorkItem

MIGRATIONS = Path(engine.__file__).parent / "migrations"
CHILD_SECONDS = 60


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config)


def raw_rows(address: Path, statement: str) -> list[Any]:
    """What SQLite itself says of the file."""
    with closing(sqlite3.connect(address)) as raw, raw:
        return raw.execute(statement).fetchall()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_fresh_database_has_the_tables_of_the_schema(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What the migrations make is what the schema says: tables, columns, types, indexes and constraints."""
    path = str(tmp_path / "ledger.db")
    database = engine.connect(path if kind == "sqlite" else request.getfixturevalue("postgres").make_database())

    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        differences = compare_metadata(context, schema.metadata)
        version = context.get_current_revision()

    assert differences == []
    assert version == engine.HEAD
    database.dispose()


def test_head_is_the_newest_script() -> None:
    """The version in the code is the one that the scripts end at, and there is one end."""
    assert scripts().get_heads() == [engine.HEAD]


def test_every_script_is_known_by_its_file() -> None:
    """Every migration in the folder is part of the one line of versions."""
    files = {path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}

    assert files == {revision.revision for revision in scripts().walk_revisions()}


def test_opening_again_changes_nothing(make_ledger: LedgerFactory, tmp_path: Path) -> None:
    """A ledger that is opened a second time has what the first one wrote."""
    address = str(tmp_path / "ledger.db")
    first = make_ledger(address)
    fence = open_session(first).fence
    first.add_items("mine", [WorkItem(id="a", payload={"x": 1.5})])
    finish_next(first, fence)
    close(first, fence)
    first.close()

    second = make_ledger(address)

    assert status_of(second) == {"a": ItemStatus.COMPLETED}
    assert second.chain("mine") == first.chain("mine")


def test_usual_start_does_not_load_the_migrations(tmp_path: Path) -> None:
    """A database that is at head is opened without importing Alembic, which would cost each start its time."""
    address = str(tmp_path / "ledger.db")
    SqlLedger(address).close()
    code = (
        "import sys; from perpetual_blocks.adapters.database import SqlLedger; "
        f"SqlLedger({address!r}); print('alembic' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert said.stdout.strip() == "False"


@pytest.mark.parametrize("version", ["9999", "ffff"])
def test_database_of_a_newer_version_is_refused(tmp_path: Path, version: str) -> None:
    """A schema that this version does not know was made by a newer one: it says so, and changes nothing."""
    address = tmp_path / "ledger.db"
    SqlLedger(str(address)).close()
    raw_rows(address, f"UPDATE alembic_version SET version_num = '{version}'")

    with pytest.raises(LedgerError) as refused:
        SqlLedger(str(address))

    one_line(refused.value, "ledger", str(address), version, engine.HEAD, "newer")
    assert raw_rows(address, "SELECT version_num FROM alembic_version") == [(version,)]


def folder_instead_of_a_file(folder: Path) -> Path:
    return folder


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "ledger.db"


def another_file(folder: Path) -> Path:
    (folder / "ledger.db").write_text("this is no database\n" * 100)
    return folder / "ledger.db"


@pytest.mark.parametrize("place", [folder_instead_of_a_file, below_a_file, another_file])
def test_path_that_cannot_be_used(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    """A path that cannot hold the database is refused in one line that names it."""
    path = place(tmp_path)

    with pytest.raises(LedgerError) as refused:
        SqlLedger(str(path))

    one_line(refused.value, "ledger", str(path), "expected")


def test_folder_of_the_database_is_made(tmp_path: Path) -> None:
    """A path whose folders are not there yet is a good path."""
    SqlLedger(str(tmp_path / "new" / "folder" / "ledger.db")).close()

    assert (tmp_path / "new" / "folder" / "ledger.db").is_file()


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:secret@h/d",
        "postgresql+psycopg://u:secret@h:5432/d",
        "postgresql://h/d?user=u&password=secret",
        "postgresql://u:secret@h:port/d",
        "mysql+pymysql://u:secret@h/d",
        "postgresql://u:secret@h",
        "postgresql+asyncpg://u:secret@h/d",
        "unheard-of://u:secret@h/d",
        "sqlite://u:secret@h/d",
    ],
)
def test_passwords_are_in_no_error(address: str) -> None:
    """An address that cannot be used is refused in one line, without the password that is in it."""
    with pytest.raises((InvalidInput, LedgerError)) as refused:
        SqlLedger(address)

    one_line(refused.value, "ledger")
    assert "secret" not in str(refused.value)


def test_a_missing_driver_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL address without PostgreSQL's driver is refused with the command that installs it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(InvalidInput) as refused:
        SqlLedger("postgresql://u:secret@h/d")

    one_line(refused.value, "ledger", "pip install perpetual-blocks[postgres]")
    assert "secret" not in str(refused.value)


def test_a_home_that_is_not_there_is_refused() -> None:
    """A path in the home of somebody who does not exist is refused in one line."""
    with pytest.raises((InvalidInput, LedgerError)) as refused:
        SqlLedger("~nobody-of-this-name/ledger.db")

    one_line(refused.value, "ledger", "~nobody-of-this-name")


def test_a_failed_migration_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    """The tables are made in one transaction: when it breaks there is nothing, and the next start succeeds."""
    address = tmp_path / "ledger.db"

    def refuse_last_table(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "CREATE TABLE outbox" in statement:
            raise OSError("the disk is full")

    event.listen(Engine, "before_cursor_execute", refuse_last_table)
    try:
        with pytest.raises(LedgerError) as refused:
            SqlLedger(str(address))
    finally:
        event.remove(Engine, "before_cursor_execute", refuse_last_table)

    one_line(refused.value, "the disk is full")
    assert raw_rows(address, "SELECT name FROM sqlite_master WHERE type = 'table'") == []
    SqlLedger(str(address)).close()
    assert raw_rows(address, "SELECT version_num FROM alembic_version") == [(engine.HEAD,)]


def test_opening_waits_for_whoever_makes_the_tables(tmp_path: Path) -> None:
    """A file that another process is just turning into a ledger is waited for, not reported as locked."""
    address = tmp_path / "ledger.db"
    opened: list[object] = []

    def opening() -> None:
        try:
            SqlLedger(str(address)).close()
            opened.append("opened")
        except LedgerError as error:
            opened.append(error)

    opener = Thread(target=opening, daemon=True)
    with closing(sqlite3.connect(address, isolation_level=None)) as other:
        other.execute("CREATE TABLE something (column_a)")
        other.execute("BEGIN IMMEDIATE")
        opener.start()
        opener.join(0.5)
        other.execute("COMMIT")
    opener.join(CHILD_SECONDS)

    assert opened == ["opened"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_processes_open_a_fresh_database_at_once(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two processes that open the same new database at the same moment both succeed, ten times."""
    if kind == "sqlite":
        addresses = [str(tmp_path / f"ledger-{n}.db") for n in range(10)]
    else:
        server = request.getfixturevalue("postgres")
        addresses = [server.make_database() for _ in range(10)]
    barrier, answers = MANY.Barrier(2), MANY.SimpleQueue()
    openers = [
        MANY.Process(target=open_ledgers, args=(addresses, name, barrier, answers)) for name in ("left", "right")
    ]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(CHILD_SECONDS)

    assert [opener.exitcode for opener in openers] == [0, 0]
    said = sorted(answers.get() for _ in range(2 * len(addresses)))
    assert said == sorted((address, name, "opened") for address in addresses for name in ("left", "right"))
    ledger = SqlLedger(addresses[0])
    open_session(ledger)
    ledger.close()
