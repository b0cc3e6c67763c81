"""Moments: what happened, as typed values in the past tense.

The core emits them; log lines, Prefect events, OpenTelemetry, and whatever else wants to know, are observers of them.
Units may run in several threads, and so may what tells of them.

| moment | when |
| --- | --- |
| `SessionStarted` | the chain is owned and its state verified |
| `ItemsAdded` | `plan()` or a unit has added items |
| `UnitCompleted` | a unit was committed, its item done or advanced |
| `ModelUsed` | a unit that runs in this process has spent what a language model used |
| `UnitFailed` | a unit raised; its attempt was counted |
| `UnitCutOff` | a unit had no room to finish; its item was given back, or discarded the second time |
| `ItemDiscarded` | an item that fits into no session was given up, as another was taken in its place |
| `BudgetWarned` | a limit came near its threshold, once a session for each limit |
| `BudgetRead` | every limit was read, once a second at most, and at the end |
| `StepFailed` | a step of the shutdown failed; the shutdown went on |
| `StepEnded` | a step of the shutdown is over, whatever came of it |
| `CodeChanged` | the agent's code is another than the session before had; it goes on with it |
| `CheckpointLarge` | a checkpoint was saved that is larger than its size budget |
| `FollowOnAnnounced` | the follow-on was recorded ahead of the end of the session, which is near |
| `FenceReached` | a run that was created ahead is up, and waits for the session before to end |
| `SessionEnded` | the session was closed |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """A session has begun.

    Attributes:
        took_over: Whether it has found the session before dead.
        after_crash: Whether the session before has crashed, whoever has found it.
        gap: Seconds since the chain could go on: since the session before ended, or since what it waited for. None for
            a chain that nothing kept waiting, as it is new, or was taken over, or a person held it.
    """

    chain: str
    ordinal: int
    took_over: bool
    notes: tuple[str, ...]
    after_crash: bool = False
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class ItemsAdded:
    chain: str
    count: int


@dataclass(frozen=True, slots=True)
class UnitCompleted:
    chain: str
    item: str
    number: int
    done: bool
    progress: tuple[float, float] | None
    usage: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelUsed:
    chain: str
    item: str
    model: str | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class UnitFailed:
    chain: str
    item: str
    attempt: int
    max_attempts: int
    error: str
    discarded: bool = False
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitCutOff:
    chain: str
    item: str
    reason: str
    discarded: bool
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ItemDiscarded:
    chain: str
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class BudgetWarned:
    chain: str
    resource: str
    reason: str


@dataclass(frozen=True, slots=True)
class Level:
    """How a limit stands.

    Attributes:
        limit: Its name.
        scope: session, window or total.
    """

    limit: str
    resource: str
    scope: str
    used: float
    amount: float


@dataclass(frozen=True, slots=True)
class BudgetRead:
    chain: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class StepFailed:
    chain: str
    step: str
    error: str


@dataclass(frozen=True, slots=True)
class StepEnded:
    chain: str
    step: str
    seconds: float
    error: str | None


@dataclass(frozen=True, slots=True)
class CodeChanged:
    chain: str
    ordinal: int
    what: str


@dataclass(frozen=True, slots=True)
class CheckpointLarge:
    chain: str
    ordinal: int
    size: int
    budget: int


@dataclass(frozen=True, slots=True)
class FollowOnAnnounced:
    chain: str
    ordinal: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FenceReached:
    chain: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session was closed.

    Attributes:
        code: The stop reason's, for programs.
        resume_at: When the chain goes on, in seconds since the Unix epoch; None for at once, or not by itself.
        seconds: How long it took.
        units: How many of its units came to something, or failed.
        usage: What they have spent, by resource.
        items: How many items of the chain have each status; empty where that is not known.
        status: How the chain stands now, as far as this session knows.
    """

    chain: str
    ordinal: int
    state: str
    reason: str
    code: str = ""
    resume_at: float | None = None
    seconds: float = 0.0
    units: int = 0
    usage: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)
    status: str = ""


Moment = (
    SessionStarted
    | ItemsAdded
    | UnitCompleted
    | ModelUsed
    | UnitFailed
    | UnitCutOff
    | BudgetWarned
    | BudgetRead
    | StepFailed
    | StepEnded
    | CodeChanged
    | CheckpointLarge
    | ItemDiscarded
    | FollowOnAnnounced
    | FenceReached
    | SessionEnded
)
Observer = Callable[[Moment], None]


class LastingObserver(Protocol):
    """An observer that has more to do than what it is told of: a thread, a connection."""

    def __call__(self, moment: Moment, /) -> None:
        """Is told of a moment."""

    def close(self, seconds: float) -> None:
        """Ends it; what it still holds has so long to get out."""
