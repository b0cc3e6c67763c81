"""What the core needs of the world outside but the ledger: one protocol for each seam.

`ledger` has the ledger's, and `adapters` the implementations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from perpetual_blocks.session.ledger import Finished, FollowOn
from perpetual_blocks.work import Item, Outcome, Unit


class Documents(Protocol):
    """The results storage, for documents."""

    def write(self, key: str, text: str) -> None:
        """Writes a new document and reads it back. Raises `StorageError`."""

    def read(self, key: str) -> str:
        """Reads a document. Raises `StorageError`."""

    def delete(self, key: str) -> None:
        """Deletes a document, where the storage can. Raises `StorageError`."""


class Units(Protocol):
    """Units that run one after the other, as their runner sees them; see `session.batch.Batch`."""

    @property
    def key(self) -> str:
        """Where their outcomes are to lie: of a single unit its outcome, else the document of a batch."""

    @property
    def single(self) -> bool:
        """Whether it is one unit, whose outcome is a document by itself."""

    @property
    def label(self) -> str:
        """What people see of it."""

    @property
    def finished(self) -> Sequence[Finished]:
        """What they came to so far."""

    @property
    def made(self) -> Sequence[Finished]:
        """Those of them that were not found: this is to be persisted."""

    def units(self) -> Iterator[Unit]:
        """The next unit, each time that one is asked for; the runner says what it came to before it asks again."""

    @property
    def item(self) -> Item:
        """The current unit's item, as it was claimed."""

    def earlier(self) -> Sequence[str]:
        """The keys under which an outcome of the current unit may lie already."""

    def finish(self, outcome: Outcome, kept_under: str | None = None) -> None:
        """The current unit came to this outcome, now, or before as what is kept under that result's key says."""

    def fail(self, error: BaseException) -> None:
        """The current unit raised, or its code returned what is no outcome."""


class UnitRunner(Protocol):
    """Runs the agent's units and persists their outcomes under a key. It may be asked in several threads at once."""

    def run(self, units: Units) -> None:
        """Runs them. An outcome that is persisted already is found, and the agent is not asked again.

        Raises:
            RunPaused: no unit may begin any more.
            StorageError: an outcome could not be persisted, or what is there already cannot be asked for.
        """

    def find(self, units: Units) -> None:
        """Tells them which of their outcomes are persisted already, and runs none.

        Raises:
            StorageError: what is there cannot be asked for.
        """

    def interrupt(self) -> bool:
        """Ends the units that run, from another thread; False where they are such that cannot be ended.

        What they raise then does not count as a failed attempt.
        """


class RunPaused(Exception):
    """The flow run was paused before the unit began; what is running is not asked to stop."""


class RunState(StrEnum):
    """How a flow run stands, as far as a chain needs to know."""

    SCHEDULED = "scheduled"  # nobody has taken it up yet
    STARTING = "starting"  # a worker has
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"  # or being cancelled: a person's word
    ENDED = "ended"
    BROKEN = "broken"  # failed or crashed
    GONE = "gone"  # deleted


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A flow run's state, and since when it is in it, in seconds since the Unix epoch."""

    state: RunState
    since: float


class Runs(Protocol):
    """Where follow-on runs are created, and looked after."""

    def create(self, follow_on: FollowOn) -> str:
        """Creates the flow run, or finds the one with this idempotency key; returns its id.

        Raises:
            RunsUnavailable: the API cannot be reached now.
        """

    def leaves_room(self, deployment_id: str) -> bool:
        """Whether another run of the deployment may start beside those that are at work."""

    def move(self, flow_run_id: str, at: float) -> None:
        """Lets a flow run that has not started yet start at that moment, in seconds since the Unix epoch."""

    def facts(self, flow_run_id: str) -> RunFacts:
        """How a flow run stands."""

    def cancel(self, flow_run_id: str, why: str) -> None:
        """Cancels a flow run that has not started yet; one that has is left as it is."""

    def end_suspended(self, flow_run_id: str, name: str, why: str) -> None:
        """Ends a suspended flow run as Completed, with this name; one that is in another state is left as it is."""

    def crashed(self, flow_run_id: str, why: str) -> None:
        """Says of a flow run that is not over that its process is dead."""


Refuse = Callable[[str, str], None]
"""Given a text and the name of its file: raises where it must not be committed."""


class SavedWork(Protocol):
    """What is done with an agent's files at the end of a session: best effort, all of it."""

    def backup(self, key: str, text: str) -> None:
        """Copies a document to a second storage, where there is one."""

    def commit(self, paths: Sequence[Any], message: str, refuse: Refuse | None) -> str | None:
        """Commits these paths to their repository; the commit's id, or None where nothing had changed."""

    def set_aside(self, paths: Sequence[Any], branch: str, message: str, refuse: Refuse | None) -> str | None:
        """Commits what has changed at these paths to a branch of its own, and leaves all else as it is; as `commit`."""

    def push(self, paths: Sequence[Any]) -> None:
        """Pushes the commits of these paths' repository."""

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        """Shows the handoff where people look; the description's beginning is what lists have of it."""
