"""Units in processes of their own: real ones, some of which are ended, or end themselves, in every way there is."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from threading import Event, Thread
from typing import Any, ClassVar

import psutil
import pytest
from lone_agents import Lone
from pydantic import SecretStr
from support import one_line, some_item, wait_for

from perpetual_blocks import PerpetualAgent
from perpetual_blocks.adapters.child import RaisedInChild, UnitDied, run_in_child
from perpetual_blocks.adapters.remote_unit import Home
from perpetual_blocks.budget.room import Room
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import InvalidInput, described
from perpetual_blocks.service_errors import is_of_service
from perpetual_blocks.work import ContextChange, CutOff, Outcome, Unit

REPOSITORY = Path(__file__).parents[2]


def make_unit(do: str, room: Room | None = None, **changes: Any) -> Unit:
    """A unit that does this."""
    payload = {"do": do, **changes.pop("payload", {})}
    return Unit(some_item(payload=payload, **changes), {"seen": ["b"]}, room)


def run(do: str, room: Room | None = None, agent: Lone | None = None, **changes: Any) -> Outcome:
    """The outcome of such a unit."""
    return Outcome.from_document(run_in_child(agent or Lone(), make_unit(do, room, **changes)))


# What comes back ------------------------------------------------------------------------------------------------------


def test_the_outcome_comes_back() -> None:
    """The result, the new context, the added items and the spends; agent's fields and secrets get there."""
    unit = make_unit("multiply", payload={"number": 21})

    agent = Lone(factor=3, key=SecretStr("open"), keys={"more": [SecretStr("sesame")]})

    outcome = Outcome.from_document(run_in_child(agent, unit))

    number, pid, *keys = outcome.result
    assert (number, keys, outcome.done) == (63, ["open", "sesame"], True)
    assert pid != os.getpid()
    assert outcome.context == ContextChange({"seen": ["b"]}, {"seen": ["b", "a"]})
    assert [item.id for item in outcome.added] == ["more"]
    assert {name: outcome.usage[name] for name in ("tokens", "calls")} == {"tokens": 10, "calls": 1}
    assert unit.usage == {"tokens": 10, "calls": 1}
    assert unit.context == {"seen": ["b"]}


def test_a_unit_goes_on_where_the_last_one_stopped() -> None:
    """The cursor gets there, and the new one comes back."""
    outcome = run("advance", cursor=[1, 2])

    assert (outcome.done, outcome.cursor, outcome.progress) == (False, {"after": [1, 2]}, (1, 2))
    assert (outcome.next_action, outcome.context) == ("the rest", None)


def test_a_unit_knows_its_room() -> None:
    """What is left of each resource, time by the child's own clock, the rung, and which attempt it is."""
    room = Room({"tokens": 50, "seconds": 30}, rung="careful")

    seen = run("look", room, attempts=1, units=2).result

    assert (seen["rung"], seen["attempt"], seen["number"]) == ("careful", 2, 3)
    assert seen["remaining"]["tokens"] == 50
    assert 0 < seen["remaining"]["seconds"] < 29.99


def test_an_async_unit_is_awaited() -> None:
    """In the child, where it may block as well."""
    assert run("wait").result == "awaited"


def test_what_a_unit_raises_comes_back() -> None:
    """With its type's name and its text, and the traceback as a note; what was spent until then is counted."""
    unit = make_unit("fail")

    with pytest.raises(RaisedInChild) as raised:
        run_in_child(Lone(), unit)

    assert described(raised.value) == "LookupError: no such\npage"
    assert "lone_agents.py" in raised.value.__notes__[0]
    assert unit.usage == {"tokens": 7}


def test_whether_a_service_is_away_comes_back() -> None:
    """What caused the error stays in the child; that nobody is to blame for it does not."""
    with pytest.raises(RaisedInChild) as raised:
        run("find_nobody")

    assert described(raised.value) == "LookupError: no such page"
    assert is_of_service(raised.value)


def test_a_unit_that_exits_has_failed() -> None:
    """It ends its own process and nothing else."""
    with pytest.raises(RaisedInChild) as raised:
        run("leave")

    assert described(raised.value) == "SystemExit: 3"


def test_a_unit_without_room_is_cut_off() -> None:
    """As it says itself; what it spent is counted."""
    unit = make_unit("want", Room({"tokens": 50}))

    with pytest.raises(CutOff) as cut:
        run_in_child(Lone(), unit)

    assert (str(cut.value), cut.value.resource) == ("a: unit 1 needs 1,000 tokens; 43 tokens left", "tokens")
    assert unit.usage == {"tokens": 7}


# Ended ----------------------------------------------------------------------------------------------------------------


class AtWork(SystemClock):
    """Stands still until a unit is at work, however long its process takes to start."""

    def __init__(self, is_at_work: Callable[[], object]) -> None:
        self._is_at_work = is_at_work
        self._began: float | None = None

    def monotonic(self) -> float:
        if self._began is None and self._is_at_work():
            self._began = super().monotonic()
        return 0.0 if self._began is None else super().monotonic() - self._began


def test_a_unit_is_ended_when_its_time_is_up() -> None:
    """In the middle of whatever it does; what it spent before is counted."""
    units: list[Unit] = []
    clock = AtWork(lambda: any(unit.usage for unit in units))
    units.append(make_unit("sleep", Room({"seconds": 1}, clock)))

    with pytest.raises(CutOff) as cut:
        run_in_child(Lone(), units[0])

    assert (str(cut.value), cut.value.resource) == ("a: unit 1 ran until its time was up", "seconds")
    assert 1 <= clock.monotonic() < 6
    assert units[0].usage == {"tokens": 7}


def test_a_unit_is_ended_when_it_is_interrupted() -> None:
    """As when its time is up: what it spent before is counted."""
    unit, interrupt = make_unit("sleep"), Event()

    def interrupt_when_it_has_begun() -> None:
        wait_for(lambda: unit.usage)
        interrupt.set()

    Thread(target=interrupt_when_it_has_begun).start()
    with pytest.raises(CutOff) as cut:
        run_in_child(Lone(), unit, interrupt)

    assert str(cut.value) == "a: unit 1 was interrupted, as the process is about to end"
    assert unit.usage == {"tokens": 7}


def test_a_unit_that_does_not_listen_is_killed_with_its_children(tmp_path: Path) -> None:
    """SIGTERM first, SIGKILL two seconds later; what it had started is not left behind."""
    pids_of = tmp_path / "pids"
    clock = AtWork(lambda: pids_of.exists() and pids_of.read_text())

    with pytest.raises(CutOff):
        run("defy", Room({"seconds": 1}, clock), Lone(folder=tmp_path))

    assert 3 <= clock.monotonic() < 10
    pids = [int(pid) for pid in pids_of.read_text().split()]
    # A signal was sent to each, and takes its time where the machine is busy.
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ("be_killed", "by SIGKILL, as it does when memory runs out"),
        ("crash", "by SIGSEGV"),
        ("vanish", "with exit code 4"),
    ],
)
def test_a_unit_whose_process_dies_has_failed(do: str, how: str) -> None:
    """The text says how it died."""
    unit = make_unit(do)

    with pytest.raises(UnitDied) as died:
        run_in_child(Lone(), unit)

    assert str(died.value) == f"the process of a, unit 1, was ended {how}"
    assert unit.usage == ({"tokens": 7} if do == "be_killed" else {})


def test_a_unit_is_told_to_wrap(tmp_path: Path) -> None:
    """A stop of the session reaches the child, which then comes to an end by itself."""
    outcome = run("wait_for_wrap", Room(stopping=(tmp_path / "began").exists), Lone(folder=tmp_path))

    assert outcome.result == "wrapped"


def test_a_unit_ends_with_its_session(tmp_path: Path) -> None:
    """A session that is killed leaves no unit behind that works on."""
    code = f"""if True:
        import sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        from test_child import Lone, Room, run
        run("defy", agent=Lone(folder=Path({str(tmp_path)!r})))
    """
    with subprocess.Popen([sys.executable, "-c", code], env=environment()) as session:
        pids = tmp_path / "pids"
        wait_for(lambda: (pids.exists() and pids.read_text()) or session.poll() is not None)
        assert session.poll() is None
        session.kill()
    unit, its_own = map(int, (tmp_path / "pids").read_text().split())
    with suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(unit)], timeout=10)
    psutil.Process(its_own).kill()
    assert not is_running(unit)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_SERVER_EPHEMERAL_ENABLED": "true"}


# What a new process can import ----------------------------------------------------------------------------------------


def test_an_agent_that_cannot_be_imported_is_refused() -> None:
    """One within a function, when its flow is made."""

    class Local(PerpetualAgent):
        isolated: ClassVar[bool] = True

    with pytest.raises(InvalidInput) as refused:
        Local.as_flow()

    one_line(refused.value, "Local.isolated", "at the top of a file")


class Wide(Lone):
    """Takes anything as a field."""

    anything: Any = None


def test_fields_that_are_not_json_are_refused() -> None:
    """They could not be handed over."""
    with pytest.raises(InvalidInput) as refused:
        run_in_child(Wide(anything=object()), make_unit("look"))

    one_line(refused.value, "Wide.isolated", "object", "JSON")


def test_a_flow_file_that_prefect_has_loaded() -> None:
    """Its module has a name that nobody can import; the file is there."""
    file = str(Path(__file__).with_name("lone_agents.py"))

    loaded = Home("__a_loader_of_prefect__", file, "Lone").load()

    assert (loaded.__name__, loaded.__module__) == ("Lone", "__a_loader_of_prefect__")
    del sys.modules["__a_loader_of_prefect__"]
    with pytest.raises(ModuleNotFoundError):
        Home("not_there", None, "Lone").load()


SCRIPT = """
import os
from perpetual_blocks import PerpetualAgent, WorkItem
from perpetual_blocks.adapters.child import run_in_child
from support import some_item
from perpetual_blocks.work import Unit


class Scripted(PerpetualAgent):
    isolated = True

    def work_unit(self, unit):
        return os.getpid()


scripted = Scripted.as_flow()

"""


def run_script(folder: Path, last: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    file = folder / "script.py"
    file.write_text(SCRIPT + dedent(last))
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parents[1])])
    return subprocess.run(
        [sys.executable, str(file), *arguments],
        env={**environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_agent_of_a_script(tmp_path: Path) -> None:
    """Works, as the script is imported under another name and does nothing then."""
    last = """
    if __name__ == "__main__":
        print(run_in_child(Scripted(), Unit(some_item(), {}))["result"] != os.getpid())
    """
    said = run_script(tmp_path, last)

    assert said.stdout.split() == ["True"], said.stderr


def test_a_script_that_starts_its_flow_when_it_is_imported(tmp_path: Path) -> None:
    """The unit's process refuses to, and the session says what is expected."""
    last = """
    if __name__ != "__main__":
        scripted()
    try:
        run_in_child(Scripted(), Unit(some_item(), {}))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    """
    said = run_script(tmp_path, last)

    assert "InvalidInput: a: got a process that ended with exit code 1 before it began" in said.stdout
    assert 'if __name__ == "__main__":' in said.stdout
    assert "Scripted: got a start while its script is imported" in said.stderr


def test_an_agent_typed_in(tmp_path: Path) -> None:
    """What is in no file cannot be imported, and is refused when the flow is made."""
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parents[1])])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (
        "InvalidInput: Scripted.isolated: got '__main__.Scripted'; expected an agent at the top of a file"
        in said.stderr
    )
