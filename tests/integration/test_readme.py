"""What the README shows is run as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

from workbench import REPOSITORY, Site

from perpetual_blocks import Budget


def readme_block(mark: str, language: str) -> str:
    """The code block that follows a mark in the README."""
    found = re.search(rf"<!-- {mark} -->\n```{language}\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert found, mark
    return found.group(1)


def test_the_agent_of_the_readme_works(site: Site) -> None:
    """Copied into a file and run as the README says, it counts the words of every document."""
    code = readme_block("agent", "python")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(lines) <= 15
    (site.folder / "agent.py").write_text(code)
    docs = site.folder / "docs"
    docs.mkdir()
    for number in range(3):
        (docs / f"{number}.md").write_text("word " * (number + 1))
    done = site.perpetual("run", "agent.py:count_words", "--param", "folder=docs", "--param", "chain=words", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["tokens"] == 6
    items = site.here("items", "list", "words", "--json").json()
    assert {item["id"]: item["status"] for item in items} == {f"{n}.md": "completed" for n in range(3)}


def test_the_test_of_the_readme_passes(tmp_path: Path) -> None:
    """Beside that agent, as pytest runs it; the prover, which takes a minute, has tests of its own."""
    (tmp_path / "agent.py").write_text(readme_block("agent", "python"))
    (tmp_path / "test_agent.py").write_text(readme_block("test-agent", "python"))

    command = [sys.executable, "-m", "pytest", "-q", "-k", "hands_over", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 deselected" in done.stdout


def test_ci_runs_the_command_that_the_readme_names() -> None:
    """The second command of the README is found by `.ci/run` in the way that it looks for it."""
    command = readme_block("tests", "bash").strip()
    assert "\n" not in command
    assert command.endswith("-m pytest")
    assert "<!-- tests -->" in (REPOSITORY / ".ci" / "run").read_text().replace("/^", "").replace("$/", "")


def test_the_budget_of_the_readme_is_one() -> None:
    """Its limits are those that the text speaks of."""
    names: dict[str, object] = {}
    exec(readme_block("budget", "python"), names)

    budget = names["budget"]
    assert isinstance(budget, Budget)
    assert [limit.name for limit in budget] == [
        "tokens",
        "calls/day America/Los_Angeles",
        "cost/day",
        "cost/total",
        "seconds",
        "memory",
    ]
