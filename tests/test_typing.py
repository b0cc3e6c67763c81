"""What a type checker says to users: nothing of an agent that is right, and where the mistake is of one that is not."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from shell import make_shell

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    find_spec("mypy") is None or find_spec("ruff") is None, reason="no mypy or ruff: pip install -e .[dev]"
)

RIGHT = """
from collections.abc import Iterator
from pathlib import Path

from perpetual_blocks import Budget, Handoff, Limit, Manners, PerpetualAgent, Unit, WorkItem, define_resource
from perpetual_blocks.testing import ManualClock, ScriptedMeter, SessionRun, assert_resumable, run_chain, run_session

define_resource("pages", "counter", "pages")

class Reader(PerpetualAgent):
    folder: Path = Path("docs")

    def plan(self) -> Iterator[WorkItem]:
        yield WorkItem(id="a", payload={"path": "a"}, estimate={"tokens": 4000})

    async def work_unit(self, unit: Unit) -> object:
        unit.spend(tokens=3, pages=1)
        return unit.advance(cursor=1, progress=(1, 2)) if unit.number == 1 else {"words": 3}

    def create_handoff(self, handoff: Handoff) -> Handoff:
        return handoff

read = Reader.as_flow(budget=Budget(Limit("cost", 5, scope="total"), seconds=900), manners=Manners(max_sessions=9))

def test_it() -> None:
    clock, meter = ManualClock(), ScriptedMeter(1, 2, capacity=9)
    first: SessionRun = run_session(Reader(), stop_after=1, clock=clock, meters={"memory": meter})
    states: list[str] = [run.state for run in (first.go_on(), *run_chain(Reader()))]
    print(states, assert_resumable(lambda folder: Reader(folder=folder)).sessions)
"""

WRONG = """
from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem
from perpetual_blocks.testing import run_session

class Reader(PerpetualAgent):
    pages: int = 3

    def plan(self) -> int:  # wrong: return
        return 3

Budget(Limit("cost", 5, scope="month"))  # wrong: scope
WorkItem(id=3)  # wrong: id
Reader(page=3)  # wrong: field
Reader.as_flow(buget=Budget())  # wrong: name
run_session(Reader(), stop_after="2")  # wrong: number
run_session(Reader).state  # wrong: class
run_session(Reader()).result  # wrong: attribute
"""


@pytest.fixture
def new_agent(tmp_path: Path) -> Path:
    """What `perpetual init` writes, for a name as long as it may be: lines are the longest then."""
    said = make_shell(tmp_path).here("init", "a-reader-of-thirty-letters-all", "--directory", "new")
    assert said.code == 0, said
    return tmp_path / "new"


@pytest.mark.parametrize("length", [88, 120])
def test_a_new_agent_is_as_ruff_would_have_it(new_agent: Path, length: int) -> None:
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", str(length), "."]
        done = subprocess.run(ruff, cwd=new_agent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_files_are_checked(new_agent: Path, tmp_path: Path) -> None:
    """In one run, as it takes most of its time for what is imported; and so is what `perpetual init` writes."""
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    # The cache that checking the repository has filled, where it was.
    command = [sys.executable, "-m", "mypy", "--config-file", REPOSITORY / "pyproject.toml", "--cache-dir"]
    environment = {**os.environ, "MYPYPATH": f"{REPOSITORY}{os.pathsep}{new_agent}"}

    said = subprocess.run(
        [*command, REPOSITORY / ".mypy_cache", tmp_path / "right.py", tmp_path / "wrong.py", *new_agent.glob("*.py")],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    found = {(Path(file).name, int(line)) for file, line in re.findall(r"^(.*?\.py):(\d+): error", said.stdout, re.M)}
    expected = {("wrong.py", n) for n, line in enumerate(WRONG.splitlines(), start=1) if "# wrong: " in line}
    assert found == expected, said.stdout + said.stderr
