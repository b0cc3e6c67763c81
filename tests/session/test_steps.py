"""Steps: in order, for so long and no longer, and with a record."""

from collections.abc import Callable
from contextvars import ContextVar
from threading import Event, current_thread

import pytest
from support import FakeClock

from perpetual_blocks.session import steps as module
from perpetual_blocks.session.steps import Steps, StepTimedOut, within

VARIABLE: ContextVar[str] = ContextVar("variable", default="not set")


@pytest.fixture
def failures() -> list[tuple[str, str]]:
    """What was said of steps that failed."""
    return []


@pytest.fixture
def steps(clock: FakeClock, failures: list[tuple[str, str]]) -> Steps:
    """A record with nothing in it yet."""
    return Steps(clock, lambda name, error: failures.append((name, error)))


def raising(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_what_a_step_returns(steps: Steps, failures: list[tuple[str, str]], clock: FakeClock) -> None:
    """A step's value is given back, and its time is recorded."""

    def slow() -> str:
        clock.advance(1.5)
        return "value"

    assert steps.essential("first", slow) == "value"
    assert steps.best_effort("second", slow) == "value"

    assert steps.record == [
        {"step": "first", "ok": True, "seconds": 1.5},
        {"step": "second", "ok": True, "seconds": 1.5},
    ]
    assert (steps.failures(), failures) == ([], [])


def test_an_essential_step_that_fails(steps: Steps, failures: list[tuple[str, str]]) -> None:
    """What an essential step raises is recorded and raised: nothing comes after it."""
    error = OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full") as raised:
        steps.essential("save_state", raising(error))

    assert raised.value is error
    assert steps.record == [{"step": "save_state", "ok": False, "error": "OSError: the disk is full", "seconds": 0.0}]
    assert failures == []


def test_a_best_effort_step_that_fails(steps: Steps, failures: list[tuple[str, str]]) -> None:
    """What a best-effort step raises is recorded and told, and the next step runs."""
    assert steps.best_effort("backup", raising(ValueError("no"))) is None
    assert steps.best_effort("handoff", lambda: "written") == "written"

    assert steps.failures() == ["backup: ValueError: no"]
    assert failures == [("backup", "ValueError: no")]
    assert [entry["ok"] for entry in steps.record] == [False, True]


def test_a_step_that_hangs_is_left_behind(
    steps: Steps, failures: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best-effort step may take so long and no longer; its record says that it was still running."""
    monkeypatch.setattr(module, "STEP_SECONDS", 0.02)
    started, never = Event(), Event()

    def hang() -> None:
        started.set()
        never.wait()

    assert steps.best_effort("backup", hang) is None

    assert started.is_set()
    assert steps.failures() == ["backup: StepTimedOut: still running after 0.02 s; it was left behind"]
    assert failures == [("backup", "StepTimedOut: still running after 0.02 s; it was left behind")]
    assert steps.best_effort("handoff", lambda: "written") == "written"
    never.set()


def test_an_essential_step_has_no_deadline(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving state takes as long as it takes, in the session's own thread."""
    monkeypatch.setattr(module, "STEP_SECONDS", 0.0)

    assert steps.essential("save_state", current_thread) is current_thread()


@pytest.fixture
def hurried(clock: FakeClock, failures: list[tuple[str, str]]) -> Steps:
    """A record of steps in a process that is killed ten seconds from now."""
    by = clock.monotonic() + 10.0
    return Steps(clock, lambda name, error: failures.append((name, error)), killed_at=lambda: by)


def test_steps_are_skipped_when_only_the_minimal_save_has_time(
    hurried: Steps, failures: list[tuple[str, str]], clock: FakeClock
) -> None:
    """A step that would run into the end of the process is not begun: it is recorded as skipped, the next ones too,
    saving the state among them; the follow-on is still created."""
    assert hurried.essential("save_state", lambda: "saved") == "saved"
    clock.advance(10.0 - module.MINIMAL_SECONDS)

    assert hurried.best_effort("backup", lambda: pytest.fail("begun")) is None
    assert hurried.essential("save_state", lambda: pytest.fail("begun")) is None
    assert hurried.last("follow_on", lambda: "created") == "created"

    error = "StepTimedOut: there was no time for it before the process ends"
    skipped = {"ok": False, "skipped": True, "error": error, "seconds": 0.0}
    assert hurried.record == [
        {"step": "save_state", "ok": True, "seconds": 0.0},
        {"step": "backup", **skipped},
        {"step": "save_state", **skipped},
        {"step": "follow_on", "ok": True, "seconds": 0.0},
    ]
    assert failures == [("backup", error), ("save_state", error)]
    assert not hurried.complete


def test_even_the_last_step_is_not_begun_when_the_time_is_over(hurried: Steps, clock: FakeClock) -> None:
    """A follow-on that is not created in time stays in the outbox."""
    clock.advance(10.0)

    assert hurried.last("follow_on", lambda: pytest.fail("begun")) is None


@pytest.mark.parametrize("kind", ["essential", "best_effort"])
def test_a_step_that_hangs_is_left_behind_for_the_minimal_save(hurried: Steps, clock: FakeClock, kind: str) -> None:
    """A storage that does not answer does not keep the session from being closed: the step is skipped."""
    never = Event()

    def hang() -> None:
        clock.advance(10.0 - module.MINIMAL_SECONDS)
        never.wait()

    assert getattr(hurried, kind)("backup", hang) is None

    (entry,) = hurried.record
    assert (entry["ok"], entry["skipped"]) == (False, True)
    assert entry["error"] == "StepTimedOut: still running when the process was about to end; it was left behind"
    never.set()


def test_a_signal_in_the_middle_of_a_step_cuts_it_short(clock: FakeClock, failures: list[tuple[str, str]]) -> None:
    """A shutdown that had all the time there is has little when a signal comes: the step that runs is left behind."""
    killed_at: list[float] = []
    steps = Steps(
        clock, lambda name, error: failures.append((name, error)), killed_at=lambda: next(iter(killed_at), None)
    )
    never = Event()

    def hang() -> None:
        killed_at.append(clock.monotonic() + 1.0)
        never.wait()

    assert steps.best_effort("commit_changes", hang) is None

    assert [entry["step"] for entry in steps.record if entry.get("skipped")] == ["commit_changes"]
    never.set()


def test_an_essential_step_that_fails_in_a_hurry(hurried: Steps) -> None:
    """That there is little time does not excuse what is wrong: it is raised."""
    with pytest.raises(OSError, match="the disk is full"):
        hurried.essential("save_state", raising(OSError("the disk is full")))

    assert hurried.complete


def test_within_gives_back_and_raises_what_the_step_does() -> None:
    """A step's value or error comes out as if there were no thread in between."""
    error = KeyError("x")

    assert within(60, lambda: 42) == 42
    with pytest.raises(KeyError) as raised:
        within(60, raising(error))
    assert raised.value is error


def test_within_stops_waiting() -> None:
    """After its time the waiting ends with an error that says how long it was."""
    never = Event()

    with pytest.raises(StepTimedOut, match=r"still running after 0\.01 s"):
        within(0.01, never.wait)
    never.set()


def test_a_step_finds_its_context() -> None:
    """Context variables, through which Prefect finds the flow run, are there in the step's thread."""
    token = VARIABLE.set("of the session")
    try:
        assert within(60, VARIABLE.get) == "of the session"
    finally:
        VARIABLE.reset(token)


def test_what_ends_the_process_is_not_swallowed(steps: Steps) -> None:
    """A step's SystemExit or KeyboardInterrupt is no failure of a step: it goes on up."""
    with pytest.raises(KeyboardInterrupt):
        steps.best_effort("backup", raising(KeyboardInterrupt()))

    assert [entry["ok"] for entry in steps.record] == [False]
