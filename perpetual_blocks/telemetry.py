"""Moments: what happened, as typed values in the past tense.

The core emits them; log lines, and whatever else wants to know, are observers of them.

| moment | when |
| --- | --- |
| `SessionStarted` | the chain is owned and its state verified |
| `ItemsAdded` | `plan()` or a unit has added items |
| `UnitCompleted` | a unit was committed, its item done or advanced |
| `UnitFailed` | a unit raised; its attempt was counted |
| `UnitCutOff` | a unit had no room to finish; its item was given back, or discarded the second time |
| `ItemDiscarded` | an item that fits into no session was given up, as another was taken in its place |
| `BudgetWarned` | a limit came near its threshold, once a session for each limit |
| `StepFailed` | a step of the shutdown failed; the shutdown went on |
| `CodeChanged` | the agent's code is another than the session before had; it goes on with it |
| `CheckpointLarge` | a checkpoint was saved that is larger than its size budget |
| `FollowOnAnnounced` | the follow-on was recorded ahead of the end of the session, which is near |
| `FenceReached` | a run that was created ahead is up, and waits for the session before to end |
| `SessionEnded` | the session was closed |
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionStarted:
    chain: str
    ordinal: int
    took_over: bool
    notes: tuple[str, ...]


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
class UnitFailed:
    chain: str
    item: str
    attempt: int
    max_attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class UnitCutOff:
    chain: str
    item: str
    reason: str
    discarded: bool


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
class StepFailed:
    chain: str
    step: str
    error: str


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
    chain: str
    ordinal: int
    state: str
    reason: str


Moment = (
    SessionStarted
    | ItemsAdded
    | UnitCompleted
    | UnitFailed
    | UnitCutOff
    | BudgetWarned
    | StepFailed
    | CodeChanged
    | CheckpointLarge
    | ItemDiscarded
    | FollowOnAnnounced
    | FenceReached
    | SessionEnded
)
Observer = Callable[[Moment], None]
