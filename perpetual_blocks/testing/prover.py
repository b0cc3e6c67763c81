"""The prover: an agent is interrupted at every point, in every way, and must come to the same end each time."""

import os
import select
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import ChainStatus
from perpetual_blocks.testing.chains import UNFINISHED, Bench, Course, Place, Subject
from perpetual_blocks.testing.interruptions import MODES, Interruption
from perpetual_blocks.testing.local import file_contents
from perpetual_blocks.testing.processes import Fork, Say, check_fork
from perpetual_blocks.work import ItemStatus

MOST_SESSIONS = 10_000
"""Of the uninterrupted run: one that does not end is a mistake."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `assert_resumable` has done.

    Attributes:
        points: How often each named point was reached in the uninterrupted run.
        sessions: How many sessions that took.
        cases: How many interruptions were tried, by mode.
        left_out: How many were not, because there are too many.
        not_reached: How many did not take place: the agent came to fewer points than before.
    """

    agent: str
    points: dict[str, int]
    sessions: int
    cases: dict[str, int]
    left_out: int
    not_reached: int
    seconds: float

    def __str__(self) -> str:
        modes = ", ".join(f"{count} {mode}" for mode, count in self.cases.items())
        line = f"{self.agent}: {sum(self.cases.values())} interruptions ({modes}) at {len(self.points)} points"
        line += f" of {self.sessions} sessions, each with the same end; {self.seconds:.1f} s"
        if self.left_out:
            line += f"; {self.left_out} more were left out"
        if self.not_reached:
            line += f"; {self.not_reached} of them did not take place"
        return line


def assert_resumable(
    agent: PerpetualAgent | Callable[[Path], PerpetualAgent],
    *,
    budget: Budget | None = None,
    compare: Callable[[Path], Any] = file_contents,
    only: str | None = None,
    most_cases: int = 200,
    session_seconds: float = 60.0,
) -> Report:
    """Shows that an agent comes to the same end wherever it is interrupted.

    Runs the agent's chain to its end, and notes every named point of the program that it comes to: each write, commit
    and schedule. Then runs it again for each of these points and each way to be interrupted there: an exception,
    SIGTERM, SIGKILL, and a rival that takes the chain over. Each time the next sessions must bring the chain to the
    same items, results, context and usage, and leave the same files.

    Each session is a process of its own, forked from this one; each chain has a ledger of its own in a temporary
    folder. It needs no Prefect server. The clock is the prover's: each unit takes a second, and nobody waits.

    Args:
        agent: An agent. One that writes files is given as a function that makes it, so that each chain can have a
            folder of its own: `lambda folder: Miner(out=folder / "out")`. It is called for each session.
        budget: The agent's budget. With a small one there are several sessions in each chain.
        compare: What of the folder must be the same in the end, as JSON; the contents of all files if not given.
        only: One interruption, as a failure names it, to be looked at alone.
        most_cases: If there are more, each point is interrupted at its first, middle and last occurrence only, or at
            its first and last, or at its first, which is always done.
        session_seconds: A session that takes longer hangs.

    Raises:
        AssertionError: the agent came to another end, or to none; the text names the interruption and the first
            difference.
        InvalidInput: `agent` or `only` is not what it should be.
        PerpetualError: the system cannot fork.
    """
    check_fork()
    subject = Subject(_maker(agent), budget or Budget(), compare, time.time(), session_seconds)
    named = [Interruption.parse(only)] if only else None
    began = time.monotonic()
    with _folder() as folder:
        expected = _uninterrupted(subject, Place(folder / "uninterrupted"))
        cases = named or chosen(expected.reached, most_cases)
        not_reached = _try(subject, folder, cases, expected)
    return Report(
        agent=expected.agent,
        points=expected.reached,
        sessions=len(expected.sessions),
        cases=dict(Counter(case.mode for case in cases)),
        left_out=0 if only else len(MODES) * sum(expected.reached.values()) - len(cases),
        not_reached=not_reached,
        seconds=time.monotonic() - began,
    )


def _maker(agent: Any) -> Callable[[Path], PerpetualAgent]:
    if isinstance(agent, PerpetualAgent):
        return lambda _folder: agent  # each process has its own copy of it
    if isinstance(agent, type) or not callable(agent):
        raise InvalidInput.of("assert_resumable", agent, "an agent, or a function that makes one, given a folder")
    return agent  # type: ignore[no-any-return]


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder, which stays where it is if something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="perpetual-resumable-"))
    try:
        yield folder
    except AssertionError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


# Which interruptions --------------------------------------------------------------------------------------------------


def chosen(points: dict[str, int], most: int) -> list[Interruption]:
    """Each mode at each occurrence of each point; if these are more than `most`, fewer of the middle ones, or none."""
    for some in (None, {0.0, 0.5, 1.0}, {0.0, 1.0}, {0.0}):
        cases = [
            Interruption(point, occurrence, mode)
            for point, count in points.items()
            for occurrence in _occurrences(count, some)
            for mode in MODES
        ]
        if len(cases) <= most:
            break
    return cases


def _occurrences(count: int, some: set[float] | None) -> list[int]:
    if some is None:
        return list(range(1, count + 1))
    return sorted({1 + round(share * (count - 1)) for share in some})


# Running them ---------------------------------------------------------------------------------------------------------


def _uninterrupted(subject: Subject, place: Place) -> Course:
    """How the chain goes when nothing interrupts it."""
    empty = _empty_ledger()

    def work(say: Say) -> None:
        say(asdict(Bench(subject, place, empty).run_chain(None, MOST_SESSIONS)))

    ((said,),) = _run([work], [1], [_log(place)])
    course = Course(**said)
    if course.problem is not None:
        wrong = f"{course.agent} comes to no end when nothing interrupts it: {course.problem}"
        raise AssertionError(f"{wrong}\n{_traces(course, place)}")
    done = [item for item in course.final["items"].values() if item["status"] == ItemStatus.COMPLETED]
    if course.final["chain"] == ChainStatus.FINISHED and not done:
        wrong = f"{course.agent} completes no item of {len(course.final['items'])} when nothing interrupts it"
        raise AssertionError(f"{wrong}: that shows nothing\n{_traces(course, place)}")
    return course


def _try(subject: Subject, folder: Path, cases: Sequence[Interruption], expected: Course) -> int:
    """Tries the interruptions, on as many benches as there are processors; how many did not take place.

    Raises:
        AssertionError: one of them led to another end.
    """
    empty, most = _empty_ledger(), 2 * len(expected.sessions) + 10

    def work(place: Place, share: Sequence[Interruption], say: Say) -> None:
        bench = Bench(subject, place, empty)
        for case in share:
            course = bench.run_chain(case, most)
            if course.can_be_cut_off and course.final:
                course.final[UNFINISHED] = expected.final[UNFINISHED]
            problem = course.problem or first_difference(expected.final, course.final)
            if problem is not None:
                say({"wrong": _failure(expected.agent, case, problem, course, place)})
                return  # what it left stays as it is
            say({"fired": course.fired})

    benches = min(_processors(), len(cases))
    shares = [cases[number::benches] for number in range(benches)]
    places = [Place(folder / f"bench-{number}") for number in range(1, benches + 1)]
    works = [partial(work, place, share) for place, share in zip(places, shares, strict=True)]
    said = _run(works, [len(share) for share in shares], [_log(place) for place in places])
    return sum(not course["fired"] for share in said for course in share)


def _run(works: Sequence[Callable[[Say], None]], messages: Sequence[int], logs: Sequence[Path]) -> list[Any]:
    """Does each work in a process of its own; what each said.

    Args:
        messages: How many are expected of each.

    Raises:
        AssertionError: one says that something is wrong, or says less than is expected.
    """
    forks = [Fork(work, log, group=True) for work, log in zip(works, logs, strict=True)]
    try:
        while speaking := [fork for fork in forks if not fork.silent]:
            for fork in select.select(speaking, [], [])[0]:
                fork.hear()
                if fork.heard and "wrong" in fork.heard[-1]:
                    raise AssertionError(fork.heard[-1]["wrong"])
        for fork, expected, log in zip(forks, messages, logs, strict=True):
            if len(fork.heard) < expected:
                words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise AssertionError(f"the process that runs the sessions ended before they did: {words[-1]}")
        return [fork.heard for fork in forks]
    finally:
        for fork in forks:
            fork.end()


def _log(place: Place) -> Path:
    return place.root.with_suffix(".log")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _empty_ledger() -> bytes:
    """A ledger with no chain in it: making one takes longer than most chains."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        # In a process of its own: a database connection must not be there when others are forked.
        _run([lambda say: SqlLedger(str(path)).close()], [0], [Path(folder) / "output.log"])
        return path.read_bytes()


# What is wrong --------------------------------------------------------------------------------------------------------


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


def first_difference(expected: Any, got: Any, where: str = "") -> str | None:
    """Where two JSON values differ first, and how; None if they are equal."""
    if isinstance(expected, dict) and isinstance(got, dict):
        pairs = [(f"{where} › {key}", key) for key in (*expected, *(key for key in got if key not in expected))]
        found = (first_difference(expected.get(key, NOTHING), got.get(key, NOTHING), at) for at, key in pairs)
        return next(filter(None, found), None)
    if isinstance(expected, list) and isinstance(got, list):
        for index in range(max(len(expected), len(got))):
            ours, theirs = (items[index] if index < len(items) else NOTHING for items in (expected, got))
            if difference := first_difference(ours, theirs, f"{where}[{index}]"):
                return difference
        return None
    if type(expected) is type(got) and expected == got:
        return None
    return f"{where.removeprefix(' › ')}: got {_shown(got)}; the uninterrupted run has {_shown(expected)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _failure(agent: str, case: Interruption, problem: str, course: Course, place: Place) -> str:
    return (
        f"{agent} is not resumable: {case.mode} at {case.point}, the {_nth(case.occurrence)} time it is reached: "
        f"{problem}\n  this case alone: assert_resumable(…, only={str(case)!r})\n{_traces(course, place)}"
    )


def _traces(course: Course, place: Place) -> str:
    lines = ["  its sessions:", *(f"    {session}" for session in course.sessions)]
    lines += ["  errors of its items:", *(f"    {error}" for error in course.errors)] if course.errors else []
    return "\n".join([*lines, f"  its ledger, documents, files and output: {place.root}"])


def _nth(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
