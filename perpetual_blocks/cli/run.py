"""`perpetual run`: a whole chain without a deployment, each session in a fresh process."""

import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from subprocess import TimeoutExpired
from threading import Event
from typing import Annotated, Any

from cyclopts import Parameter

from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.launcher import Child, Launcher, SessionFailed, dismiss, make_launcher, on_signals
from perpetual_blocks.cli.output import (
    INTERRUPTED,
    Json,
    Where,
    err,
    exit_code_of,
    out,
    print_json,
)
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import InvalidInput, Superseded, UnknownChain
from perpetual_blocks.session.chain import check_chain_name
from perpetual_blocks.session.follow_on import ready_at
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.status import chain_status
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import Selector

HERE = Where()

LOOK_AGAIN_SECONDS = 5.0
"""How often a chain that waits looks whether it can go on earlier: a pool's others may use less, or items are added."""

GOES_ON = ("running", "waiting")


def run(
    entrypoint: str,
    *,
    param: Annotated[list[str] | None, Parameter(negative="")] = None,
    queue: str | None = None,
    take: Annotated[list[str] | None, Parameter(negative="")] = None,
    once: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Run a perpetual flow on this machine until its chain ends.

    Starts each session in a fresh process, and a local Prefect server if none is configured. Ctrl-C wraps the session;
    the same command with --param chain=NAME goes on.

    Example: perpetual run flows/doc_miner.py:mine_docs --param knowledge=out --param chain=docs

    Args:
        entrypoint: path/to/file.py:name of a flow made by as_flow().
        param: A parameter of the flow, as name=value; may be given several times. chain=NAME names the chain; a block,
            as a secret, is given by its name.
        queue: The chain on whose queue it works, beside that one; another machine's agents, say.
        take: What it takes of that queue: an item's id, a beginning of ids as part/*, or kind:NAME; may be given
            several times. Everything if not given.
        once: One session, on a machine that ends: whoever starts the next machine, as Slurm does, starts the next one.
        json: Print the chain's status as one JSON object.
    """
    from perpetual_blocks.cli.entrypoint import load_perpetual_flow, parse_parameters

    flow = load_perpetual_flow(entrypoint)
    parameters = parse_parameters(flow, param or [])
    chain = check_chain_name(parameters.pop("chain", None) or new_name(queue or flow.name))
    ledger = where.get_store(flow.store).get_ledger()
    if queue is not None:
        ledger.add_chain(chain, queue=queue, selector=Selector.parse(take or []))
    elif take:
        raise InvalidInput.of("--take", ", ".join(take), "a part of a queue, which --queue names")
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(ledger, chain, err, quiet=json))
        # Where a live view is drawn, or nothing is to be seen, the session's log goes to a file.
        to_file = follower.draws or follower.quiet
        launcher = make_launcher(flow, entrypoint, parameters, ledger, where, stack, follower.note, to_file=to_file)
        sessions = _Sessions(ledger, chain, launcher, follower)
        interrupted = sessions.run_all(once=once)
    status = chain_status(ledger, chain)
    print_json(status) if json else out.print(chain_view(status))
    if interrupted:
        err.print(f"stopped; go on with --param chain={chain}", highlight=False)
        return INTERRUPTED
    return exit_code_of(status)


def new_name(flow_name: str) -> str:
    """A name for a new chain."""
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in flow_name.lower()).strip("-")[:40]
    return f"{slug}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The sessions of one chain, each in a child process."""

    ledger: Ledger
    chain: str
    launcher: Launcher
    follower: Follower

    def run_all(self, *, once: bool) -> bool:
        """Starts sessions until the chain ends, or one; whether it was interrupted.

        Raises:
            InvalidInput: somebody holds the chain.
        """
        self._check_free()
        child, spare = self.launcher.start(self.chain, follows=False), False
        while True:
            ahead, interrupted = self._attend(child, once=once)
            try:
                status = self._end_of(child, ahead, spare=spare)
            except BaseException:
                dismiss(ahead)
                raise
            if once or interrupted or status["status"] not in GOES_ON:
                dismiss(ahead)
                return interrupted
            if status["resume_at"] is not None or (ahead is not None and ahead.poll() is not None):
                dismiss(ahead)
                ahead = None
            if ahead is None and self._wait():
                return True
            child, spare = ahead or self.launcher.start(self.chain, follows=True), ahead is not None

    def _end_of(self, child: Child, ahead: Child | None, *, spare: bool) -> dict[str, Any]:
        """The chain's status, now that a session's process has ended.

        Args:
            spare: Whether it was started ahead, and need not have become a session.

        Raises:
            SessionFailed: it never was a session.
            Superseded: somebody else works on the chain.
        """
        from perpetual_blocks.adapters.process import session_alive

        status = self.follower.look()
        latest = _latest(status)
        at_work = latest["pid"] if latest and latest["state"] == "Running" else None
        if latest and at_work not in (None, child.pid, ahead.pid if ahead is not None else None):
            raise Superseded(f"{self.chain} is at work elsewhere: process {at_work} on {latest['host']}")
        was_one = status and any(session["pid"] == child.pid for session in status["sessions"])
        if not (status and latest and (was_one or spare)):
            raise SessionFailed(f"session: its process ended before it began: {self.launcher.last_words(self.chain)}")
        if at_work == child.pid:
            # The process is dead and its session open: nobody needs to wait for the lease to run out.
            self.follower.note(f"session {latest['ordinal']} died (exit code {child.returncode})")
            Supervisor(self.ledger, None, SystemClock(), session_alive).look_at(self.chain)
            status = self.follower.look() or status
        return status

    def _check_free(self) -> None:
        with suppress(UnknownChain):
            chain = self.ledger.chain(self.chain)
            if chain.status in ("paused", "cancelled"):
                why = chain.wanted_why or chain.reason
                raise InvalidInput.of(
                    "chain", chain.name, f"one that may go on; this one is {chain.status} ({why}): `perpetual resume`"
                )

    def _attend(self, child: Child, *, once: bool) -> tuple[Child | None, bool]:
        """Waits until a session's process has ended; the one that was started ahead of that end, where there is one,
        and whether it was interrupted."""
        interrupted, ahead = False, None

        def forward() -> None:  # the session wraps at SIGTERM
            nonlocal interrupted
            interrupted = True
            for process in filter(None, (child, ahead)):
                process.terminate()

        with on_signals(forward):
            while True:
                try:
                    child.wait(timeout=0.25)
                    return ahead, interrupted
                except TimeoutExpired:
                    latest = _latest(self.follower.look())
                ends = latest and latest["pid"] == child.pid and latest["state"] == "Running" and latest["ends_at"]
                if ends and ahead is None and not (once or interrupted):
                    ahead = self.launcher.start(self.chain, follows=True)

    def _wait(self) -> bool:
        """Waits until the next session may begin: for its quota, or after a failure; whether it was interrupted."""
        chain = self.ledger.chain(self.chain)
        resume_at = chain.resume_at
        if resume_at is None or resume_at <= time.time():
            return False
        when = datetime.fromtimestamp(resume_at).astimezone()
        self.follower.note(f"waits until {when:%d %b %H:%M:%S %Z}, or for work before that: {chain.reason}")
        asked = Event()
        with on_signals(asked.set):
            while (left := resume_at - time.time()) > 0:
                if asked.wait(min(left, LOOK_AGAIN_SECONDS)):
                    return True
                self.follower.look()
                sooner = ready_at(self.ledger, self.chain, SystemClock())
                resume_at = min(resume_at, sooner) if sooner is not None else resume_at
        return False


def _latest(status: dict[str, Any] | None) -> dict[str, Any] | None:
    return status["sessions"][-1] if status and status["sessions"] else None
