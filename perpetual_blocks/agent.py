"""The template of an agent: subclass it, say what there is to do and how to do one unit of it."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from perpetual_blocks.budget import Budget, Meter
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.handoff import Handoff
from perpetual_blocks.session.chain import CodePolicy
from perpetual_blocks.usage import add, validated_usage
from perpetual_blocks.work import Unit, WorkItem

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

    from perpetual_blocks.blocks import ResourceBudget, StatePersistence
    from perpetual_blocks.flow import PerpetualFlow
    from perpetual_blocks.session.manners import Manners


class PerpetualAgent(BaseModel):
    """A program that works through a queue in small units, and survives the end of each of its runs.

    Its pydantic fields are the flow's parameters and the form in Prefect's UI; its docstring says to people, and to the
    next agent, what it is for. `plan` and `work_unit` are what a subclass writes; every other hook has a default.

    A unit may be tried again when its process dies, so `work_unit` should do no harm when it is run twice: write files
    whole and under the same name, and keep what must happen once in what it returns.
    """

    model_config = ConfigDict(extra="forbid")

    _spent: dict[str, float] = PrivateAttr(default_factory=dict)
    _read_handoff: Callable[[], str | None] | None = PrivateAttr(default=None)

    kinds: ClassVar[tuple[str, ...]] = ("default",)
    """The kinds of work items that the agent knows; items of one kind cost about the same."""

    cancellable: ClassVar[tuple[str, ...]] = ()
    """Resources of which a unit never uses more than `unit.remaining` says, because it caps what it asks for or asks
    `unit.reserve` first. Budgets are then used to the end. Async and isolated units are always cut off when their time
    is up; a sync unit that is not isolated cannot be, and asks `unit.should_wrap()`."""

    ladder: ClassVar[Mapping[float, str]] = {0.7: "careful"}
    """Names for shares of the budget that are used: `unit.rung` is the name of the highest one reached. An agent may
    have smaller batches or a cheaper model from a rung on."""

    meters: ClassVar[Mapping[str, Meter]] = {}
    """What reads the levels of gauges, by resource: of your own, which `define_resource` makes known, or in place of
    ours. A meter has `level()` and `capacity()`, and is read several times a second while a unit runs."""

    isolated: ClassVar[bool] = False
    """Whether each unit runs in a fresh process, about a second's work to start. It is ended when its time is up, and
    its death, for want of memory say, is one failed attempt. In there, `self` has its fields and nothing that other
    units left in it, there is no Prefect run, and what is reserved of a pool cannot become more. The agent's module is
    imported anew, so that a script runs its flow under `if __name__ == "__main__":`."""

    context_version: ClassVar[int] = 1
    """Goes up by one when what `unit.context` holds changes its form: `on_context_upgrade` then makes the new form of
    the old one in chains that are under way, and code of before does not touch them any more."""

    on_code_change: ClassVar[CodePolicy] = "warn"
    """What a session does when the agent's source, or its deployment's version, is another than the session before had:
    say so and go on; refuse, so that the chain is paused until a person resumes it; or go on without a word."""

    push_commits: ClassVar[bool] = False
    """Whether the commits of what `commit_changes` names are pushed, as `git push` would. A push that fails is said in
    the handoff; the next one makes up for it."""

    @property
    def handoff(self) -> str | None:
        """The handoff of the session before, as Markdown with its secrets masked: a prompt may begin with it.

        None in a chain's first session, and where the document cannot be read. An isolated unit, and one on a task
        runner's worker, has an agent that was made anew there, and none: what such units need of it belongs into
        `unit.context`."""
        return self._read_handoff() if self._read_handoff is not None else None

    def take_over(self, read_handoff: Callable[[], str | None]) -> None:
        """Called when a session begins, with what reads the handoff of the session before."""
        self._read_handoff = read_handoff

    def plan(self) -> Iterable[WorkItem]:
        """Yields the work. Asked once for a chain, and again when a finished chain is started again; items that the
        queue has already are left as they are. Items can also be added from a unit, or by `perpetual items add`."""
        return ()

    def work_unit(self, unit: Unit) -> Any:
        """Does one unit, sync or async, in a thread that is not the main thread.

        Returns:
            A result that is JSON when the item is done; `unit.advance(…)` when it takes more units.
        """
        raise NotImplementedError(f"{type(self).__name__}.work_unit")

    def finish_unit(self) -> None:
        """First step of the shutdown: no unit runs any more; flush what units have left in memory."""

    def backup(self, checkpoint: str) -> None:
        """Third step: copies what the agent wants copied. The checkpoint (JSON) itself is copied by the store."""

    def commit_changes(self) -> Iterable[Path]:
        """Fourth step: names the files and folders whose changes are to be committed to their git repository.

        Also asked when a session begins whose predecessor was killed: what that one had not committed of them is set
        aside on the branch `perpetual/<chain>/<session>`, and the files are left as they are."""
        return ()

    def create_handoff(self, handoff: Handoff) -> Handoff:
        """Fifth step: may add to `handoff.notes`, or change what it says."""
        return handoff

    def cleanup(self) -> None:
        """Last step: the session is closed; frees what the agent holds."""

    def merge_context(self, key: str, current: Any, before: Any, after: Any) -> Any:
        """What a key of the context becomes that two units have changed, which ran at the same time.

        Args:
            current: Its value as the unit left it that was committed first; None where there is none.
            before: Its value when the other unit began.
            after: Its value as the other unit left it. It is what the key becomes, unless you say otherwise: of a sum,
                `current + after - before`.
        """
        return after

    def on_context_upgrade(self, context: dict[str, Any], from_version: int) -> dict[str, Any]:
        """Makes a context of this version of one of an older version; called before a session's first unit."""
        raise InvalidInput.of(
            f"{type(self).__name__}.on_context_upgrade",
            "none",
            f"a method that makes context_version {self.context_version} of a context of version {from_version}",
        )

    def spend(self, usage: Any = None, /, **amounts: float) -> None:
        """Records what a hook of the shutdown has spent, as `unit.spend` does in a unit: an LLM's words in the handoff.
        The next sessions keep as much free for it."""
        self._spent = add(self._spent, validated_usage({**(usage or {}), **amounts}, "agent.spend"))

    @classmethod
    def cut_off_in(cls) -> frozenset[str]:
        """The resources that a unit cannot overrun: it is cut off before."""
        in_time = cls.isolated or inspect.iscoroutinefunction(cls.work_unit)
        return frozenset((*cls.cancellable, "seconds") if in_time else cls.cancellable)

    def drain_spent(self) -> dict[str, float]:
        """What hooks have spent since this was last asked."""
        spent, self._spent = self._spent, {}
        return spent

    @classmethod
    def task(cls) -> str:
        """What the agent is for: its docstring, each paragraph and each entry of a list in one line."""
        return _joined(inspect.getdoc(cls) or cls.__name__)

    @classmethod
    def as_flow(
        cls,
        name: str | None = None,
        budget: "Budget | ResourceBudget | str | None" = None,
        store: "StatePersistence | str | None" = None,
        manners: "Manners | None" = None,
        concurrency: int = 1,
        task_runner: "TaskRunner[Any] | None" = None,
    ) -> "PerpetualFlow":
        """An ordinary Prefect flow of this agent. Give it to a module's variable, so that it can be deployed.

        Args:
            name: The flow's name; the class's name in kebab case if not given.
            budget: What each session may use, unless the run names a block: a budget, or a block or its name.
            store: Where state is kept, unless the run names a block: a block or its name. By default an SQLite file in
                Prefect's home and Prefect's default results storage.
            manners: How far a chain may go by itself, unless the run names a budget that says so; as far as there is
                work if not given.
            concurrency: How many units run at once at most, each in a thread, or all as coroutines of one event loop.
                It is lowered while a service answers that there are too many calls, or most units fail. Units that
                run at once each have a copy of the context; `merge_context` says what becomes of a key that several
                of them change.
            task_runner: Where units run, as `prefect_dask.DaskTaskRunner()` or `prefect_ray.RayTaskRunner()`; in the
                session's own process if not given. Its workers import the agent anew, and get its fields as JSON.

        Raises:
            InvalidInput: a field of the agent has a name that the flow needs for itself or is a secret, a meter is of
                no gauge, the budget limits a gauge that nobody reads, or an agent whose units run in other processes
                cannot be imported there.
        """
        from perpetual_blocks.flow import make_flow

        # As namedtuple does: the module that makes the flow is the one that it can be imported from.
        module = sys._getframe(1).f_globals.get("__name__", cls.__module__)
        return make_flow(cls, name, budget, store, manners, concurrency, task_runner, module)


_WHOLE = re.compile(r"\s{4}|\s*(#|>|\||```)")
"""A line that is joined with no other: code, a heading, a quotation, a row of a table."""

_ENTRY = re.compile(r"\s*([-*+•]|\d+[.)])\s")
"""The first line of an entry of a list."""


def _joined(text: str) -> str:
    """The text without the line breaks within its paragraphs: where it is shown, lines are as long as there is room."""
    lines, fenced = [""], False
    for line in text.splitlines():
        apart = fenced or not line.strip() or _WHOLE.match(line) or _ENTRY.match(line)
        if apart or not lines[-1] or _WHOLE.match(lines[-1]):
            lines.append(line.rstrip())
        else:
            lines[-1] += f" {line.strip()}"
        fenced ^= line.lstrip().startswith("```")
    return "\n".join(lines[1:])
