"""The LLM agent whose process is killed in the middle of its conversation, again and again."""

import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

from model_servers import KEY, MODEL_NAME, model_server
from workbench import REPOSITORY, Site

from perpetual_blocks.cli.demos.model_server import Answer, ModelService

DOCUMENTS, KILLS = 10, 3
FLOW = REPOSITORY / "flows" / "token_agent.py"


class Killing(ModelService):
    """A model at whose chosen requests the process of the session that asks is killed, before it is answered."""

    def __init__(self, site: Site, chain: str, at: set[int]) -> None:
        super().__init__()
        self._site, self._chain, self._at = site, chain, at
        self._asked = 0
        self.killed: set[int] = set()

    def answer(self, request: Any) -> Answer:
        self._asked += 1
        if self._asked in self._at:
            pid = self._site.ledger.sessions(self._chain)[-1].pid
            self.killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return super().answer(request)


def research(site: Site, corpus: Path, out: Path, chain: str, service: ModelService) -> dict[str, Any]:
    """The chain's status at its end."""
    parameters = {"corpus": corpus, "findings": out, "model": MODEL_NAME, "commit": "true", "chain": chain}
    pairs = [f"--param={name}={value}" for name, value in parameters.items()]
    with model_server(service) as url:
        environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
        done = site.perpetual("run", f"{FLOW}:research", *pairs, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_killed_anywhere_it_finds_the_same(site: Site) -> None:
    """Whatever request its process died at, each document is read to its end, and the findings are those of a chain
    that nobody has killed. They are committed, and the commit says whose they are and what they took."""
    corpus = site.folder / "corpus"
    corpus.mkdir()
    for number in range(DOCUMENTS):
        line = f"The machine {number} has a part, number {{}} of all its parts.\n"
        (corpus / f"{number:02}.txt").write_text("".join(line.format(n) for n in range(250)))
    seed = random.randrange(10**6)
    at = set(random.Random(seed).sample(range(2, 3 * DOCUMENTS), KILLS))
    killing = Killing(site, "killed", at)
    for name in ("whole", "killed"):
        (site.folder / name).mkdir()
        git(site.folder / name, "init", "-q")

    whole = research(site, corpus, site.folder / "whole", "whole", ModelService())
    killed = research(site, corpus, site.folder / "killed", "killed", killing)

    assert (whole["status"], killed["status"]) == ("finished", "finished")
    assert len(killing.killed) == KILLS, f"seed {seed}"
    assert [s["state"] for s in killed["sessions"]].count("Crashed") == KILLS, f"seed {seed}"
    found = {name: findings(site.folder / name) for name in ("whole", "killed")}
    assert len(found["whole"]) == DOCUMENTS
    assert found["whole"] == found["killed"], f"seed {seed}"
    last = killed["sessions"][-1]
    trailers = git(site.folder / "killed", "log", "-1", "--format=%(trailers:only)").splitlines()
    assert trailers[:2] == ["Perpetual-Chain: killed", f"Perpetual-Session: {last['ordinal']}"]
    assert f"Perpetual-Units: {last['units']}" in trailers
    assert git(site.folder / "killed", "status", "--porcelain") == ""


def findings(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*.md")}


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
