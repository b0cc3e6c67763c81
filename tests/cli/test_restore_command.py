"""`perpetual verify` and `perpetual restore`, with a flow's own results, documents and backup in real storages."""

import json
from pathlib import Path

import pytest
from prefect_server import PrefectServer
from shell import AGENTS, Shell, make_keeping_shell

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.cli.output import NOT_FINISHED, OK, UNUSABLE
from perpetual_blocks.session.chain import ChainStatus

KEPT = ("--store", "kept")


@pytest.fixture(scope="module")
def counted(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell with a server, and a chain that has counted to four and is backed up."""
    shell = make_keeping_shell(tmp_path_factory.mktemp("kept"), prefect_server, AGENTS)
    said = shell("run", "agents.py:count", "--param", "upto=4", "--param", "chain=mine", *KEPT)
    assert said.code == OK, said
    return shell


def stored(shell: Shell, storage: str, part: str) -> Path:
    """The one file of a storage that has this in its path."""
    [found] = [path for path in (shell.folder / storage).rglob("*") if path.is_file() and part in str(path)]
    return found


def test_verify_reads_what_prefect_has_persisted(counted: Shell) -> None:
    """Exit code 0 for a chain that is whole: rows, checkpoint, handoff, backup, and the result of each item."""
    said = counted.here("verify", "mine", *KEPT, "--json")
    shown = counted("verify", "mine", *KEPT)

    assert said.code == OK, said
    found = said.json()
    assert (found["whole"], found["problems"], found["notes"]) == (True, [], [])
    # The checkpoint, the handoff, the backup's index and its one part.
    assert found["checked"] == {"rows": 6, "documents": 4, "results": 4}
    assert (shown.code, shown.out) == (OK, "mine: whole (6 rows, 4 documents, 4 results)\n")


def test_results_are_what_units_have_returned(counted: Shell) -> None:
    """As an object by id, and a line for each; of a chain that is not there, the error of all commands."""
    said = counted.here("results", "mine", *KEPT, "--json")
    shown = counted.here("results", "mine", *KEPT)

    found = said.json()
    assert len(found) == 4
    assert [line.partition("  ")[0] for line in shown.out.splitlines()] == list(found)
    assert [json.loads(line.partition("  ")[2]) for line in shown.out.splitlines()] == list(found.values())
    counted.here("results", "nothing", *KEPT).is_refusal("chain", "'nothing'", "mine")


def test_verify_names_what_is_lost_and_repairs_what_it_can(counted: Shell) -> None:
    """Exit code 1 while something is wrong that was not repaired: a checkpoint comes back, a result does not."""
    checkpoint, result = stored(counted, "results", "/checkpoints/"), stored(counted, "results", "/units/0/")
    whole = {path: path.read_bytes() for path in (checkpoint, result)}
    checkpoint.write_text("{}")
    result.write_text("[gone]")
    try:
        found = counted.here("verify", "mine", *KEPT)
        repaired = counted.here("verify", "mine", *KEPT, "--repair", "--json")
        assert checkpoint.read_bytes() == whole[checkpoint]
        again = counted.here("verify", "mine", *KEPT, "--json")
    finally:
        for path, content in whole.items():
            path.write_bytes(content)

    assert (found.code, repaired.code, again.code) == (NOT_FINISHED,) * 3
    assert "checkpoint of session 1" in found.out
    assert "--repair: it is copied from the backup storage" in found.out
    assert "item 0, unit 1" in found.out
    assert "mine: 2 wrong" in found.out
    assert [(one["what"], one["repaired"]) for one in repaired.json()["problems"]] == [
        ("checkpoint", True),
        ("result", False),
    ]
    [lost] = again.json()["problems"]
    assert "session 1 of mine made it in flow run" in lost["found"]
    assert lost["advice"].startswith("the result is lost")


@pytest.mark.parametrize("source", ["local-file-system/backup", "backup"])
def test_a_lost_ledger_is_restored(counted: Shell, source: str) -> None:
    """From a block or a folder: the chain is back, paused, with its items; verified, it is whole; twice is refused."""
    address = f"restored-from-{source.replace('/', '-')}.db"
    there = ("--ledger", address)

    said = counted.here("restore", "mine", "--from", source, *there, "--json")
    again = counted.here("restore", "mine", "--from", source, *there)
    status = counted.here("status", "mine", *there, "--json").json()

    assert said.code == OK, said
    report = said.json()
    assert (report["chain"], report["segments"], report["session"], report["notes"]) == ("mine", 1, 1, [])
    assert report["items"]["completed"] == 4
    assert 0 <= report["age_seconds"] < 600
    again.is_refusal("chain", "'mine'", "--ledger", "perpetual verify mine --repair")
    assert (status["status"], status["items"]["completed"]) == ("paused", 4)
    assert status["reason"].startswith("restored from the backup of session 1, made at 20")


def test_a_restore_tells_people_what_it_found(counted: Shell) -> None:
    """Items by status, segments, the last session and its age, and what to do next."""
    said = counted("restore", "mine", "--from", "backup", "--ledger", "told.db")

    assert said.code == OK, said
    first, last = said.out.splitlines()
    assert first.startswith("mine is back in sqlite:///")
    assert "4 completed; 1 segment, up to session 1, " in first
    assert last == "It is paused: `perpetual resume mine` goes on."
    ledger = SqlLedger(str(counted.folder / "told.db"))
    assert ledger.chain("mine").status is ChainStatus.PAUSED
    ledger.close()


def test_a_restore_that_cannot_be(counted: Shell) -> None:
    """No such place, no such chain there, a name that none can have, a session before the first."""
    new = ("--ledger", "refused.db")

    counted.here("restore", "mine", "--from", "ghost", *new).is_refusal("--from", "ghost", "a folder")
    counted.here("restore", "mine", "--from", "local-file-system/ghost", *new).is_refusal("--from", "ghost")
    counted.here("restore", "Bad Name", "--from", "backup", *new).is_refusal("chain", "Bad Name")
    counted.here("restore", "mine", "--from", "backup", "--until", "0", *new).is_refusal("--until", "at least 1")
    counted.here("restore", "mine", *new).is_refusal("--from")
    counted.here("restore", "other", "--from", "backup", *new).is_refusal("no index of chain other", code=UNUSABLE)
    assert counted.here("status", *new, "--json").json() == []


def test_verify_refuses_an_unknown_chain(counted: Shell) -> None:
    """A name that the ledger does not have is wrong input."""
    counted.here("verify", "ghost", *KEPT).is_refusal("chain", "ghost")
