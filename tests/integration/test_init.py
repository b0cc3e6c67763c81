"""`perpetual init`: what it writes is deployed and run as it is, and passes its own tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from workbench import Site

NAME = "paper-reader"
MODULE = NAME.replace("-", "_")


@pytest.fixture(scope="module")
def made(shared_site: Site) -> Path:
    """The folder of a new agent."""
    folder = shared_site.folder / "made"
    said = shared_site.here("init", NAME, "--directory", str(folder), "--json")
    assert said.json() == {
        "name": NAME,
        "directory": str(folder),
        "files": ["README.md", f"{MODULE}.py", "prefect.yaml", f"test_{MODULE}.py"],
        "entrypoint": f"{MODULE}.py:flow",
    }
    return folder


def test_it_runs_as_it_is_deployed(shared_site: Site, made: Path) -> None:
    """Its README's commands, on a real server: a chain of runs that a worker takes up, to the end."""
    site, prefect = shared_site, (sys.executable, "-m", "prefect")
    for command in (("work-pool", "create", "perpetual", "--type", "process", "--overwrite"), ("deploy", "--all")):
        assert site.start(*prefect, "--no-prompt", *command, cwd=made).wait(120) == 0
    site.trigger(f"{NAME}/{NAME}", {"chain": "init", "pages": 12})
    site.start(*prefect, "worker", "start", "--pool", "perpetual", cwd=made)

    # While the worker starts.
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tested = subprocess.run(tests, cwd=made, capture_output=True, text=True, check=False)

    assert "3 passed" in tested.stdout, tested.stdout
    status = site.chain_over("init")
    assert (status["status"], status["items"]["completed"]) == ("finished", 12)
    assert len(status["sessions"]) >= 2
    assert (made / "out" / "page-12.txt").read_text() == "144\n"
