"""What the core needs of the ledger: its protocol, and the values that go to it and come from it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from perpetual_blocks.budget import Expectation, Limit, Spend
from perpetual_blocks.session.approval import Approval
from perpetual_blocks.session.attempts import Story
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    SessionRecord,
    SessionRequest,
    SessionState,
    StopReason,
    Wanted,
)
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.work import EVERYTHING, Item, ItemStatus, Outcome, Selector, WorkItem


@dataclass(frozen=True, slots=True)
class Fence:
    """What a session shows with each commit: the database refuses it when the chain has a newer epoch.

    Attributes:
        queue: The chain whose items the session works on; its own if none is given.
    """

    chain: str
    ordinal: int
    epoch: int
    holder: str
    queue: str = ""

    def __post_init__(self) -> None:
        if not self.queue:
            object.__setattr__(self, "queue", self.chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session that owns its chain.

    Attributes:
        chain: The chain as it is now.
        queue: The chain whose items it works on: the same one, usually. Its name and uid are in the outcomes' keys, so
            that what one chain of a queue has persisted is found by another.
        previous: The session before, as it ended.
        took_over: Whether that session was found dead.
        code_changed: What is to be said of code that changed since that session.
        gap: Seconds since the chain could go on, where nothing but its follow-on was waited for.
    """

    fence: Fence
    chain: Chain
    queue: Chain
    previous: SessionRecord | None
    took_over: bool
    code_changed: str | None = None
    gap: float | None = None


DocumentKind = Literal["checkpoint", "handoff", "backup"]


@dataclass(frozen=True, slots=True)
class Document:
    """A document in the results storage, or in the backup storage, as the ledger knows it.

    Attributes:
        kind: checkpoint or handoff; or backup, for the index of a chain's backup.
        digest: SHA-256 of its bytes.
        size: In bytes.
        pinned: Whether it is kept however many newer ones there are.
        at: When the ledger recorded it.
    """

    kind: DocumentKind
    ordinal: int
    key: str
    digest: str
    size: int
    pinned: bool = field(default=False, compare=False)
    at: float = field(default=0.0, compare=False)


Row = tuple[str, Mapping[str, Any]]
"""A table's name, and the values of one of its rows by column."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where a backup has a chain; the next segment begins there.

    Attributes:
        ordinal: The latest session, which was about to end.
        position: The last item's.
        at: When the rows were read, in seconds since the Unix epoch.
    """

    ordinal: int
    position: int
    at: float


@dataclass(frozen=True, slots=True)
class Export:
    """Rows of one chain as they were at one moment.

    Attributes:
        rows: They are read while they are asked for.
    """

    uid: str
    mark: Mark
    rows: Iterator[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOn:
    """A flow run that is to be created: the deployment that it is of, and what makes it ours.

    Attributes:
        not_before: When it is to start, in seconds since the Unix epoch; None for at once.
        waits_until: Until when its process is known to wait at the fence, where it was created ahead and has come.
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
    waits_until: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a run that waits at the fence looks at: while this stays the same, so does the answer that it was given.

    Attributes:
        key: The idempotency key of the run that is to be the next session, where one is recorded.
        lapsed: Whether the lease of the session at work has run out.
    """

    status: ChainStatus
    ordinal: int
    epoch: int
    wanted: Wanted | None
    key: str | None
    lapsed: bool = field(compare=False)


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
        never: Why it fits into no session at all; then it is given up, after it was passed over in a few.
    """

    why: str
    patient: bool = True
    never: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim.

    Attributes:
        items: The items, in the queue's order; none if none fits.
        token: Names the claim, and the batch that becomes of it.
        passed_over: Why others were not taken, by id; the first of them.
        others: How many more were not taken.
        contended: Whether one was not taken only because others have reserved what they may give back.
        retry_at: When the first of those that are left alone after a failed attempt may be claimed; None if there are
            none, or an item was claimed.
        discarded: What was given up because it fits into no session, while others do: why, by id.
        elsewhere: Whether, where no item was claimed, other chains of the queue have what may come back, or lead to
            more.
    """

    items: tuple[Item, ...]
    token: str = field(compare=False)
    passed_over: dict[str, str] = field(default_factory=dict)
    others: int = 0
    contended: bool = False
    retry_at: float | None = None
    discarded: dict[str, str] = field(default_factory=dict)
    elsewhere: bool = False

    @property
    def item(self) -> Item | None:
        """The first item."""
        return self.items[0] if self.items else None


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that came to an outcome.

    Attributes:
        item: As it was claimed.
        result_key: Where the outcome lies: a document's key; of a batch's document with `#` and the place in it.
    """

    item: Item
    outcome: Outcome
    result_key: str


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


def _no_more(_last: Item, _item: Item) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What a unit that the ledger has recorded cost, and what had been said of it."""

    expectation: Expectation
    usage: dict[str, float]
    finished: bool


@dataclass(frozen=True, slots=True)
class KindCount:
    """The items of one kind: how many have each status, and how many units were finished of them."""

    kind: str
    items: dict[ItemStatus, int]
    units: int


class Ledger(Protocol):
    """The ledger database. Each method is one transaction; those that take a fence raise `Fenced` when it is old.

    Each raises `LedgerUnavailable` when the database is away, and may then be called again in the same way: what it has
    done already is not done twice.
    """

    def open_session(self, request: SessionRequest) -> Opened:
        """Owns the chain, making it first where it is new; gives back the claims of a dead session.

        Raises:
            Ahead: the session before is at work, and this run was created to be the next.
            Superseded: somebody else works on the chain, this run's session is over or not needed, or its code changed
                and the agent does not go on with other code: the chain is then paused.
            InvalidInput: the chain is another agent's, or its context is newer than the agent.
        """

    def announce(self, fence: Fence, ends_at: float, follow_on: FollowOn | None) -> bool:
        """Records when the session will probably end, and its follow-on, ahead of that end; the closing keeps it where
        the chain then goes on at once. False where a person wants the chain to stop; nothing is recorded then."""

    def turn(self, chain: str) -> Turn:
        """How a chain stands for who waits at its fence; cheap. Raises `UnknownChain`."""

    def wait_at_fence(self, chain: str, key: str, seconds: float) -> None:
        """Records that the run with this key waits at the fence, and will for so long without saying so again."""

    def heartbeat(self, fence: Fence) -> None:
        """Moves the lease on."""

    def lease_seconds(self) -> float:
        """How long a lease lasts without a heartbeat."""

    def now(self) -> float:
        """The time by which leases run out, in seconds since the Unix epoch; not always this machine's."""

    def add_chain(
        self,
        name: str,
        *,
        queue: str | None = None,
        selector: Selector = EVERYTHING,
        template: dict[str, Any] | None = None,
    ) -> Chain:
        """Makes a chain ahead of its first session; one that is there gets the selector, from its next session on.

        Args:
            queue: The chain whose items it is to work on; its own if none is given.
            template: What its first run is made of, as a session's row has it: that run is recorded as follow-ons are.
                None where whoever calls starts it.

        Raises:
            UnknownChain: there is no such queue.
            InvalidInput: the name is none, the queue belongs to another chain, or the chain works on another queue.
        """

    def wake(self, chain: str) -> bool:
        """Lets a chain go on that rests, that was over and has work again, or that waits for no certain time; whether
        it goes on. Its next run is recorded, where its latest session had a template."""

    def finish(self, chain: str) -> bool:
        """Ends a chain that waits, or rests, where its queue has no more for it; whether it did."""

    def add_items(self, chain: str, items: Iterable[WorkItem], *, planned_by: Fence | None = None) -> int:
        """Adds the items that are new, all or none; returns how many.

        Args:
            planned_by: The session whose `plan()` these are; the chain counts as planned from then on.

        Raises:
            InvalidInput: the chain works on another one's queue, an unknown kind, an id that is there with another kind
                or payload, a missing dependency, a cycle, an estimate larger than a whole budget.
            UnknownChain: there is no such chain.
        """

    def claim(
        self,
        fence: Fence,
        misfit: Callable[[Item], Misfit | None],
        reserves: Callable[[Item], list[Reserve]] = _reserves_nothing,
        more: Callable[[Item, Item], bool] = _no_more,
        *,
        expected: int = 1,
    ) -> Claim:
        """Claims the first available item that fits, of the first thousand that the chain takes: by priority, fewest
        failures, then age. With it those that follow, as many as are wanted for one batch, up to the first that does
        not fit. What another chain of the queue is just claiming is not waited for.

        One that has failed is left alone for a while. An item that would fit later is passed over in three sessions;
        then nothing behind it is taken any more, so that what it needs can become free. One that fits into no session
        is then discarded, once another is taken in its place: where nothing fits, it is the budget that is wrong.

        Args:
            misfit: Says of an item why it does not fit, or None.
            reserves: Says what its unit reserves of pools; an item whose reservation is refused is not taken.
            more: Given the last item that was taken and the one behind it, whether this one is wanted too.
            expected: How many will probably be taken: so many are read at once.
        """

    def claim_begun(self, fence: Fence) -> Claim:
        """Claims all items whose next unit was begun and then given back, whether or not it is their turn."""

    def extend(self, fence: Fence, item: Item, reserves: Sequence[Reserve]) -> str | None:
        """Brings what a running unit has reserved to these amounts, all or none; why not, or None."""

    def pool_spends(self, limit: Limit, since: float) -> list[Spend]:
        """What everybody has spent of a limit's pool after a moment, in order."""

    def pool_level(self, limit: Limit) -> tuple[float, float]:
        """What is used and what is reserved of a limit's pool now, in the resource's unit; cheap, and locks nothing."""

    def commit_units(
        self,
        fence: Fence,
        finished: Sequence[Finished],
        spent: Mapping[str, float],
        *,
        context: Mapping[str, Any] | None = None,
        unbegun: Sequence[Item] = (),
    ) -> None:
        """Finishes the units of a batch: items' statuses, results' keys, usage, context, dependents and added items.

        Args:
            spent: The session's usage up to and with these units.
            context: The agent's new context; None where it is as it was.
            unbegun: Items of the batch whose units have not begun: they become what they were before.
        """

    def fail_unit(
        self, fence: Fence, item: Item, error: str, usage: Mapping[str, float], spent: Mapping[str, float]
    ) -> ItemStatus:
        """Counts a failed attempt with what it spent, and leaves the item alone for a while; returns what became of it.

        It is discarded, and not available again, when its attempts are used up, or have together used more than a whole
        session may.
        """

    def cut_off(
        self, fence: Fence, item: Item, why: str, usage: Mapping[str, float], spent: Mapping[str, float], *, fresh: bool
    ) -> ItemStatus:
        """Gives back an item whose unit had no room to finish, with what it spent; no attempt is counted.

        Args:
            fresh: Whether the unit had a whole session's room. The second time in a row, the item is discarded.
        """

    def release(self, fence: Fence, items: Sequence[Item], *, begun: bool) -> None:
        """Gives back claimed items; no attempt is counted.

        Args:
            begun: Whether their units may have begun: an outcome may then still be found where they were to leave it.
        """

    def resumed(self, fence: Fence, resume_seconds: float, verified: tuple[int, int] | None) -> None:
        """Records what it took to resume."""

    def record_document(self, fence: Fence, document: Document) -> None:
        """Points at a document that has been written and read back; of kind backup, instead of the one before."""

    def forget_checkpoints(self, fence: Fence, keep: int) -> list[str]:
        """Forgets all checkpoints but the pinned ones and the latest `keep`, at least one; returns their keys."""

    def pin_checkpoint(self, chain: str, ordinal: int, *, pinned: bool) -> bool:
        """Pins the checkpoint of a session, so that it is never forgotten, or unpins it; whether there is one."""

    def upgrade_context(self, fence: Fence, context: dict[str, Any], version: int) -> None:
        """Sets the chain's context in a newer version."""

    def close_session(self, fence: Fence, closing: Closing) -> None:
        """Ends the session, sets the chain's status and records the follow-on; synced to disk.

        A follow-on that was announced is kept if it may begin now; else its run is not invited any more.
        """

    def spends(self, chain: str, resource: str, since: float) -> list[Spend]:
        """What a chain has spent of a resource after a moment, in order."""

    def forecasts(self, chain: str) -> tuple[dict[str, Any], int]:
        """The saved forecasts by resource, and the session that saved them; 0 if there are none."""

    def forecasts_of(self, agent: str) -> dict[str, Any]:
        """The saved forecasts of the latest chain of an agent."""

    def unit_costs(self, chain: str, after: int) -> list[UnitCost]:
        """What the latest units of the sessions after that one cost, the oldest first."""

    def waiting_follow_ons(self) -> list[FollowOn]:
        """Follow-ons that were created to start later, of chains that wait for that moment."""

    def follow_on_moved(self, follow_on: FollowOn, not_before: float) -> None:
        """Records that a follow-on starts at another moment."""

    def pending_follow_ons(self, chain: str | None = None) -> list[FollowOn]:
        """Follow-ons that are recorded and not yet created, of chains that wait for them."""

    def follow_on_created(self, follow_on: FollowOn, flow_run_id: str) -> None:
        """Ticks a follow-on off."""

    def declare_dead(self, chain: str, ordinal: int) -> bool:
        """Ends the lease of a session whose process is known to be dead; whether it was at work."""

    def rescue(
        self, chain: str, ordinal: int, why: str, decide: Callable[[Chain, Sequence[SessionRecord]], Ending]
    ) -> Ending | None:
        """Buries a session whose lease has ended, gives back what it held, and records what follows: all in one.

        Args:
            decide: What becomes of the chain, given its sessions with the buried one last. A follow-on is recorded
                where it goes on and the session had a template.

        Returns:
            What was decided; None where the session is not at work any more, or its lease has not ended.
        """

    def follow_on(self, chain: str, ordinal: int) -> tuple[FollowOn, float | None, int] | None:
        """The follow-on that is to be that session, when its run was created, and how often it was renewed."""

    def renew_follow_on(self, follow_on: FollowOn, why: str, not_before: float | None) -> bool:
        """Lets a follow-on be created again, as another run, if the chain still waits for it, or will when its session
        has ended; after five times a chain that waits is Stalled instead."""

    def hold(self, chain: str, ordinal: int, status: ChainStatus, reason: str) -> bool:
        """Sets the status of a chain that waits after that session; whether it did."""

    def add_document(self, chain: str, document: Document) -> bool:
        """Points at a document of a session that has ended, if it has none of that kind; whether it had none."""

    def chain_of_run(self, flow_run_id: str) -> str | None:
        """The chain that a flow run is, or was to be, a session of."""

    def wanted(self, chain: str) -> tuple[Wanted, str] | None:
        """What a person wants of a chain, and why."""

    def want(self, chain: str, wanted: Wanted, why: str) -> FollowOn | None:
        """Records what a person wants: a session at work stops for it, and a chain that waits is held at once.

        Returns:
            A follow-on whose run was created already, and is not to start.

        Raises:
            UnknownChain: there is no such chain.
            InvalidInput: the chain has ended.
        """

    def resume(self, chain: str) -> Chain:
        """Lets a chain go on, whatever held it; its follow-on is recorded.

        Raises:
            UnknownChain: there is no such chain.
            InvalidInput: it goes on as it is, or is finished.
        """

    def ask(self, chain: str, ordinal: int, until: float) -> bool:
        """Records that a run asks a person about the total that is gone, and until when; False where there is nothing
        to ask any more: that session is not the latest, the chain is not exhausted, or somebody has decided."""

    def approve(self, chain: str, approval: Approval) -> Chain:
        """Records what was decided about a chain whose total is gone; where it goes on, its follow-on too. Of two
        decisions at the same moment one counts.

        Raises:
            UnknownChain: there is no such chain.
            InvalidInput: it is not exhausted any more, others have decided or gone on, or the amounts are none that it
                may have.
        """

    def stop_all(self, why: str) -> list[FollowOn]:
        """Holds every chain, and lets none start; returns the follow-ons whose runs are not to start."""

    def resume_all(self) -> list[str]:
        """Takes `stop_all` back; returns the names of the chains that go on."""

    def all_stopped(self) -> str | None:
        """Why all chains are stopped; None if they are not."""

    def chain(self, name: str) -> Chain:
        """A chain's row. Raises `UnknownChain`."""

    def chains(self, queue: str | None = None) -> list[Chain]:
        """All chains, or those that work on a queue, the latest first."""

    def sessions(self, chain: str) -> list[SessionRecord]:
        """A chain's sessions in order."""

    def documents(self, chain: str, kind: DocumentKind) -> list[Document]:
        """A chain's documents of one kind, the latest first."""

    def counts(self, chain: str, *, taken: bool = False) -> dict[ItemStatus, int]:
        """How many items of the chain's queue have each status; with `taken`, of those that the chain takes."""

    def kinds(self, chain: str) -> list[KindCount]:
        """The kinds of the items of the chain's queue, by name; looks at each item."""

    def has_more_than(self, chain: str, count: int) -> bool:
        """Whether more than so many items that the chain takes are available, claimed or blocked."""

    def start_ups(self, chain: str) -> list[float]:
        """How long the latest follow-ons took from their creation to the fence, in seconds."""

    def is_elsewhere(self, chain: str) -> bool:
        """Whether other chains of the queue have what may come back, or lead to more for this one."""

    def items(
        self, chain: str, status: ItemStatus | None = None, limit: int = 100, *, taken: bool = False
    ) -> list[Item]:
        """Items of the chain's queue, or those that it takes, in the order in which they would be claimed."""

    def story(self, chain: str, item: str) -> Story:
        """An item with its attempts that came to nothing. Raises `UnknownChain` for an item that is not there too."""

    def retry_items(self, chain: str, ids: Sequence[str]) -> int:
        """Gives items another try, at once and afresh, that are discarded or left alone; returns how many."""

    def discard_items(self, chain: str, ids: Sequence[str], reason: str) -> int:
        """Gives items up that are blocked or available; returns how many."""

    def has_chain(self, chain: str) -> bool:
        """Whether there is a chain of this name."""

    def export(self, chain: str, after: Mark | None) -> AbstractContextManager[Export]:
        """A snapshot of the chain's rows that changed after a mark; of all of them for None. Locks nothing.

        Raises:
            UnknownChain: there is no such chain.
        """

    def rebuild(self, chain: str, segments: Iterable[Iterable[Row]], reason: str) -> None:
        """Adds the chain that segments, the newest first, have the rows of; it is paused with that reason.

        Raises:
            InvalidInput: there is such a chain.
            DamagedDocument: the rows are not of tables and columns that this version knows.
        """
