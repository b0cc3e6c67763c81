"""The chain: who may start its next session, and what becomes of it when a session ends.

A chain is owned by at most one session at a time. Ownership is three columns of the chain's row:

* the **epoch** goes up with each new owner. Every commit of a session names the epoch that it was given; a commit with
  an old one is refused by the database. This, and nothing else, is what keeps a fenced-off process from writing.
* the **holder** is a random id of the owning process, so that a pod that is restarted under its old name is not taken
  for its dead twin.
* the **lease** says until when nobody else may take over. A heartbeat and every commit move it on. It is only about
  *starting*: a session whose lease ran out may go on until somebody has in fact taken over, because the epoch decides.

So a second starter has three cases. The chain is free: it starts. The owner's lease runs: it ends as Superseded. The
lease has run out: it takes over, the epoch goes up, and whatever the old owner still tries to commit is refused.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from perpetual_blocks.budget import Budget
from perpetual_blocks.clock import isoformat
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.approval import Approval, granted
from perpetual_blocks.work import EVERYTHING, Selector

CodePolicy = Literal["warn", "refuse", "go-on"]
"""What a session does when its agent's code is another than the session before had."""

_CHAIN_NAME = re.compile(r"[a-z0-9-]{1,64}")


def check_chain_name(name: object) -> str:
    """The name, if it can be one.

    Raises:
        InvalidInput: it is not 1 to 64 lowercase letters, digits and dashes.
    """
    if not isinstance(name, str) or not _CHAIN_NAME.fullmatch(name):
        raise InvalidInput.of("chain", name, "1 to 64 of a-z, 0-9 and -")
    return name


class ChainStatus(StrEnum):
    """How a chain stands."""

    RUNNING = "running"  # a session is at work
    WAITING = "waiting"  # the follow-on is to come
    PAUSED = "paused"  # a person, or a cap that a person has set, holds it; `resume` goes on
    FINISHED = "finished"  # the queue is empty; new items and a new run open it again
    EXHAUSTED = "exhausted"  # a budget for the whole chain is gone
    STALLED = "stalled"  # it cannot go on by itself; the reason says why
    CANCELLED = "cancelled"


class Wanted(StrEnum):
    """What a person, or the orchestrator, wants of a chain; it holds until `resume`."""

    PAUSE = "pause"
    CANCEL = "cancel"
    STOP_ALL = "stop-all"  # a pause of every chain at once, which ends for all of them at once
    REST = "rest"  # the orchestrator's: fewer agents are enough for now, and it is what lets this one go on


class SessionState(StrEnum):
    """How a session stands or ended; the flow run's state has this name."""

    RUNNING = "Running"
    WRAPPED = "Wrapped"  # stopped by itself; the chain goes on
    FINISHED = "Finished"  # the queue is empty
    EXHAUSTED = "Exhausted"  # a budget for the whole chain is gone; a person decides
    STALLED = "Stalled"  # nothing can be done that is left
    PAUSED = "Paused"  # a person, or a cap that a person has set, holds the chain
    CANCELLED = "Cancelled"  # a person cancelled the run
    FAILED = "Failed"  # an essential step failed
    CRASHED = "Crashed"  # its process died; found by whoever came next


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a session ends.

    Attributes:
        code: For programs: `queue-empty`, `blocked`, `backing-off`, `waiting`, `nothing-fits`, `too-large`,
            `budget:<resource>`, `exhausted:<resource>`, `session-length`, `signal`, `paused`, `cancelled`,
            `quiet-hours`, `fenced`, `unreachable`, `asked`, `error`, `outage` or `crashed`; and where a chain is held
            back, `no-progress`, `evicted`, `crash-loop`, `max-sessions` or `unattended`.
        message: For people, one sentence.
        resume_at: When there will be room for the next unit, the next failed item is tried again, an outage may be
            over, or other chains of the queue may have left something, in seconds since the Unix epoch; None for at
            once.
    """

    code: str
    message: str
    resume_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain's row.

    Attributes:
        uid: Random; tells this chain from an earlier one of the same name, in document keys and idempotency keys.
        ordinal: The latest session's number.
        settings: The kinds and the budget of its agent, against which new items are checked.
        quotas: What providers said of their quota windows, by the limit's name: remaining, reset, when.
        resume_at: When its next unit will have room, where it waits for that.
        wanted: What a person wants of it, and `wanted_why`; None as long as it may go on.
        attended: The latest session that a person has started, or after which one has resumed it.
        code: The code that its latest session ran; None where that is not known, or any is welcome.
        context_version: The version of its context, as the agent counts it.
        queue: The chain whose items it works on: itself, unless it was made for another one's queue.
        selector: Which of these items it takes.
        approvals: What was decided when a total of it was gone, the oldest first.
        asks_until: Until when a run waits for such a decision, where one does, in seconds since the Unix epoch.
    """

    name: str
    uid: str
    agent: str
    status: ChainStatus
    reason: str
    ordinal: int
    epoch: int
    holder: str | None
    lease_until: float
    planned: bool
    context: dict[str, Any]
    settings: dict[str, Any]
    created_at: float
    updated_at: float
    quotas: dict[str, list[float | None]] = field(default_factory=dict)
    resume_at: float | None = None
    wanted: Wanted | None = None
    wanted_why: str | None = None
    attended: int = 0
    code: str | None = None
    context_version: int = 1
    queue: str = ""
    selector: Selector = EVERYTHING
    approvals: tuple[Approval, ...] = ()
    asks_until: float | None = None

    def __post_init__(self) -> None:
        if not self.queue:
            object.__setattr__(self, "queue", self.name)

    @property
    def budget(self) -> Budget:
        """The budget of its latest session, with what was approved since."""
        return Budget.from_json(self.settings.get("budget") or []).with_more(granted(self.approvals))

    @property
    def owns_queue(self) -> bool:
        """Whether the items that it works on are its own, which its agent's `plan()` makes."""
        return self.queue == self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session's row.

    Attributes:
        limits: Each limit with what was used of it at the end: name, resource, used, amount, reserve.
        passed_over: Items in whose place others were taken, and why (by id).
        choices: What was decided automatically, and why.
        resume_seconds: From the start of the session to the start of its first unit.
        verified: How many fields of the checkpoint were checked when it resumed, and how many agreed.
        steps: The steps of its shutdown, each with `ok`, `seconds` and, where it failed, `error`.
        attempts: How many of its units failed or were cut off.
        machine: Where its process number means its process; None for a session by hand.
        template: What a run that goes on from here is made of; None without a deployment.
        ends_at: When it will end, as it said when its end was near, in seconds since the Unix epoch.
        waited: For how many seconds its process had waited at the fence before it began.
        first_usage: What the first unit that it finished used; None if it has finished none.
    """

    ordinal: int
    epoch: int
    state: SessionState
    flow_run_id: str | None
    deployment_id: str | None
    host: str
    pid: int
    process_started: float
    started_at: float
    ended_at: float | None = None
    stop_reason: str | None = None
    stop_message: str | None = None
    graceful: bool = False
    units: int = 0
    attempts: int = 0
    usage: dict[str, float] = field(default_factory=dict)
    limits: list[dict[str, Any]] = field(default_factory=list)
    resume_seconds: float | None = None
    verified: tuple[int, int] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    machine: str | None = None
    template: dict[str, Any] | None = None
    ends_at: float | None = None
    waited: float | None = None
    first_usage: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """Who wants to start a session, and of what.

    Attributes:
        invitation: The idempotency key under which this flow run was created, where it is a follow-on.
        attended: Whether a person has started this run.
        machine: Where `pid` means this process.
        template: What a run that goes on from this one is made of; None without a deployment.
        code: Which code the agent is, `digest` or `digest version`; None where that is not known.
        context_version: The version of the context that the agent knows.
        on_code_change: What is to be done where the session before ran other code.
        waited: For how many seconds this process has waited at the fence.
    """

    chain: str
    agent: str
    holder: str
    host: str
    pid: int
    process_started: float
    flow_run_id: str | None = None
    deployment_id: str | None = None
    invitation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    attended: bool = True
    machine: str | None = None
    template: dict[str, Any] | None = None
    code: str | None = None
    context_version: int = 1
    on_code_change: CodePolicy = "warn"
    waited: float = 0.0


def invitation(uid: str, ordinal: int, renewal: str = "") -> str:
    """The idempotency key of a follow-on: who comes with it was created to be session `ordinal` of that chain.

    Args:
        renewal: Random; for a run that is created in place of one that came to nothing.
    """
    return f"perpetual-{uid}-{ordinal}" + (f"-{renewal}" if renewal else "")


def invited_to(key: str | None, uid: str) -> int | None:
    """The session of the chain with this uid that a run with this key was created to be; None if it was not."""
    found = re.fullmatch(rf"perpetual-{re.escape(uid)}-(\d+)(?:-[0-9a-f]+)?", key or "")
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Expected:
    """Who is to be the chain's next session.

    Attributes:
        key: The idempotency key of its run.
        not_before: When it is to start, in seconds since the Unix epoch; None for at once.
    """

    key: str
    not_before: float | None


def is_ahead(chain: Chain, latest: SessionRecord | None, request: SessionRequest, expected: Expected | None) -> bool:
    """Whether this request may wait: its run was created to be the chain's next session, while the latest is at work.

    Args:
        expected: None where nothing says so but the request itself.
    """
    at_work = latest is not None and latest.state is SessionState.RUNNING and chain.wanted is None
    stands = expected is None or expected.key == request.invitation
    return at_work and stands and invited_to(request.invitation, chain.uid) == chain.ordinal + 1


def refusal(
    chain: Chain,
    latest: SessionRecord | None,
    request: SessionRequest,
    now: float,
    *,
    ran_before: bool,
    all_stopped: str | None = None,
    expected: Expected | None = None,
) -> str | None:
    """Why this request may not start the chain's next session; None when it may.

    Args:
        latest: The chain's latest session.
        ran_before: Whether this flow run has already been a session of this chain.
        all_stopped: Why all chains are stopped, if they are.
        expected: Who is to be the next session, where that is recorded.
    """
    if all_stopped is not None:
        return f"all chains are stopped ({all_stopped}); `perpetual resume --all` lets them go on"
    invited = invited_to(request.invitation, chain.uid)
    is_next = invited == chain.ordinal + 1
    # Who was created ahead takes nothing over: how the session before ended is for its rescuer to say.
    held_off = chain.lease_until > now or is_ahead(chain, latest, request, expected)
    wanted_otherwise = is_next and chain.wanted is not None
    if latest is not None and latest.state is SessionState.RUNNING and held_off and not wanted_otherwise:
        return (
            f"session {latest.ordinal} of {chain.name} is at work in flow run {latest.flow_run_id or 'unknown'} "
            f"(process {latest.pid} on {latest.host}); its lease runs until {isoformat(chain.lease_until)}"
        )
    if is_resumed(chain, latest, request):
        return None
    if chain.wanted is not None or chain.status in (ChainStatus.CANCELLED, ChainStatus.PAUSED):
        held = chain.status if chain.wanted is None else {Wanted.CANCEL: "cancelled"}.get(chain.wanted, "paused")
        return f"chain {chain.name} is {held} ({chain.wanted_why or chain.reason}); `perpetual resume {chain.name}`"
    came_too_late = invited is not None and invited <= chain.ordinal
    # A run that failed may be tried again, by Prefect or a person, though the chain would go on by itself later.
    ran_before = ran_before and latest is not None and latest.state is not SessionState.FAILED
    if (ran_before or came_too_late) and chain.status in (ChainStatus.WAITING, ChainStatus.FINISHED):
        return (
            f"this flow run's session of {chain.name} is over; the chain is {chain.status} at session {chain.ordinal}"
        )
    return _not_needed(chain, request, now, expected) if is_next else None


def _not_needed(chain: Chain, request: SessionRequest, now: float, expected: Expected | None) -> str | None:
    """Why a run that was created to be the next session is not needed any more; None where it is."""
    name, ordinal = chain.name, chain.ordinal + 1
    if chain.status in (ChainStatus.FINISHED, ChainStatus.STALLED, ChainStatus.EXHAUSTED):
        return f"session {ordinal} of {name} is not needed: the chain is {chain.status} ({chain.reason})"
    if expected is not None and expected.key == request.invitation:
        return None
    # Where nothing is recorded, as without a deployment, who has waited for this moment is early if the chain waits on.
    begins_at = expected.not_before if expected is not None else chain.resume_at if request.waited else None
    if begins_at is None or begins_at <= now:
        return None
    return f"session {ordinal} of {name} begins at {isoformat(begins_at)}, in another flow run"


def is_resumed(chain: Chain, latest: SessionRecord | None, request: SessionRequest) -> bool:
    """Whether this is the very run that was paused: Prefect starts it again only when a person presses Resume."""
    return (
        chain.status is ChainStatus.PAUSED
        and chain.wanted is None
        and latest is not None
        and latest.state is SessionState.PAUSED
        and latest.flow_run_id is not None
        and latest.flow_run_id == request.flow_run_id
    )


def wanted_status(chain: Chain, status: ChainStatus, reason: str) -> tuple[ChainStatus, str]:
    """How a chain stands that would go on, given what a person wants of it; a chain that ends anyway does."""
    if chain.wanted is None or status is not ChainStatus.WAITING:
        return status, reason
    held = ChainStatus.CANCELLED if chain.wanted is Wanted.CANCEL else ChainStatus.PAUSED
    return held, chain.wanted_why or reason
