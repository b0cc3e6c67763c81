"""`perpetual prune`, with what flows have left in a real results storage."""

import shutil
from pathlib import Path

import pytest
from prefect_server import PrefectServer
from shell import AGENTS, Shell, make_keeping_shell, make_shell
from sqlalchemy import text

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.cli.output import OK, UNUSABLE
from perpetual_blocks.session.chain import Wanted

FOLDERS = ("checkpoints", "handoffs", "units", "batches")
KEPT = ("--store", "kept")
MANY = """

class Steps(PerpetualAgent):
    \"\"\"Nine small steps an item.\"\"\"

    def plan(self):
        return [WorkItem(id=str(number)) for number in range(5)]

    def work_unit(self, unit):
        step = (unit.cursor or 0) + 1
        return unit.id if step == 9 else unit.advance(cursor=step)

steps = Steps.as_flow()
"""


@pytest.fixture(scope="module")
def ready(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell with a server, whose storage holds what two chains have left, of which one had items of several units."""
    shell = make_keeping_shell(tmp_path_factory.mktemp("prune") / "here", prefect_server, AGENTS + MANY)
    for flow, chain in (("count", "counted"), ("steps", "stepped")):
        said = shell("run", f"agents.py:{flow}", "--param", f"chain={chain}", *KEPT)
        assert said.code == OK, said
    shutil.copytree(shell.folder, shell.folder.with_name("as-it-was"))
    return shell


@pytest.fixture
def worked(ready: Shell) -> Shell:
    """The shell as it was."""
    shutil.rmtree(ready.folder)
    shutil.copytree(ready.folder.with_name("as-it-was"), ready.folder)
    return ready


def age(shell: Shell, chain: str, days: float) -> None:
    """Lets time pass since the chain was touched."""
    ledger = SqlLedger(str(shell.folder / "ledger.db"))
    with ledger._engine.begin() as connection:
        older = "UPDATE chains SET updated_at = updated_at - :seconds WHERE name = :name"
        connection.execute(text(older), {"seconds": days * 86400, "name": chain})
    ledger.close()


def files(shell: Shell, storage: str = "results") -> list[Path]:
    return sorted(path for path in (shell.folder / storage).rglob("*") if path.is_file())


def of_chain(paths: list[Path], chain: str) -> list[Path]:
    return [path for path in paths if f"/perpetual/{chain}-" in str(path)]


def unnamed(shell: Shell, chain: str, paths: list[Path]) -> set[str]:
    """Batches that no item's row names."""
    ledger = SqlLedger(str(shell.folder / "ledger.db"))
    named = {str(item.result_key).partition("#")[0] for item in ledger.items(chain)}
    ledger.close()
    keys = {str(path.relative_to(shell.folder / "results")) for path in paths}
    return {key for key in keys if "/batches/" in key} - named


def chains(shell: Shell) -> set[str]:
    return {row["chain"] for row in shell.here("status", "--json", *KEPT).json()}


def test_old_chains_go_with_all_that_they_have_saved(worked: Shell) -> None:
    """Documents, outcomes of every unit and their folders; what others have stays, and so does the backup."""
    before, backup = files(worked), files(worked, "backup")
    for chain in ("counted", "stepped"):
        age(worked, chain, 100)
    said = worked.here("prune", "--older-than", "101d", *KEPT)
    assert (said.code, said.out) == (OK, "0 chains are forgotten\n")
    age(worked, "stepped", 2)
    mine = of_chain(before, "stepped")
    size = sum(path.stat().st_size for path in mine)
    assert {path.relative_to(worked.folder).parts[3] for path in mine} == set(FOLDERS)
    assert unnamed(worked, "stepped", mine), "no row says where outcomes of earlier units lie"

    look = worked.here("prune", "--older-than", "101d", "--dry-run", *KEPT)
    assert (files(worked), chains(worked)) == (before, {"counted", "stepped"})
    done = worked.here("prune", "--older-than", "101d", "--json", *KEPT)

    assert (look.code, done.code) == (OK, OK), done
    [gone] = done.json()["forgotten"]
    assert (gone["chain"], gone["status"], gone["sessions"], gone["items"]) == ("stepped", "finished", 1, 5)
    assert (gone["documents"], gone["bytes"]) == (len(mine), size)
    assert gone["backup"] == "perpetual/backups/stepped.a.json"
    row = next(line.split() for line in look.out.splitlines() if line.startswith("stepped"))
    assert row[:5] == ["stepped", gone["ended"], "1", "5", str(len(mine))]
    assert "1 chain would be forgotten" in look.out
    assert "stepped has a backup, which stays" in look.out
    assert files(worked) == [path for path in before if path not in mine]
    assert not list((worked.folder / "results" / "perpetual").glob("stepped-*")), "nor are empty folders left"
    assert files(worked, "backup") == backup
    assert chains(worked) == {"counted"}


def test_what_items_came_to(worked: Shell) -> None:
    """The results of all, and that of one; where they are gone, the rest is shown all the same."""
    told = worked.here("results", "stepped", "--json", *KEPT)
    lines = worked.here("results", "stepped", *KEPT)
    one = worked.here("items", "show", "stepped", "3", *KEPT)
    json = worked.here("items", "show", "stepped", "3", "--json", *KEPT)
    shutil.rmtree(worked.folder / "results")
    gone = worked.here("items", "show", "stepped", "3", *KEPT)

    assert told.json() == {str(number): str(number) for number in range(5)}
    assert '3  "3"' in lines.out.splitlines()
    assert 'result: "3"' in one.out.splitlines()
    assert json.json()["result"] == "3"
    assert gone.code == OK
    assert "3  completed" in gone.out
    assert gone.err.startswith("results storage: cannot read ")


def test_a_storage_that_is_away_keeps_its_chains(worked: Shell) -> None:
    """Exit code 3 and the chain's name; when it is back, they go."""
    age(worked, "counted", 100)
    (worked.folder / "results").rename(worked.folder / "unmounted")

    said = worked.here("prune", "--older-than", "90d", *KEPT)
    told = worked.here("prune", "--older-than", "90d", "--json", *KEPT)

    assert (said.code, told.code) == (UNUSABLE, UNUSABLE)
    assert said.out == "0 chains are forgotten\n"
    assert said.err.startswith("kept: counted: results storage: ")
    assert [one["chain"] for one in told.json()["failed"]] == ["counted"]
    status = {row["chain"]: row["status"] for row in worked.here("status", "--json", *KEPT).json()}
    assert status["counted"] == "finished"
    (worked.folder / "unmounted").rename(worked.folder / "results")
    assert worked.here("prune", "--older-than", "90d", *KEPT).code == OK
    assert (chains(worked), of_chain(files(worked), "counted")) == ({"stepped"}, [])


def test_what_is_kept_is_named(worked: Shell) -> None:
    """A chain that is old, and has a pinned checkpoint or shares its queue."""
    ledger = SqlLedger(str(worked.folder / "ledger.db"))
    ledger.pin_checkpoint("counted", 1, pinned=True)
    ledger.add_chain("helper", queue="stepped")
    ledger.add_chain("waits")
    ledger.add_chain("cancelled")
    ledger.want("cancelled", Wanted.CANCEL, "")
    ledger.close()
    for chain in ("counted", "stepped", "waits", "cancelled"):
        age(worked, chain, 100)

    said = worked.here("prune", "--older-than", "90d", *KEPT)

    assert said.code == OK
    assert "1 chain is forgotten" in said.out
    assert "kept: counted: a checkpoint of counted is pinned" in said.out
    assert "kept: stepped: helper, which works on its queue, is waiting since" in said.out
    assert chains(worked) == {"counted", "stepped", "helper", "waits"}


def test_how_long_must_be_said(tmp_path: Path) -> None:
    """A person decides; nothing is guessed."""
    shell = make_shell(tmp_path)

    shell.here("prune").is_refusal("--older-than")
    shell.here("prune", "--older-than", "90").is_refusal("--older-than", "'90'", "a length of time", "90d")
    said = shell.here("prune", "--older-than", "90d", "--json")
    assert (said.code, said.json()["forgotten"], said.json()["pool_rows"]) == (OK, [], 0)
