"""`perpetual orchestrate`: several agents on one queue, each session in a fresh process on this machine."""

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import Annotated, Self

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from perpetual_blocks.cli.launcher import Child, Launcher, SessionFailed, make_launcher, on_signals
from perpetual_blocks.cli.output import INTERRUPTED, NOT_FINISHED, OK, Json, Where, err, out, print_json
from perpetual_blocks.cli.render import report_view
from perpetual_blocks.cli.run import LOOK_AGAIN_SECONDS, new_name
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.session.agents import spent
from perpetual_blocks.session.chain import ChainStatus, check_chain_name
from perpetual_blocks.session.follow_on import ready_at
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.orchestration import Bounds
from perpetual_blocks.session.orchestrator import Orchestrator, Part, Report
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import Selector

HERE = Where()

LOOK_SECONDS = 1.0
SHARE_OF_TIME = 0.1
"""How much of the time is spent looking, at most: where that takes long, it is done less often."""
LONGEST_PAUSE_SECONDS = 10.0


def orchestrate(
    entrypoint: str,
    *,
    agents: str = "1-4",
    agent: Annotated[list[str] | None, Parameter(negative="")] = None,
    param: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Run several agents of a perpetual flow on one queue, on this machine, until all of it is done.

    The chain that --param chain=NAME names owns the queue; NAME-2, NAME-3 and so on work on it, too. Ctrl-C wraps all
    sessions; the same command goes on. flows/orchestrator.py does the same with a deployment's runs.

    Example: perpetual orchestrate flows/doc_miner.py:mine_docs --agents 4 --param chain=docs

    Args:
        entrypoint: path/to/file.py:name of a flow made by as_flow().
        agents: How many: a number, or the least and the most of them, as 1-8; then as many as bring something.
        agent: One more for a part of the queue, as NAME=TAKES, where TAKES is ids, beginnings of ids as part/*, and
            kind:NAME, with commas between them; may be given several times.
        param: A parameter of the flow, as name=value; may be given several times.
        json: Print how all agents stand in the end as one JSON object.
    """
    from perpetual_blocks.adapters.process import session_alive
    from perpetual_blocks.cli.entrypoint import load_perpetual_flow, parse_parameters

    bounds, parts = Bounds.parse(agents), [_part(text) for text in agent or []]
    flow = load_perpetual_flow(entrypoint)
    parameters = parse_parameters(flow, param or [])
    queue = check_chain_name(parameters.pop("chain", None) or new_name(flow.name))
    ledger = where.get_store(flow.store).get_ledger()
    _check_queue(ledger, queue)
    clock = SystemClock()
    supervisor = Supervisor(ledger, None, clock, session_alive)
    orchestrator = Orchestrator(ledger, queue, bounds, clock, supervisor, parts)
    with ExitStack() as stack:
        view = stack.enter_context(_View(err, quiet=json))
        launcher = make_launcher(flow, entrypoint, parameters, ledger, where, stack, view.note, to_file=True)
        interrupted, report = _Crew(ledger, orchestrator, launcher, view).run()
    print_json(report.to_json()) if json else out.print(report_view(report))
    if interrupted:
        err.print(f"stopped; go on with --param chain={queue}", highlight=False)
        return INTERRUPTED
    return OK if report.finished else NOT_FINISHED


def _part(text: str) -> Part:
    name, separator, takes = text.partition("=")
    if not (name and separator and takes):
        raise InvalidInput.of("--agent", text, "NAME=TAKES, as miner-1=json.*,kind:review")
    return Part(name, Selector.parse(takes.split(",")))


def _check_queue(ledger: Ledger, queue: str) -> None:
    with suppress(UnknownChain):
        chain = ledger.chain(queue)
        if not chain.owns_queue:
            raise InvalidInput.of("chain", queue, f"one with a queue of its own; it works on that of {chain.queue}")
        if chain.status in (ChainStatus.PAUSED, ChainStatus.CANCELLED):
            why = chain.wanted_why or chain.reason
            raise InvalidInput.of("chain", queue, f"one that may go on; this one is {chain.status} ({why})")


@dataclass(frozen=True, slots=True)
class _Process:
    """The process of a chain's next session.

    Attributes:
        before: The chain's latest session when it was started.
        ahead: Whether that session was at work then: it waits at the fence for its end, and may not be needed.
    """

    child: Child
    before: int
    ahead: bool = False


@dataclass(slots=True)
class _Crew:
    """The processes of a queue's agents on this machine.

    Of each chain there is one at most, and one more, which takes its place, when its end is near.
    """

    ledger: Ledger
    orchestrator: Orchestrator
    launcher: Launcher
    view: "_View"
    _children: dict[str, _Process] = field(default_factory=dict)
    _ahead: dict[str, _Process] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _started: set[str] = field(default_factory=set)
    _asked_at: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[bool, Report]:
        """Starts sessions until nobody goes on; whether it was interrupted, and how all stand.

        Raises:
            SessionFailed: no agent's process comes to begin its session.
        """
        asked = Event()
        with on_signals(asked.set):
            while True:
                if asked.is_set():
                    return True, self._wrap()
                self._reap()
                began = time.monotonic()
                report = self.orchestrator.look(self._children)
                seconds = time.monotonic() - began
                self.view.show(report)
                if not self._children and self._is_over(report):
                    return False, report
                self._start_due(report)
                self._start_ahead(report)
                asked.wait(min(LONGEST_PAUSE_SECONDS, max(LOOK_SECONDS, seconds / SHARE_OF_TIME)))

    def _is_over(self, report: Report) -> bool:
        if report.over:
            return True
        if self._failed and set(report.due) == self._failed.keys() and not report.at_work:
            name, words = next(iter(self._failed.items()))
            raise SessionFailed(f"{name}: its process ended before its session began: {words}")
        return False

    def _reap(self) -> None:
        for name, process in list(self._children.items()):
            child = process.child
            if child.poll() is None:
                continue
            del self._children[name]
            if (successor := self._ahead.pop(name, None)) is not None:
                self._children[name] = successor
            chain = self.ledger.chain(name)
            if chain.ordinal == process.before and chain.status is ChainStatus.WAITING:
                if process.ahead:
                    continue  # it was not needed
                self._failed[name] = self.launcher.last_words(name)
                self.view.note(f"{name}: its process ended before its session began: {self._failed[name]}")
            elif chain.status is ChainStatus.RUNNING:
                # The process is dead and its session open: nobody needs to wait for the lease to run out.
                for deed in self.orchestrator.look_after(name):
                    self.view.note(f"{name}: {deed.why} (exit code {child.returncode})")

    def _start_due(self, report: Report) -> None:
        for name in report.due:
            if name in self._children or name in self._failed or not self._is_time(name):
                continue
            chain = self.ledger.chain(name)
            self._children[name] = _Process(self.launcher.start(name, follows=name in self._started), chain.ordinal)
            self._started.add(name)

    def _start_ahead(self, report: Report) -> None:
        for name, ordinal in report.near_end.items():
            process = self._children.get(name)
            # One that waits for this very session takes its place when the process before is gone.
            if process is not None and process.before == ordinal - 1 and name not in self._ahead:
                self._ahead[name] = _Process(self.launcher.start(name, follows=True), ordinal, ahead=True)

    def _is_time(self, name: str) -> bool:
        """Whether a chain that waits may go on: it is its time, or there is work for it before that."""
        resume_at, now = self.ledger.chain(name).resume_at, time.time()
        if resume_at is None or resume_at <= now:
            return True
        if now - self._asked_at.get(name, 0.0) < LOOK_AGAIN_SECONDS:
            return False
        self._asked_at[name] = now
        ready = ready_at(self.ledger, name, SystemClock())
        return ready is not None and ready <= now

    def _wrap(self) -> Report:
        """Asks all sessions to end, and waits until they have."""
        processes = [*self._ahead.values(), *self._children.values()]
        for process in processes:
            process.child.terminate()
        for process in processes:
            process.child.wait()
        while self._children:
            self._reap()
        return self.orchestrator.tell()


class _View:
    """Shows how all agents stand on standard error: a live table in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        draws = console.is_terminal and not quiet
        self._live = Live(console=console, refresh_per_second=4, transient=True) if draws else None
        self._said: dict[str, object] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Says what happens beside the work."""
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def show(self, report: Report) -> None:
        """Shows a report; without a terminal, what is new in it."""
        if self._live is not None:
            self._live.update(report_view(report))
            return
        self._say("agents", report.decision.agents, f"{report.decision.agents} agents: {report.decision.why}")
        for agent in report.agents:
            doing = f"{agent.chain}: {agent.state}, session {agent.sessions}"
            self._say(agent.chain, (agent.state.partition(" ")[0], agent.sessions), doing)
        for deed in report.deeds:
            self.note(f"{deed.chain}: {deed.why} ({deed.what})")
        total, done = sum(report.items.values()), report.items_done
        if total:
            used = spent(report.usage) or "nothing spent"
            said = f"{done:,} of {total:,} items done, {report.per_minute:,.1f} units a minute, {used}"
            self._say("tenth", done * 10 // total, said)

    def _say(self, what: str, value: object, text: str) -> None:
        if self._said.get(what) != value:
            self._said[what] = value
            self.note(text)
