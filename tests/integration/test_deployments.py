"""Chains of real flow runs: served, all begun at once, and deployed to a process worker."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from workbench import REPOSITORY, SQUARES, Site, hurry, wait_until

CORPUS = {
    "alpha": 'def one(): "Says one."\n',
    "beta": "import alpha\n\ndef two(x, y=1): ...\ndef _hidden(): ...\n",
    "gamma": '"""The third module.\n\nIt is the longest of them, and says so."""\n\nclass Third: ...\n',
    "delta": "from alpha import one\n\nasync def four() -> int: ...\n",
    "epsilon": "LIMIT = 5\n",
    "zeta": "def six(): return [i for i in range(600)]\n",
}


@pytest.fixture(scope="module")
def runs(shared_site: Site) -> dict[str, list[str]]:
    """The runs of the chains of squares, which are begun at once; two of them are of one chain."""
    shared_site.serve(SQUARES)
    longer = {"nap": 600.0}
    begun = {"served": [{"n": 9}], "twice": 2 * [{"n": 4, **longer}], "cancelled": [longer]}
    return {
        chain: [
            shared_site.trigger("squares/served", {"notes": str(notes_of(shared_site, chain)), "chain": chain, **given})
            for given in several
        ]
        for chain, several in begun.items()
    }


def notes_of(site: Site, chain: str) -> Path:
    """Where a chain notes its units."""
    return site.folder / f"notes-{chain}"


def test_a_served_deployment_chains_to_the_end(shared_site: Site, runs: dict[str, list[str]]) -> None:
    """Follow-ons are runs of the same deployment with the same parameters, named, tagged and linked to the chain."""
    site, notes = shared_site, notes_of(shared_site, "served")
    [first] = runs["served"]
    status = site.chain_over("served")
    assert (status["status"], len(status["sessions"])) == ("finished", 3)
    assert status["sessions"][0]["flow_run_id"] == first
    assert len({session["pid"] for session in status["sessions"]}) == 3
    ended = [site.final_run(session["flow_run_id"]) for session in status["sessions"]]
    assert [run["state_name"] for run in ended] == ["Wrapped", "Wrapped", "Finished"]
    assert [run["name"] for run in ended] == [f"served · {ordinal}" for ordinal in (1, 2, 3)]
    assert all("chain:served" in run["tags"] for run in ended)
    assert all(run["parameters"] == {"notes": str(notes), "n": 9, "chain": "served"} for run in ended[1:])
    assert len({run["deployment_id"] for run in ended}) == 1
    assert Counter(line.split()[0] for line in notes.read_text().splitlines()) == {f"n/{i}": 1 for i in range(9)}
    handoff = site.call("GET", "/artifacts/handoff-served/latest")
    assert "# served · session 3 · Finished" in handoff["data"]
    assert status["metrics"]["resource_efficiency"] == 0.8889


def test_two_runs_of_one_chain_at_once_one_works(shared_site: Site, runs: dict[str, list[str]]) -> None:
    """Of two runs started together one does all the work; the other ends Superseded and has done nothing."""
    site, notes, both = shared_site, notes_of(shared_site, "twice"), runs["twice"]
    wait_until(lambda: any(site.run(run)["state_type"] == "COMPLETED" for run in both), "one has nothing to do")
    hurry(notes)
    ended = [site.final_run(run) for run in both]
    assert sorted(run["state_name"] for run in ended) == ["Finished", "Superseded"]
    assert all(run["state_type"] == "COMPLETED" for run in ended)
    status = site.status("twice")
    assert len(status["sessions"]) == 1
    assert len(notes.read_text().splitlines()) == 4
    worked = next(run["id"] for run in ended if run["state_name"] == "Finished")
    assert status["sessions"][0]["flow_run_id"] == worked


def test_a_cancelled_run_ends_its_chain(shared_site: Site, runs: dict[str, list[str]]) -> None:
    """Cancelling in the UI ends the session after its unit, and no follow-on is created."""
    site, [run] = shared_site, runs["cancelled"]
    wait_until(notes_of(site, "cancelled").exists, "the first unit")
    state = {"type": "CANCELLING", "name": "Cancelling"}
    site.call("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})
    assert site.final_run(run)["state_name"] == "Cancelled"
    status = site.status("cancelled")
    assert (status["status"], len(status["sessions"])) == ("cancelled", 1)
    assert status["sessions"][0]["graceful"]


def test_the_deployments_of_prefect_yaml_chain_through_a_process_worker(site: Site) -> None:
    """`prefect deploy --all` needs no answers; a run through the API mines a corpus, with a block as its budget."""
    prefect = [sys.executable, "-m", "prefect"]
    pool = ["work-pool", "create", "perpetual", "--type", "process", "--overwrite"]
    blocks = ["block", "register", "-m", "perpetual_blocks"]
    deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    for commands in ([pool, blocks], [deploy]):
        started = [site.start(*prefect, *command, cwd=REPOSITORY) for command in commands]
        assert [child.wait(120) for child in started] == [0] * len(commands), commands
    nightly = site.call("GET", "/deployments/name/mine-docs/doc-miner-nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"

    corpus, knowledge = site.folder / "corpus", site.folder / "knowledge"
    corpus.mkdir()
    for name, text in CORPUS.items():
        (corpus / f"{name}.py").write_text(text)
    budget = save_budget(site)
    site.start(*prefect, "worker", "start", "--pool", "perpetual", cwd=REPOSITORY)
    parameters = {"corpus": str(corpus), "knowledge": str(knowledge), "chain": "worked", "budget": budget}
    site.trigger("mine-docs/doc-miner", parameters)
    status = site.chain_over("worked")
    assert status["status"] == "finished"
    assert status["items"]["completed"] == len(CORPUS)
    assert len(status["sessions"]) >= 3
    assert len({session["pid"] for session in status["sessions"]}) == len(status["sessions"])
    last = site.final_run(status["sessions"][-1]["flow_run_id"])
    assert last["parameters"]["budget"] == budget
    records = {path.stem: json.loads(path.read_text()) for path in (knowledge / "modules").glob("*.json")}
    assert set(records) == set(CORPUS)
    assert [function["name"] for function in records["beta"]["facts"]["functions"]] == ["two"]


def save_budget(site: Site) -> dict:
    """A Resource Budget block on the server; returns the reference that the run form sends."""
    code = (
        "from perpetual_blocks import ResourceBudget\n"
        "block = ResourceBudget(limits=[{'resource': 'calls', 'amount': 2, 'threshold': 1}])\n"
        "print(block.save('two-calls', overwrite=True))\n"
    )
    log = len(site.children)
    assert site.start(sys.executable, "-c", code).wait(60) == 0
    block = Path(site.folder / f"child-{log}.log").read_text().split()[-1]
    return {"$ref": {"block_document_id": block}}
