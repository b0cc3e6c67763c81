"""The prover proves nothing unless it can fail: agents with a mistake are found, and the text says where it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
from support import one_line

from perpetual_blocks.adapters.database import units as units_of_ledger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import InvalidInput, PerpetualError
from perpetual_blocks.faults import reached
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.testing import LocalRuns, Report, assert_resumable, file_contents
from perpetual_blocks.testing.prover import chosen, first_difference
from perpetual_blocks.work import Unit, WorkItem

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="assert_resumable forks")

PLACE = "its ledger, documents, files and output: "


class Agent(PerpetualAgent):
    """Has two items to do."""

    out: Path = Path("unused")

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id="a"), WorkItem(id="b")]


class Writer(Agent):
    """Writes a file for each item."""

    def work_unit(self, unit: Unit) -> Any:
        unit.spend(tokens=100)
        (self.out / f"{unit.id}.txt").write_text(f"{unit.id}\n")
        return unit.id


class Appender(Agent):
    """Adds a line to one file for each item, without a look at what is there."""

    def work_unit(self, unit: Unit) -> Any:
        with (self.out / "log.txt").open("a") as file:
            file.write(f"{unit.id}\n")
        return unit.id


class Rememberer(Agent):
    """Keeps what it knows in memory that ends with its process."""

    known: ClassVar[list[str]] = []

    def work_unit(self, unit: Unit) -> Any:
        self.known.append(unit.id)
        return list(self.known)


class Counter(Agent):
    """Returns how often it was asked."""

    def work_unit(self, unit: Unit) -> Any:
        times = self.out / "times"
        times.write_text(times.read_text() + "x" if times.exists() else "x")
        return len(times.read_text())


class Chatterer(Agent):
    """Adds one item more when one was tried before."""

    def work_unit(self, unit: Unit) -> Any:
        tried = self.out / "tried"
        if tried.exists() and unit.id == tried.read_text():
            unit.add(WorkItem(id="more"))
        tried.write_text(unit.id)


class Hanger(Agent):
    """Waits for ever when an item was tried before."""

    def work_unit(self, unit: Unit) -> Any:
        tried = self.out / f"tried-{unit.id}"
        if tried.exists():
            Event().wait()
        tried.touch()


class Dier(Agent):
    """Ends its own process."""

    def work_unit(self, unit: Unit) -> Any:
        os._exit(3)


class Planless(Agent):
    """Cannot plan."""

    def plan(self) -> Iterable[WorkItem]:
        raise ValueError("no plan")


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a failure leaves lies in the test's own folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    shutil.rmtree(tmp_path)


def failure(agent: Any, **options: Any) -> str:
    """What is wrong with an agent."""
    with pytest.raises(AssertionError) as raised:
        assert_resumable(agent, **options)
    return str(raised.value)


def test_an_agent_without_a_mistake(tmp_path: Path) -> None:
    """Each point is tried in each way; the report tells how many, and nothing is left behind."""
    report = assert_resumable(lambda folder: Writer(out=folder))

    assert report.agent == "Writer"
    assert report.points["unit.committing"] == 2
    assert report.points["session.closed"] == 1
    each = sum(report.points.values())
    assert report.cases == {"exception": each, "SIGTERM": each, "SIGKILL": each, "lost lease": each}
    assert (report.sessions, report.left_out, report.not_reached) == (1, 0, 0)
    one_line(AssertionError(str(report)), f"{4 * each} interruptions", "the same end")
    assert list(tmp_path.iterdir()) == []


def test_too_many_cases_are_thinned() -> None:
    """Up to the bound, each occurrence of each point is interrupted; beyond it, the first, middle and last of each."""
    points = {"once": 1, "twice": 2, "often": 9}

    every, few = chosen(points, 48), chosen(points, 47)

    assert len(every) == 48
    assert [str(case) for case in every[:5]] == [
        "once:1:exception",
        "once:1:SIGTERM",
        "once:1:SIGKILL",
        "once:1:lost lease",
        "twice:1:exception",
    ]
    assert [(case.point, case.occurrence) for case in few if case.mode == "SIGKILL"] == [
        ("once", 1),
        ("twice", 1),
        ("twice", 2),
        ("often", 1),
        ("often", 5),
        ("often", 9),
    ]


def test_what_was_left_out_is_told() -> None:
    """The report says how many interruptions were not tried."""
    report = Report(
        agent="Writer", points={"a": 9}, sessions=1, cases={"SIGKILL": 3}, left_out=6, not_reached=0, seconds=2
    )

    assert "3 interruptions (3 SIGKILL) at 1 points of 1 sessions" in str(report)
    assert "6 more were left out" in str(report)


def test_a_file_with_double_lines() -> None:
    """An agent that adds to a file adds twice when it is killed before its outcome is persisted; the text says which
    line, how to try it alone, how the sessions went, and where everything is."""
    text = failure(lambda folder: Appender(out=folder), only="unit.returned:2:SIGKILL")

    first, alone, *more = text.splitlines()
    assert first == (
        "Appender is not resumable: SIGKILL at unit.returned, the 2nd time it is reached: "
        "compare › log.txt[2]: got 'b\\n'; the uninterrupted run has nothing"
    )
    assert "only='unit.returned:2:SIGKILL'" in alone
    assert [line.split()[:2] for line in more[1:3]] == [["1", "Crashed"], ["2", "Finished"]]
    place = Path(more[-1].partition(PLACE)[2])
    assert (place / "files" / "log.txt").read_text() == "a\nb\nb\n"
    assert (place / "ledger.db").exists()


def test_a_mistake_is_found_without_being_told_where() -> None:
    """The walk itself comes to the point where the agent goes wrong, with what is to be compared chosen by the user."""
    text = failure(lambda folder: Appender(out=folder), compare=lambda folder: (folder / "log.txt").read_text())

    assert "unit.returned" in text.splitlines()[0]
    assert "compare: got 'a\\na\\nb\\n'; the uninterrupted run has 'a\\nb\\n'" in text


def test_what_is_not_compared_may_differ() -> None:
    """With a `compare` of one's own, nothing else of the folder counts."""
    assert_resumable(lambda folder: Appender(out=folder), compare=lambda folder: 0, only="unit.returned:2:SIGKILL")


def test_state_in_memory_is_lost() -> None:
    """An agent that keeps in memory what it needs later has another result; an instance is as good as a function."""
    text = failure(Rememberer())

    assert "results › b[0]: got 'b'; the uninterrupted run has 'a'" in text


def test_a_result_that_depends_on_how_often_it_was_asked() -> None:
    """A unit that is tried again must come to the same result."""
    text = failure(lambda folder: Counter(out=folder), compare=lambda folder: None)

    assert "results › a: got 2; the uninterrupted run has 1" in text


def test_items_too_many() -> None:
    """An agent that adds other items when a unit is tried again is reported with the first of them."""
    text = failure(lambda folder: Chatterer(out=folder), compare=lambda folder: None)

    assert "items › more: got {'status': 'completed'" in text
    assert "the uninterrupted run has nothing" in text


def test_a_session_that_hangs() -> None:
    """A session that does not end in time is reported, and ended."""
    text = failure(lambda folder: Hanger(out=folder), only="unit.returned:1:SIGKILL", session_seconds=3)

    assert "session 2 had not ended after 3 s" in text


def test_an_agent_that_ends_its_process() -> None:
    """What an agent does to its own process without any interruption is reported as that."""
    text = failure(lambda folder: Dier(out=folder))

    assert text.startswith("Dier comes to no end when nothing interrupts it: ")
    assert "the process of session 1 ended by itself, exit code 3" in text


def test_an_agent_that_cannot_begin() -> None:
    """An error that no interruption is needed for is shown as it is."""
    assert "session 1 raised ValueError: no plan" in failure(lambda folder: Planless(out=folder))


def test_an_agent_that_cannot_be_made() -> None:
    """The error of the function that makes the agent is shown as it is."""
    assert "session 1 raised ZeroDivisionError" in failure(lambda folder: 1 / 0)


def test_a_chain_that_never_ends() -> None:
    """A chain that is started again and again and never ends is reported, with its sessions and the last error."""

    def make(folder: Path) -> Writer:
        if (folder / "a.txt").exists():
            raise ValueError("cannot go on")
        return Writer(out=folder)

    text = failure(make, only="unit.returned:1:exception")

    assert "the chain had not ended after 12 sessions; the last one raised ValueError: cannot go on" in text
    assert "1 Failed (InjectedFault" in text


def test_a_follow_on_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session that goes on has one follow-on, however often its creation is tried."""
    create = LocalRuns.create
    monkeypatch.setattr(
        LocalRuns,
        "create",
        lambda runs, follow_on: create(
            runs, FollowOn(**{**_fields(follow_on), "idempotency_key": os.urandom(8).hex()})
        ),
    )

    text = failure(lambda folder: Writer(out=folder), budget=Budget(tokens=150), only="follow_on.created:1:SIGKILL")

    assert "session 1 ended as Wrapped and has 2 follow-ons; expected 1" in text


def _fields(follow_on: Any) -> dict[str, Any]:
    return {name: getattr(follow_on, name) for name in type(follow_on).__slots__}


@pytest.mark.parametrize("mode", ["exception", "SIGTERM", "SIGKILL", "lost lease"])
def test_points_within_a_transaction(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """A point may lie in the middle of the ledger's transaction: what is written there is written wholly or not."""
    count_usage = units_of_ledger.COUNT_USAGE

    def half_way(*arguments: Any) -> None:
        count_usage(*arguments)
        reached("unit.counted")

    monkeypatch.setattr(units_of_ledger, "COUNT_USAGE", half_way)

    report = assert_resumable(lambda folder: Writer(out=folder), only=f"unit.counted:2:{mode}")

    assert (report.cases, report.not_reached) == ({mode: 1}, 0)


class Broken(PerpetualAgent):
    """Has this many items, and completes none of them."""

    items: int

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=str(number), max_attempts=1) for number in range(self.items)]

    def work_unit(self, unit: Unit) -> Any:
        raise ValueError("never works")


@pytest.mark.parametrize("items", [0, 2])
def test_an_agent_that_completes_nothing_shows_nothing(items: int) -> None:
    """Two runs that come to nothing are alike, and prove nothing."""
    with pytest.raises(AssertionError, match=f"Broken completes no item of {items} when nothing interrupts it"):
        assert_resumable(Broken(items=items))


def test_a_point_that_is_not_reached() -> None:
    """An interruption that did not take place is counted as that."""
    report = assert_resumable(lambda folder: Writer(out=folder), only="unit.claimed:99:SIGKILL")

    assert report.not_reached == 1
    assert "1 of them did not take place" in str(report)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"agent": Writer}, "an agent, or a function that makes one, given a folder"),
        ({"agent": None}, "an agent, or a function that makes one, given a folder"),
        ({"agent": Writer(), "only": "unit.claimed"}, "point:occurrence:mode"),
        ({"agent": Writer(), "only": "unit.claimed:1:flood"}, "exception, SIGTERM, SIGKILL, lost lease"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], expected: str) -> None:
    """What cannot be tried is refused in one line."""
    with pytest.raises(InvalidInput) as refused:
        assert_resumable(**arguments)

    one_line(refused.value, expected)


def test_a_system_that_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fork, that is said before anything is tried."""
    monkeypatch.delattr(os, "fork")

    with pytest.raises(PerpetualError) as refused:
        assert_resumable(Writer())

    one_line(refused.value, "expected a system with os.fork")


def test_it_needs_no_prefect_and_no_ledger_of_the_users(tmp_path: Path) -> None:
    """The prover loads no Prefect, and writes nothing where the user's own ledger and results are."""
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys\n"
        "from perpetual_blocks.testing import assert_resumable\n"
        "from perpetual_blocks import PerpetualAgent\n"
        "from perpetual_blocks.work import WorkItem\n"
        "class Little(PerpetualAgent):\n"
        "    def plan(self): return [WorkItem(id='a')]\n"
        "    def work_unit(self, unit): return 1\n"
        "assert_resumable(Little(), only='session.opened:1:SIGKILL')\n"
        "print('prefect' in sys.modules)"
    )
    environment = {**os.environ, "HOME": str(home), "PREFECT_HOME": str(home / ".prefect")}

    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)

    assert said.stdout == "False\n"
    assert list(home.iterdir()) == []


def test_the_folder_has_the_same_name_everywhere() -> None:
    """An agent may say in its items and results where its files are, although each try has them elsewhere."""

    class Pathfinder(Agent):
        def plan(self) -> Iterable[WorkItem]:
            return [WorkItem(id=str(self.out / "a"))]

        def work_unit(self, unit: Unit) -> Any:
            Path(unit.id).write_text(unit.id)
            return unit.id

    assert_resumable(lambda folder: Pathfinder(out=folder), only="unit.returned:1:SIGKILL")


def test_file_contents(tmp_path: Path) -> None:
    """Text is compared by lines, other files by their digest, and git's own are left out."""
    for path, content in {"b/text": b"1\n2", "a": b"\xff\x00", ".git/HEAD": b"x"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)

    found = file_contents(tmp_path)

    assert list(found) == ["a", "b/text"]
    assert found["a"].startswith("2 bytes, SHA-256 ")
    assert found["b/text"] == ["1\n", "2"]


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, None),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b: got 3; the uninterrupted run has 2"),
        ({"a": 1}, {}, "a: got nothing; the uninterrupted run has 1"),
        ({}, {"a": None}, "a: got None; the uninterrupted run has nothing"),
        ({"a": [1, 2]}, {"a": [1]}, "a[1]: got nothing; the uninterrupted run has 2"),
        ({"a": {"b": [0, True]}}, {"a": {"b": [0, 1]}}, "a › b[1]: got 1; the uninterrupted run has True"),
        ({"a": {}}, {"a": []}, "a: got []; the uninterrupted run has {}"),
    ],
)
def test_the_first_difference(expected: Any, got: Any, said: str | None) -> None:
    """The first difference is named by its place, with both values."""
    assert first_difference(expected, got) == said
