"""Deadlines: what environment variables, Lambda, Prefect and the kernel tell about the end of a process."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import one_line

from perpetual_blocks.adapters.deadlines import (
    Deadline,
    cpu_seconds_left,
    deadlines,
    flow_timeout_deadline,
    grace_seconds,
    lambda_deadline,
)
from perpetual_blocks.errors import InvalidInput

REPOSITORY = Path(__file__).parents[2]


class TestEnvironment:
    def test_none(self) -> None:
        """Without such variables there are no deadlines."""
        assert deadlines({}) == []
        assert deadlines({"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1795000000"}) == []

    @pytest.mark.parametrize(
        "text",
        [
            "1795629600",
            "1795629600.0",
            "2026-11-25T18:00:00Z",
            "2026-11-25T18:00:00+00:00",
            "2026-11-25T19:00:00+01:00",
            "2026-11-25 12:30:00-05:30",
            "20261125T180000Z",
        ],
    )
    def test_generic(self, text: str) -> None:
        """PERPETUAL_DEADLINE is seconds since the epoch, or ISO 8601 with an offset."""
        assert deadlines({"PERPETUAL_DEADLINE": text}) == [Deadline("PERPETUAL_DEADLINE", 1795629600.0)]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "soon",
            "3600",
            "-1795629600",
            "1795629600000",
            "nan",
            "inf",
            "20261125",
            "2026-11-25",
            "18:00",
            "2026-11-25T18:00:00",
            "2026-13-25T18:00:00Z",
            "2026-11-25T18:00:00 Europe/Berlin",
        ],
    )
    def test_generic_refused(self, text: str) -> None:
        """Anything else is refused: a duration, milliseconds, a local time that may be anybody's."""
        with pytest.raises(InvalidInput) as caught:
            deadlines({"PERPETUAL_DEADLINE": text})

        assert str(caught.value) == (
            f"PERPETUAL_DEADLINE: got {text!r}; expected an instant: seconds since the Unix epoch, or ISO 8601 with "
            "an offset (2026-11-25T18:00:00Z)"
        )

    def test_slurm(self) -> None:
        """Slurm's projected end of the job is a deadline."""
        assert deadlines({"SLURM_JOB_END_TIME": "1795629600"}) == [Deadline("Slurm", 1795629600.0)]

    @pytest.mark.parametrize("text", ["", "0", "Unknown", "NONE"])
    def test_strange_slurm(self, text: str) -> None:
        """An end that is no instant is none."""
        assert deadlines({"SLURM_JOB_END_TIME": text}) == []

    def test_soonest_first(self) -> None:
        """Of several, the soonest comes first."""
        sooner, later = "1795629600", "1795629601"

        for mine, slurm, order in ((sooner, later, ["PERPETUAL_DEADLINE", "Slurm"]), (later, sooner, None)):
            found = deadlines({"SLURM_JOB_END_TIME": slurm, "PERPETUAL_DEADLINE": mine})
            assert [deadline.at for deadline in found] == [float(sooner), float(later)]
            assert [deadline.source for deadline in found] == (order or ["Slurm", "PERPETUAL_DEADLINE"])


def test_lambda() -> None:
    """Lambda tells the milliseconds that are left."""

    @dataclass
    class Context:
        left: int

        def get_remaining_time_in_millis(self) -> int:
            return self.left

    assert lambda_deadline(Context(1500), 1000.0) == Deadline("AWS Lambda", 1001.5)
    assert lambda_deadline(Context(0), 1000.0) == Deadline("AWS Lambda", 1000.0)


@pytest.mark.parametrize(
    ("timeout_seconds", "expected"),
    [(90.5, Deadline("flow timeout", 1090.5)), (1, Deadline("flow timeout", 1001.0)), (None, None), (0, None)],
)
def test_flow_timeout(timeout_seconds: float | None, expected: Deadline | None) -> None:
    """A flow's timeout counts from its start."""
    assert flow_timeout_deadline(timeout_seconds, 1000.0) == expected


def test_no_timeout_is_as_prefect_has_it() -> None:
    """Prefect, too, takes a timeout of 0 for none."""
    from prefect import flow

    assert flow(timeout_seconds=0)(lambda: None).timeout_seconds is None


def test_the_grace_after_a_signal() -> None:
    """What Prefect and Kubernetes allow, unless whoever allows something else says so."""
    assert grace_seconds({}) == 30
    assert grace_seconds({"PERPETUAL_GRACE_SECONDS": "8.5"}) == 8.5


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_grace_that_cannot_be(text: str) -> None:
    """The error names the variable, the value and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        grace_seconds({"PERPETUAL_GRACE_SECONDS": text})

    one_line(refused.value, "PERPETUAL_GRACE_SECONDS", repr(text), "seconds, a finite number above 0")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
class TestCpuSecondsLeft:
    def run(self, code: str, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
        """A process that has limits of its CPU seconds from its start on."""
        import resource

        return subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (soft, hard)),
        )

    def test_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a limit, None."""
        import resource

        monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, 5))
        assert cpu_seconds_left() is None

    def test_use(self) -> None:
        """What the process has used is gone; what its children used, and time that it waited, is not."""
        code = """
import subprocess, sys, time
from perpetual_blocks.adapters.deadlines import cpu_seconds_left
burn = "import time\\nwhile time.process_time() < 0.5: pass"
print(cpu_seconds_left() + time.process_time())
before = cpu_seconds_left()
subprocess.run([sys.executable, "-c", burn], check=True)
time.sleep(0.3)
print(before - cpu_seconds_left())
now = time.process_time()
while time.process_time() < now + 0.5: pass
print(before - cpu_seconds_left())
"""
        done = self.run(code, 20, 30)

        assert [float(line) for line in done.stdout.splitlines()] == pytest.approx([20.0, 0.0, 0.5], abs=0.1)

    def test_after_the_warning(self) -> None:
        """A process that handles the kernel's signal has until the next one: another second, up to the hard limit."""
        code = """
import signal, time
from perpetual_blocks.adapters.deadlines import cpu_seconds_left
signal.signal(signal.SIGXCPU, lambda *_: None)
while time.process_time() < 1.2: pass
print(cpu_seconds_left())
"""
        assert float(self.run(code, 1, 10).stdout) == pytest.approx(0.8, abs=0.1)

    def test_never_less_than_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the kernel has noticed that the limit is reached, there are 0 left."""
        import resource

        monkeypatch.setattr(resource, "getrlimit", lambda which: (0, 5))
        assert cpu_seconds_left() == 0.0

    def test_the_kernel_ends_the_process_then(self) -> None:
        """The process is ended when none are left, and not before."""
        code = """
from perpetual_blocks.adapters.deadlines import cpu_seconds_left
while True:
    print(cpu_seconds_left(), flush=True)
    sum(range(10**5))
"""
        done = self.run(code, 1, 10)

        assert done.returncode == -signal.SIGXCPU
        assert float(done.stdout.splitlines()[-1]) < 0.1
