"""Signals: a process that waits for its session, however often it is asked to end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, current_thread, main_thread

import pytest
from prefect.exceptions import TerminationSignal

from perpetual_blocks.adapters.signals import in_background, pass_on

REPOSITORY = Path(__file__).parents[2]


def never(at: float) -> None:
    pytest.fail("no signal has come")


def test_work_is_done_in_another_thread() -> None:
    """What it returns is returned; without a signal nobody is told of one."""
    thread, signalled = in_background(current_thread, never)

    assert thread is not main_thread()
    assert signalled is None


def test_what_the_work_raises_is_raised() -> None:
    """As if there were no thread in between."""
    error = ValueError("no")

    def work() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as raised:
        in_background(work, never)

    assert raised.value is error


def test_the_first_signal_asks_and_the_next_are_waited_out() -> None:
    """The work is asked to stop once, with the time of the signal; it ends when it is ready to."""
    told: list[float] = []
    asked = Event()

    def work() -> str:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
        assert asked.wait(30)
        return "done"

    def on_signal(at: float) -> None:
        told.append(at)
        os.kill(os.getpid(), signal.SIGINT)  # another, while the question is asked
        time.sleep(0.05)
        asked.set()

    before = time.monotonic()
    done, signalled = in_background(work, on_signal)

    assert done == "done"
    assert isinstance(signalled, KeyboardInterrupt)
    (at,) = told
    assert before <= at <= time.monotonic()


def test_a_signal_that_another_thread_gets_is_noticed() -> None:
    """As the system may choose any of them."""
    asked = Event()

    def work() -> bool:
        signal.raise_signal(signal.SIGINT)  # in this very thread
        return asked.wait(30)

    assert in_background(work, lambda at: asked.set())[0]


def test_a_question_that_fails_does_no_harm() -> None:
    """Whatever asking raises, the work goes on."""
    asked = Event()

    def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(30)
        return "done"

    def on_signal(at: float) -> None:
        asked.set()
        raise OSError

    assert in_background(work, on_signal)[0] == "done"


BOMBARDED = """
import sys, time
from prefect.utilities.engine import capture_sigterm
from perpetual_blocks.adapters.signals import in_background

asked = []

def work():
    print("began", flush=True)
    sys.stdin.readline()
    return "done"

with capture_sigterm():
    done, signalled = in_background(work, asked.append)
print(done, len(asked), type(signalled).__name__, flush=True)
"""


def test_hundreds_of_signals_are_survived() -> None:
    """One after the other as fast as they can be sent, SIGTERM and SIGINT: the work ends by itself, in order."""
    with subprocess.Popen(
        [sys.executable, "-c", BOMBARDED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "began\n"
        for number in range(600):
            child.send_signal(signal.SIGINT if number % 3 else signal.SIGTERM)
            time.sleep(0.0002)
        time.sleep(0.2)  # the last of them is to arrive before the end
        child.stdin.write("\n")
        child.stdin.flush()
        words = child.stdout.read().split()

    assert child.returncode == 0
    assert words[:2] == ["done", "1"]
    assert words[2] in ("TerminationSignal", "KeyboardInterrupt")


def test_a_signal_is_passed_on() -> None:
    """To whatever handles it when the run is over: Python's default, a user's handler, or nobody, which ends it."""
    with pytest.raises(KeyboardInterrupt):
        pass_on(KeyboardInterrupt())
    with pytest.raises(SystemExit) as ended:
        pass_on(TerminationSignal(signal.SIGTERM))
    assert ended.value.code == 143

    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        pass_on(TerminationSignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
