"""When this process will be ended from outside, as far as those who will end it say so beforehand."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from perpetual_blocks.errors import InvalidInput

GRACE_SECONDS = 30.0
"""Between the signal and the kill: what Prefect's runner and `prefect flow-run execute` allow, and what Kubernetes does
unless told otherwise."""

# The years 2001 to 5138. What is below is a duration, and what is above are milliseconds, taken for an instant.
_FIRST, _LAST = 1e9, 1e11


@dataclass(frozen=True, slots=True)
class Deadline:
    """Somebody will end this process.

    Attributes:
        source: Who, or what said so, for people.
        at: When, in seconds since the Unix epoch.
    """

    source: str
    at: float


def deadlines(environment: Mapping[str, str]) -> list[Deadline]:
    """The deadlines that environment variables tell, the soonest first; one that has passed is among them.

    * `PERPETUAL_DEADLINE`, for whoever starts the process and knows: seconds since the Unix epoch, or ISO 8601 with
      an offset from UTC (`2026-11-25T18:00:00+01:00`).
    * `SLURM_JOB_END_TIME`: when a Slurm job is projected to end, in seconds since the Unix epoch. It is as it was
      when the job started: an administrator who changes the job's time limit does not change it.

    Raises:
        InvalidInput: `PERPETUAL_DEADLINE` is something else.
    """
    found = []
    if (text := environment.get("PERPETUAL_DEADLINE")) is not None:
        if (at := _instant(text)) is None:
            expected = "an instant: seconds since the Unix epoch, or ISO 8601 with an offset (2026-11-25T18:00:00Z)"
            raise InvalidInput.of("PERPETUAL_DEADLINE", text, expected)
        found.append(Deadline("PERPETUAL_DEADLINE", at))
    # No user wrote it, so that a strange one is no reason not to work.
    if (at := _epoch_seconds(environment.get("SLURM_JOB_END_TIME", ""))) is not None:
        found.append(Deadline("Slurm", at))
    return sorted(found, key=lambda deadline: deadline.at)


def grace_seconds(environment: Mapping[str, str]) -> float:
    """How long after a signal the process will be killed: `PERPETUAL_GRACE_SECONDS`, for whoever allows more or less.

    Raises:
        InvalidInput: it is no number above 0.
    """
    text = environment.get("PERPETUAL_GRACE_SECONDS")
    if text is None:
        return GRACE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InvalidInput.of("PERPETUAL_GRACE_SECONDS", text, "seconds, a finite number above 0")
    return seconds


def _instant(text: str) -> float | None:
    if (seconds := _epoch_seconds(text)) is not None:
        return seconds
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.utcoffset() is None else moment.timestamp()


def _epoch_seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if _FIRST <= seconds <= _LAST else None


class LambdaContext(Protocol):
    """What AWS Lambda hands to a function beside the event, as far as it is needed here."""

    def get_remaining_time_in_millis(self) -> int:
        """The milliseconds until Lambda ends the invocation."""


def lambda_deadline(context: LambdaContext, now: float) -> Deadline:
    """When AWS Lambda ends the invocation; no environment variable tells it.

    Args:
        now: Seconds since the Unix epoch.
    """
    return Deadline("AWS Lambda", now + context.get_remaining_time_in_millis() / 1000)


def flow_timeout_deadline(timeout_seconds: float | None, started_at: float) -> Deadline | None:
    """When Prefect ends the flow run by the flow's own `timeout_seconds`; None if the flow has none.

    Prefect 3.8 starts the time anew whenever it calls the flow's function: for each try of a flow with retries. What
    happens then depends on where the function runs:

    * A sync flow in the main thread is interrupted by SIGALRM, in the middle of a system call too.
    * A sync flow in another thread, or in one whose SIGALRM is taken, gets an exception at its next Python
      instruction: not before a system call or a C function has returned.
    * An async flow is cancelled at its next `await`.
    * A sync flow on Windows goes on.

    The exception is a `BaseException`, and the try ends as Failed with the name `TimedOut`. The process goes on.

    In a sync flow the time includes that in which Prefect's heartbeat thread ends, up to a second after the function
    has returned: one that returns in the last second is failed all the same.

    Args:
        timeout_seconds: The flow's; 0 is none, as for Prefect.
        started_at: When this try of the flow run became Running, in seconds since the Unix epoch. The time that
            Prefect measures starts a moment later. A run's `start_time` is that of its first try.
    """
    return Deadline("flow timeout", started_at + timeout_seconds) if timeout_seconds else None


def cpu_seconds_left() -> float | None:
    """CPU seconds that this process may still use, at least 0; None if nothing limits them.

    This is `RLIMIT_CPU` (`ulimit -t`), its soft limit: the kernel then sends SIGXCPU, which ends a process that does
    not handle it. For one that does, Linux moves the limit on by a second, up to the hard limit, at which it kills.
    The limit is on this process with all of its threads. A child has the same limit for itself.
    """
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0.0, limit - time.process_time())
