"""What a session works with: the agent, and everything outside."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from perpetual_blocks.budget import Meter
from perpetual_blocks.checkpoint import Signer
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import described
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import CodePolicy, SessionRecord
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.ports import Documents, Runs, SavedWork, UnitRunner
from perpetual_blocks.session.supervisor import Alive
from perpetual_blocks.session.watch import Look
from perpetual_blocks.telemetry import Moment, Observer
from perpetual_blocks.work import LlmUsage, WorkItem

_log = logging.getLogger(__name__)


def _not_known(_session: SessionRecord) -> None:
    return None


class Agent(Protocol):
    """What the session asks of the user's program; `PerpetualAgent` says what each hook is for."""

    @property
    def ladder(self) -> Mapping[float, str]: ...
    @property
    def context_version(self) -> int: ...
    @property
    def on_code_change(self) -> CodePolicy: ...
    @property
    def push_commits(self) -> bool: ...

    def take_over(self, read_handoff: Callable[[], str | None]) -> None: ...
    def merge_context(self, key: str, current: Any, before: Any, after: Any) -> Any: ...
    def on_context_upgrade(self, context: dict[str, Any], from_version: int) -> dict[str, Any]: ...
    def plan(self) -> Iterable[WorkItem]: ...
    def finish_unit(self) -> None: ...
    def backup(self, checkpoint: str) -> None: ...
    def commit_changes(self) -> Iterable[Path]: ...
    def create_handoff(self, handoff: Handoff) -> Handoff: ...
    def cleanup(self) -> None: ...
    def cut_off_in(self) -> frozenset[str]: ...
    def drain_spent(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside that a session works with.

    Attributes:
        backup: The second storage, which the ledger's rows are backed up to; None where there is none.
        keep_checkpoints: How many checkpoints of a chain are kept; the one before the last is there for when the last
            is damaged.
        watched: What else is asked every two seconds whether the session is to stop, by a name for its thread.
        signer: Signs checkpoints and checks their signatures; None where they have none.
        price: What a model's usage costs in US dollars; None where that is not known.
        redactor: Masks secrets in what is committed, shown or told as text.
        alive: Whether the process of a session lives.
    """

    ledger: Ledger
    documents: Documents
    runner: UnitRunner
    saved_work: SavedWork
    clock: Clock
    meters: dict[str, Meter] = field(default_factory=dict)
    runs: Runs | None = None
    observers: Sequence[Observer] = ()
    backup: Documents | None = None
    keep_checkpoints: int = 50
    watched: Mapping[str, Look] = field(default_factory=dict)
    signer: Signer | None = None
    price: Callable[[LlmUsage], float | None] | None = None
    redactor: Redactor = field(default_factory=Redactor)
    alive: Alive = _not_known

    def tell(self, moment: Moment) -> None:
        """Tells every observer. What one of them raises is logged and changes nothing: it has already happened."""
        for observer in self.observers:
            try:
                observer(moment)
            except Exception as error:  # noqa: BLE001 - observers are anybody's
                _log.warning("observer %r failed at %s: %s", observer, type(moment).__name__, described(error))
