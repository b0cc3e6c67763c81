"""Secrets in a real run: whatever an agent does with them, they are nowhere to be found afterwards."""

import base64
import json
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import secretive
from postgres_server import TEMPLATE, PostgresServer
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import create_engine, select
from workbench import HERE, Site, wait_until

from perpetual_blocks.adapters.database.engine import parse_address
from perpetual_blocks.adapters.database.schema import metadata
from perpetual_blocks.blocks import StatePersistence

SCRIPT = HERE / "secretive.py"
HIDDEN = (secretive.KEY, secretive.ENVIRONMENT, secretive.LEDGER, secretive.GIT, secretive.URL)


def written(canary: str) -> set[str]:
    """The ways in which a canary may be written."""
    ways = {canary, json.dumps(canary)[1:-1], repr(canary)[1:-1], quote(canary), quote(canary, safe="")}
    # Of three neighbours in Base64, each lets other bits of it be seen; the ends belong to them.
    return ways | {base64.b64encode(b"." * n + canary.encode() + b"..").decode()[4:-4] for n in range(3)}


def found_in(text: str, canaries: tuple[str, ...]) -> list[str]:
    return [way for canary in canaries for way in written(canary) if way in text]


def server_texts(home: Path) -> dict[str, str]:
    """Every table of the server's database as text."""
    with sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True, timeout=30) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: repr(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names}


def ledger_texts(address: str) -> dict[str, str]:
    """Every table of the ledger as text."""
    engine = create_engine(parse_address(address))
    with engine.connect() as connection:
        texts = {name: repr(connection.execute(select(t)).all()) for name, t in metadata.tables.items()}
    engine.dispose()
    return texts


def file_texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose hook says a remote's address with a password, and fails."""
    folder = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    hook = folder / ".git/hooks/pre-commit"
    hook.write_text(f"#!/bin/sh\necho 'unable to access https://bot:{secretive.GIT}@example.org/' >&2\nexit 1\n")
    hook.chmod(0o755)
    return folder


def save_key(site: Site, name: str) -> dict[str, Any]:
    """The Secret block; returns the reference that a form sends."""
    with temporary_settings({PREFECT_API_URL: site.api}):
        return {"$ref": {"block_document_id": str(Secret(value=secretive.KEY).save(name, overwrite=True, _sync=True))}}


def test_no_secret_is_found_anywhere_after_a_served_chain(
    site: Site, postgres: PostgresServer, repository: Path
) -> None:
    """Errors, their causes, logs, git, hooks, contexts: no ledger, file, log, state, artifact or parameter has any."""
    reference = save_key(site, "canary")
    address = postgres.make_database(TEMPLATE).replace("postgres:@", f"postgres:{secretive.LEDGER}@")
    assert secretive.LEDGER in address
    with temporary_settings({PREFECT_API_URL: site.api}):
        store = StatePersistence(ledger=address).save("canary", overwrite=True, _sync=True)
    site.environment["CANARY_TOKEN"] = secretive.ENVIRONMENT
    site.environment["PERPETUAL_LEDGER"] = address
    site.serve(SCRIPT)
    parameters = {
        "api_key": reference,
        "notes": str(site.folder / "notes"),
        "repository": str(repository),
        "chain": "secretive",
        "store": {"$ref": {"block_document_id": str(store)}},
    }
    site.trigger("secretive/served", parameters)
    status = site.chain_over("secretive")
    assert (status["status"], len(status["sessions"])) == ("finished", 2)
    assert (status["items"]["completed"], status["items"]["discarded"]) == (2, 9)
    runs = [site.final_run(session["flow_run_id"]) for session in status["sessions"]]
    assert all(run["parameters"] == parameters for run in runs), "the follow-on's, too, hold references only"
    wait_until(lambda: all("Finished in state" in logs(site, run["id"]) for run in runs), "the last log line")

    texts = {
        **{f"ledger {name}": text for name, text in ledger_texts(address).items()},
        **{f"file {name}": text for name, text in file_texts(site.folder / "results").items()},
        **{f"server {name}": text for name, text in server_texts(Path(site.environment["PREFECT_HOME"])).items()},
        **{f"output {path.name}": path.read_text() for path in site.folder.glob("child-*.log")},
        "status": json.dumps(status),
    }
    assert {name: found for name, text in texts.items() if (found := found_in(text, HIDDEN))} == {}

    # What is masked was there: the errors and log lines are, with their secrets gone.
    errors = {item: row for item, row in errors_of(address).items() if row}
    assert errors.keys() == set(secretive.LEAKS) - {"prints"}
    assert errors["raises"].startswith('RuntimeError: refused: ***, as JSON ["***"], quoted ***')
    assert errors["environment"] == "RuntimeError: cannot log in with ***"
    assert errors["url"] == "RuntimeError: cannot reach https://me:***@example.org/"
    assert "work_unit's result.deep[0].down: got a value of the agent's secret fields" in errors["returns"]
    said = "".join(logs(site, run["id"]) for run in runs)
    assert "the key is ***" in said
    assert "ValueError: ***" in said, "also in a traceback"
    steps = {step["step"]: step.get("error", "") for step in status["sessions"][-1]["steps"]}
    assert steps["backup"] == "RuntimeError: no backup with ***"
    assert "https://bot:***@example.org/" in steps["commit_changes"]
    # The context is exact where it is state, and masked where it is read.
    handoffs = {name: text for name, text in texts.items() if "/handoffs/" in name}
    assert len(handoffs) == 2
    for text in (*handoffs.values(), site.call("GET", "/artifacts/handoff-secretive/latest")["data"]):
        assert secretive.CONTEXT not in text
        assert '"password": "***"' in text
        assert '"seen": "in clear"' in text
        assert "- the key is ***, seen **in clear**" in text


def test_run_takes_a_secret_by_its_blocks_name(site: Site, repository: Path) -> None:
    """`perpetual run --param api_key=NAME`: neither its output nor the arguments of a process have the secret."""
    save_key(site, "by-name")
    notes = site.folder / "notes"
    parameters = {"api_key": "by-name", "notes": notes, "repository": repository, "chain": "by-name"}
    done = site.perpetual(
        "run",
        f"{SCRIPT}:secretive",
        *(f"--param={name}={value}" for name, value in parameters.items()),
        "--json",
        CANARY_TOKEN=secretive.ENVIRONMENT,
    )
    assert done.returncode == 1, done.stderr  # nine of its items are discarded
    logged = (Path(site.environment["PREFECT_HOME"]) / "perpetual-logs/by-name.log").read_text()
    hidden = tuple(canary for canary in HIDDEN if canary != secretive.LEDGER)  # which is no secret without that ledger
    texts = {"stdout": done.stdout, "stderr": done.stderr, "log": logged, "notes": notes.read_text()}
    assert {name: found for name, text in texts.items() if (found := found_in(text, hidden))} == {}
    assert "the key is ***" in logged
    arguments = notes.read_text()
    assert "one_session" in arguments
    assert "by-name" not in arguments, "parameters are not in a process's arguments, where everybody sees them"


def test_run_does_not_repeat_what_is_no_blocks_name(site: Site, repository: Path) -> None:
    """Whoever gives the secret itself in place of its name does not find it in the error."""
    parameters = {"api_key": "s3cret-in-clear", "notes": site.folder / "notes", "repository": repository}
    done = site.perpetual("run", f"{SCRIPT}:secretive", *(f"--param={k}={v}" for k, v in parameters.items()))
    assert done.returncode == 2
    assert "--param api_key: got no saved secret block's name" in done.stderr
    assert "s3cret-in-clear" not in done.stdout + done.stderr


def logs(site: Site, run: str) -> str:
    """What a flow run has logged."""
    wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    return "\n".join(line["message"] for line in site.call("POST", "/logs/filter", wanted))


def errors_of(address: str) -> dict[str, str]:
    engine = create_engine(parse_address(address))
    items = metadata.tables["items"]
    with engine.connect() as connection:
        errors = dict(connection.execute(select(items.c.id, items.c.error)).all())
    engine.dispose()
    return errors


# What lies in the storage -------------------------------------------------------------------------------------------

PLANTED = ("pickle", "compressed/pickle", "json-class")


@dataclass(frozen=True)
class Planted:
    """What became of a chain whose units' records were planted before each unit was run."""

    state: str
    marker: Path
    ran: list[str]
    outcomes: list[str]


@pytest.fixture(scope="module")
def planted(shared_site: Site) -> dict[str, Planted]:
    """The chains, one after the other in one process."""
    folder = shared_site.folder
    names = {serializer: serializer.replace("/", "-") for serializer in PLANTED}
    code = f"""
import base64, json, lzma, sys
sys.path.insert(0, {str(HERE)!r})
import squares
from pathlib import Path
from perpetual_blocks.adapters import prefect_units
persisted = prefect_units.PrefectUnits.run
def plant(self, units):
    marker = f"{folder}/marker-{{name}}"
    # Protocol 0: os.system("touch marker")
    program = f"cos\\nsystem\\n(S'touch {{marker}}'\\ntR.".encode()
    result = base64.encodebytes(program)
    if serializer == "compressed/pickle":
        result = base64.encodebytes(lzma.compress(result))
    said = {{"type": serializer}}
    if serializer == "json-class":
        said = {{"type": "json"}}
        named = {{"__class__": "subprocess.getoutput", "data": {{"cmd": f"touch {{marker}}"}}}}
        result = json.dumps({{"schema": 1, "x": named}}).encode()
    record = {{"metadata": {{"serializer": said, "storage_key": units.key}}, "result": result.decode()}}
    self._records.write(units.key, json.dumps(record))
    return persisted(self, units)
prefect_units.PrefectUnits.run = plant
for serializer, name in {names!r}.items():
    notes = Path({str(folder)!r}) / f"notes-{{name}}"
    print(squares.squares(notes=notes, n=2, chain=f"planted-{{name}}", return_state=True).name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=shared_site.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    states = dict(zip(PLANTED, done.stdout.split(), strict=True))
    found = file_texts(folder / "results")
    return {
        serializer: Planted(
            state=states[serializer],
            marker=folder / f"marker-{name}",
            ran=(folder / f"notes-{name}").read_text().splitlines(),
            outcomes=[text for path, text in found.items() if re.search(f"/planted-{name}-.*/(units|batches)/", path)],
        )
        for serializer, name in names.items()
    }


@pytest.mark.parametrize("serializer", PLANTED)
def test_what_lies_under_a_units_key_is_never_executed(planted: dict[str, Planted], serializer: str) -> None:
    """A planted record that would run code when Prefect reads it is replaced by the outcome of the unit."""
    found = planted[serializer]

    assert found.state == "Finished"
    assert not found.marker.exists()
    assert len(found.ran) == 2
    assert len(found.outcomes) == 2
    assert all(json.loads(text)["metadata"]["serializer"]["type"] == "json" for text in found.outcomes)
