"""What the core needs of the world outside: one protocol for each seam. `adapters` has the implementations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from perpetual_blocks.budget import Expectation, Limit, Spend
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    SessionRecord,
    SessionRequest,
    SessionState,
    StopReason,
)
from perpetual_blocks.work import Item, ItemStatus, Outcome, Unit, WorkItem


@dataclass(frozen=True, slots=True)
class Fence:
    """What a session shows with each commit: the database refuses it when the chain has a newer epoch."""

    chain: str
    ordinal: int
    epoch: int
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session that owns its chain.

    Attributes:
        chain: The chain as it is now.
        previous: The session before, as it ended.
        took_over: Whether that session was found dead.
    """

    fence: Fence
    chain: Chain
    previous: SessionRecord | None
    took_over: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A document in the results storage, as the ledger knows it.

    Attributes:
        kind: checkpoint or handoff.
        digest: SHA-256 of its bytes.
        size: In bytes.
    """

    kind: Literal["checkpoint", "handoff"]
    ordinal: int
    key: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOn:
    """A flow run that is to be created: the deployment that it is of, and what makes it ours.

    Attributes:
        not_before: When it is to start, in seconds since the Unix epoch; None for at once.
    """

    chain: str
    ordinal: int
    idempotency_key: str
    deployment_id: str
    parameters: dict[str, Any]
    run_name: str
    tags: tuple[str, ...]
    job_variables: dict[str, Any] = field(default_factory=dict)
    work_queue: str | None = None
    not_before: float | None = None
    flow_run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """How a session ends: all of it is one transaction.

    Attributes:
        forecasts: The state of the forecasts, by resource; None leaves what is there.
    """

    state: SessionState
    stop: StopReason
    graceful: bool
    chain_status: ChainStatus
    limits: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    follow_on: FollowOn | None = None
    forecasts: dict[str, Any] | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why an item is not taken.

    Attributes:
        patient: Whether it will fit by itself, later: then it is passed over in a few sessions at most.
    """

    why: str
    patient: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim.

    Attributes:
        item: The item; None if there is none that fits.
        passed_over: Why others were not taken, by id; the first of them.
        others: How many more were not taken.
        contended: Whether one was not taken only because others have reserved what they may give back.
    """

    item: Item | None
    passed_over: dict[str, str] = field(default_factory=dict)
    others: int = 0
    contended: bool = False


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a unit reserves of a pool before it spends.

    Attributes:
        limit: One with a pool.
        amount: In the resource's unit, all that the unit may spend.
    """

    limit: Limit
    amount: float


def _reserves_nothing(_item: Item) -> list[Reserve]:
    return []


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What a unit that the ledger has recorded cost, and what had been said of it."""

    expectation: Expectation
    usage: dict[str, float]
    finished: bool


class Ledger(Protocol):
    """The ledger database. Each method is one transaction; those that take a fence raise `Fenced` when it is old.

    Each raises `LedgerUnavailable` when the database is away, and may then be called again in the same way: what it has
    done already is not done twice.
    """

    def open_session(self, request: SessionRequest) -> Opened:
        """Owns the chain, making it first where it is new; gives back the claims of a dead session.

        Raises:
            Superseded: somebody else works on the chain, or this run's session is over.
        """

    def heartbeat(self, fence: Fence) -> None:
        """Moves the lease on."""

    def lease_seconds(self) -> float:
        """How long a lease lasts without a heartbeat."""

    def now(self) -> float:
        """The time by which leases run out, in seconds since the Unix epoch; not always this machine's."""

    def add_items(self, chain: str, items: Iterable[WorkItem], *, planned_by: Fence | None = None) -> int:
        """Adds the items that are new, all or none; returns how many.

        Args:
            planned_by: The session whose `plan()` these are; the chain counts as planned from then on.

        Raises:
            InvalidInput: an unknown kind, an id that is there with another kind or payload, a missing dependency, a
                cycle, an estimate larger than a whole budget.
            UnknownChain: there is no such chain.
        """

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = _reserves_nothing,
    ) -> Claim:
        """Claims the first available item that fits, of the first thousand: by priority, fewest failures, then age.

        An item that would fit later is passed over in three sessions; then nothing behind it is taken any more, so that
        what it needs can become free.

        Args:
            misfit: Says of an item why it does not fit, or None.
            reserves: Says what its unit reserves of pools; an item whose reservation is refused is not taken.
        """

    def extend(self, fence: Fence, item: Item, reserves: Sequence[Reserve]) -> str | None:
        """Brings what a running unit has reserved to these amounts, all or none; why not, or None."""

    def pool_spends(self, limit: Limit, since: float) -> list[Spend]:
        """What everybody has spent of a limit's pool after a moment, in order."""

    def commit_unit(
        self, fence: Fence, item: Item, outcome: Outcome, result_key: str, spent: Mapping[str, float]
    ) -> None:
        """Finishes a unit: the item's status, its result's key, usage, context, dependents and added items.

        Args:
            spent: The session's usage up to and with this unit.
        """

    def fail_unit(
        self, fence: Fence, item: Item, error: str, usage: Mapping[str, float], spent: Mapping[str, float]
    ) -> ItemStatus:
        """Counts a failed attempt with what it spent; returns what became of the item: available or discarded."""

    def cut_off(
        self, fence: Fence, item: Item, why: str, usage: Mapping[str, float], spent: Mapping[str, float], *, fresh: bool
    ) -> ItemStatus:
        """Gives back an item whose unit had no room to finish, with what it spent; no attempt is counted.

        Args:
            fresh: Whether the unit had a whole session's room. The second time in a row, the item is discarded.
        """

    def release(self, fence: Fence, item: Item) -> None:
        """Gives back an item whose unit was interrupted; no attempt is counted."""

    def resumed(self, fence: Fence, resume_seconds: float, verified: tuple[int, int] | None) -> None:
        """Records what it took to resume."""

    def record_document(self, fence: Fence, document: Document) -> None:
        """Points at a document that has been written and read back."""

    def forget_checkpoints(self, fence: Fence, keep: int) -> list[str]:
        """Points at the latest `keep` checkpoints only; returns the keys of those that it forgot."""

    def close_session(self, fence: Fence, closing: Closing) -> None:
        """Ends the session, sets the chain's status and records the follow-on; synced to disk."""

    def spends(self, chain: str, resource: str, since: float) -> list[Spend]:
        """What a chain has spent of a resource after a moment, in order."""

    def forecasts(self, chain: str) -> tuple[dict[str, Any], int]:
        """The saved forecasts by resource, and the session that saved them; 0 if there are none."""

    def forecasts_of(self, agent: str) -> dict[str, Any]:
        """The saved forecasts of the latest chain of an agent."""

    def unit_costs(self, chain: str, after: int) -> list[UnitCost]:
        """What the latest units of the sessions after that one cost, the oldest first."""

    def first_units(self, chain: str) -> dict[int, dict[str, float]]:
        """What the first unit that each session finished used, by the session's ordinal; only of those with one."""

    def waiting_follow_ons(self) -> list[FollowOn]:
        """Follow-ons that were created to start later, of chains that wait for that moment."""

    def follow_on_moved(self, follow_on: FollowOn, not_before: float) -> None:
        """Records that a follow-on starts at another moment."""

    def pending_follow_ons(self, chain: str | None = None) -> list[FollowOn]:
        """Follow-ons that are recorded and not yet created."""

    def follow_on_created(self, follow_on: FollowOn, flow_run_id: str) -> None:
        """Ticks a follow-on off."""

    def declare_dead(self, chain: str, host: str, pid: int) -> bool:
        """Ends the lease of a session whose process is known to be dead; whether there was one."""

    def chain(self, name: str) -> Chain:
        """A chain's row. Raises `UnknownChain`."""

    def chains(self) -> list[Chain]:
        """All chains, the latest first."""

    def sessions(self, chain: str) -> list[SessionRecord]:
        """A chain's sessions in order."""

    def documents(self, chain: str, kind: Literal["checkpoint", "handoff"]) -> list[Document]:
        """A chain's documents of one kind, the latest first."""

    def counts(self, chain: str) -> dict[ItemStatus, int]:
        """How many items have each status."""

    def items(self, chain: str, status: ItemStatus | None = None, limit: int = 100) -> list[Item]:
        """Items in the order in which they would be claimed."""

    def retry_items(self, chain: str, ids: Sequence[str]) -> int:
        """Gives discarded items another try; returns how many."""

    def discard_items(self, chain: str, ids: Sequence[str], reason: str) -> int:
        """Gives items up that are blocked or available; returns how many."""


class Documents(Protocol):
    """The results storage, for documents."""

    def write(self, key: str, text: str) -> None:
        """Writes a new document and reads it back. Raises `StorageError`."""

    def read(self, key: str) -> str:
        """Reads a document. Raises `StorageError`."""

    def delete(self, key: str) -> None:
        """Deletes a document, where the storage can. Raises `StorageError`."""


class UnitRunner(Protocol):
    """Runs one unit of the agent and persists its outcome under a key."""

    def run(self, key: str, unit: Unit) -> Outcome:
        """The unit's outcome; one that is persisted already is returned, and the agent is not asked again.

        Raises:
            UnitRaised: the agent's code raised, or returned what is no outcome.
            StorageError: the outcome could not be persisted.
        """


class UnitRaised(Exception):
    """The agent's code raised; the cause is what it raised."""


class Runs(Protocol):
    """Where follow-on runs are created."""

    def create(self, follow_on: FollowOn) -> str:
        """Creates the flow run, or finds the one with this idempotency key; returns its id.

        Raises:
            RunsUnavailable: the API cannot be reached now.
        """

    def move(self, flow_run_id: str, at: float) -> None:
        """Lets a flow run that has not started yet start at that moment, in seconds since the Unix epoch."""


class SavedWork(Protocol):
    """What is done with an agent's files at the end of a session: best effort, all of it."""

    def backup(self, key: str, text: str) -> None:
        """Copies a document to a second storage, where there is one."""

    def commit(self, paths: Sequence[Any], message: str) -> str | None:
        """Commits these paths to their repository; the commit's id, or None where nothing had changed."""

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        """Shows the handoff where people look."""
