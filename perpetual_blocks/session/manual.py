"""A session by hand: for agents in other languages, which say themselves what they did.

The same ledger, fence and shutdown as everywhere; only the loop is somebody else's. The chain has one item, the task;
each checkpoint is a unit of it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perpetual_blocks.budget import BudgetMonitor, Verdict
from perpetual_blocks.budget.stopping import Status
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.chain import ChainStatus, CodePolicy, SessionRecord, SessionRequest, StopReason
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.ledger import Fence, Finished
from perpetual_blocks.session.ports import Units
from perpetual_blocks.session.shutdown import Shutdown
from perpetual_blocks.session.world import World
from perpetual_blocks.work import Item, ItemStatus, Outcome, WorkItem

TASK = "task"


def encode_token(fence: Fence) -> str:
    """The session as one word, for a shell variable."""
    return f"{fence.chain}:{fence.ordinal}:{fence.epoch}:{fence.holder}"


def decode_token(token: str) -> Fence:
    """The session that `encode_token` wrote down.

    Raises:
        InvalidInput: it is not such a word.
    """
    chain, *rest = token.split(":", 3)
    if len(rest) != 3 or not (rest[0].isdigit() and rest[1].isdigit()):
        raise InvalidInput.of("--session", token, "the word that `perpetual session start` printed")
    return Fence(chain, int(rest[0]), int(rest[1]), rest[2])


@dataclass(frozen=True, slots=True)
class Progress:
    """What a checkpoint of a session by hand says.

    Attributes:
        usage: What the *session* has used so far, by resource: saying it twice changes nothing.
    """

    usage: dict[str, float]
    done: bool = False
    progress: tuple[float, float] | None = None
    cursor: Any = None
    next_action: str | None = None
    context: dict[str, Any] | None = None


class ManualSession:
    """A session whose work is done elsewhere."""

    def __init__(self, world: World, fence: Fence) -> None:
        self._world = world
        self._ledger = world.ledger
        self.fence = fence

    @classmethod
    def start(cls, world: World, request: SessionRequest, task: str) -> "ManualSession":
        """Owns the chain, and claims its task.

        Raises:
            Superseded: another session works on the chain.
            InvalidInput: the task is done already, or the chain is another agent's.
        """
        with suppress(UnknownChain):
            chain = world.ledger.chain(request.chain)
            if chain.status is ChainStatus.FINISHED and chain.agent == request.agent:
                raise InvalidInput.of("chain", request.chain, "a chain whose task is not done yet; name another one")
        opened = world.ledger.open_session(replace(request, settings={**request.settings, "kinds": [TASK]}))
        session = cls(world, opened.fence)
        item = WorkItem(id=TASK, kind=TASK, payload={"task": task})
        if not opened.chain.planned and not world.ledger.items(request.chain):
            world.ledger.add_items(request.chain, [item], planned_by=opened.fence)
        world.ledger.resumed(opened.fence, 0.0, None)
        return session

    def checkpoint(self, said: Progress) -> Verdict:
        """Commits what was said as a finished unit; whether to go on.

        Raises:
            Fenced: another session has taken over.
            InvalidInput: less usage than was said before, or the task is done already.
        """
        item, record = self._claim(), self._record()
        spent = {**record.usage, **said.usage}
        for name, before in record.usage.items():
            if spent[name] < before:
                self._ledger.release(self.fence, [item], begun=False)
                raise InvalidInput.of(
                    f"--{name}", spent[name], f"the session's total, at least the {before:g} said before"
                )
        outcome = Outcome(
            done=said.done,
            cursor=said.cursor if said.cursor is not None else item.cursor,
            progress=said.progress or item.progress,
            next_action=said.next_action or item.next_action,
            usage={name: amount - record.usage.get(name, 0.0) for name, amount in spent.items()},
        )
        self._ledger.commit_units(self.fence, [Finished(item, outcome, "")], spent, context=said.context)
        return self._monitor().verdict()

    def wrap(self, task: str, commit: Iterable[Path] = (), *, push: bool = False) -> Ending:
        """Ends the session in order: checkpoint document, backup, git, handoff, closed.

        Args:
            commit: The files and folders whose changes are to be committed.
            push: Whether that commit is pushed.

        Raises:
            Fenced: another session has taken over.
        """
        monitor = self._monitor()
        verdict = monitor.verdict()
        reason = StopReason("asked", "the agent asked to wrap")
        if verdict.status is Status.WRAP_NOW and verdict.reading is not None:
            reason = StopReason(f"budget:{verdict.reading.limit.resource}", verdict.reason)
        return Shutdown(
            agent=_Hooks(tuple(commit), push),
            world=self._world,
            fence=self.fence,
            uid=self._ledger.chain(self.fence.chain).uid,
            task=task,
            monitor=monitor,
            resumed=(),
            follow_on=None,
        ).run(reason)

    def left_off(self) -> dict[str, Any]:
        """Where whoever goes on begins, as JSON: the task, and what the latest checkpoint said of it."""
        [item] = self._ledger.items(self.fence.chain, limit=1)
        return {
            "task": self.task(),
            "progress": list(item.progress) if item.progress else None,
            "cursor": item.cursor,
            "next_action": item.next_action,
            "context": self._ledger.chain(self.fence.chain).context,
        }

    def task(self) -> str:
        """What the chain is for, as its first session said."""
        items = self._ledger.items(self.fence.chain)
        return str(items[0].payload.get("task", "")) if items else ""

    def _claim(self) -> Item:
        claimed = self._ledger.items(self.fence.chain, ItemStatus.CLAIMED, 1)
        item = claimed[0] if claimed else self._ledger.claim(self.fence, lambda item: None).item
        if item is None:
            raise InvalidInput.of("chain", self.fence.chain, "a chain whose task is not done; start another one")
        return item

    def _record(self) -> SessionRecord:
        return next(s for s in self._ledger.sessions(self.fence.chain) if s.ordinal == self.fence.ordinal)

    def _monitor(self) -> BudgetMonitor:
        record, clock = self._record(), self._world.clock
        chain = self._ledger.chain(self.fence.chain)
        budget = chain.budget
        account = budget_record(self._ledger, chain, budget, clock.now(), before=self.fence.ordinal)
        elapsed = self._ledger.now() - record.started_at  # both by the ledger's clock
        monitor = BudgetMonitor(budget, clock, self._world.meters, account, elapsed=elapsed)
        monitor.record(record.usage)
        return monitor


@dataclass(frozen=True, slots=True)
class _Hooks:
    """The hooks of an agent that has none."""

    commit: tuple[Path, ...]
    push_commits: bool
    ladder: Mapping[float, str] = field(default_factory=dict)
    context_version: int = 1
    on_code_change: CodePolicy = "warn"

    def take_over(self, read_handoff: Callable[[], str | None]) -> None: ...

    def merge_context(self, key: str, current: Any, before: Any, after: Any) -> Any:
        return after

    def on_context_upgrade(self, context: dict[str, Any], from_version: int) -> dict[str, Any]:
        return context

    def plan(self) -> Iterable[WorkItem]:
        return ()

    def finish_unit(self) -> None: ...

    def backup(self, checkpoint: str) -> None: ...

    def commit_changes(self) -> Iterable[Path]:
        return self.commit

    def create_handoff(self, handoff: Handoff) -> Handoff:
        return handoff

    def cleanup(self) -> None: ...

    def cut_off_in(self) -> frozenset[str]:
        return frozenset()

    def drain_spent(self) -> dict[str, float]:
        return {}


class NoUnits:
    """The unit runner of a session by hand: there are no units to run."""

    def run(self, units: Units) -> None:
        raise InvalidInput(f"{units.label}: a session by hand runs no units")

    def find(self, units: Units) -> None:
        raise InvalidInput(f"{units.label}: a session by hand runs no units")

    def interrupt(self) -> bool:
        return False
