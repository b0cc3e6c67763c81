"""Sessions as child processes on this machine: how one is started, told what it is to do, and heard of afterwards."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpetual_blocks.cli.output import Where
from perpetual_blocks.errors import PerpetualError
from perpetual_blocks.session.chain import invitation
from perpetual_blocks.session.ledger import Ledger

if TYPE_CHECKING:
    from perpetual_blocks.flow import PerpetualFlow

Child = subprocess.Popen[bytes]

DISMISSED_SECONDS = 10.0
"""How long a process that was started ahead, and is not needed, may take to find that out."""


class SessionFailed(PerpetualError):
    """The process of a session ended before it could open one."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """Starts sessions of a flow's chains, each in a fresh process.

    Attributes:
        command: Begins the process; which session it is to be follows, and the name of its store.
        parameters: The flow's, but for the chain.
        to_file: Whether a session's log goes to a file; else to standard error.
    """

    ledger: Ledger
    command: list[str]
    store: str | None
    parameters: dict[str, Any]
    environment: dict[str, str]
    to_file: bool

    def start(self, chain: str, *, follows: bool) -> Child:
        """The process of a chain's next session.

        Args:
            follows: Whether it is a follow-on of the one before, and not one that a person has started.
        """
        from perpetual_blocks.flow_run import INVITATION, LAUNCHED

        invited = {INVITATION: self._invitation(chain)} if follows else {}
        ordinal = self.ledger.chain(chain).ordinal + 1 if self.ledger.has_chain(chain) else 1
        with self.log(chain).open("ab") if self.to_file else nullcontext(sys.stderr) as output:
            child = subprocess.Popen(
                [*self.command, str(ordinal), *([self.store] if self.store else [])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**self.environment, LAUNCHED: "1", **invited},
                # A process group of its own: Ctrl-C reaches it through us alone.
                start_new_session=True,
            )
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin as pipe:  # one that has died already is noticed by who waits
                pipe.write(json.dumps({**self.parameters, "chain": chain}).encode())
        return child

    def last_words(self, chain: str) -> str:
        """The last error in a chain's log, for a session that never was one."""
        log = self.log(chain)
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        errors = [line for line in lines if "Error: " in line] or lines
        return f"{errors[-1].strip()} (see {log})" if errors else "see above"

    def log(self, chain: str) -> Path:
        """Where the sessions of a chain write their logs."""
        from prefect.settings import get_current_settings

        folder = get_current_settings().home / "perpetual-logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{chain}.log"

    def _invitation(self, name: str) -> str:
        chain = self.ledger.chain(name)
        return invitation(chain.uid, chain.ordinal + 1)


def dismiss(ahead: Child | None) -> None:
    """Waits for the end of a process that was started ahead and is not needed: it ends by itself, or is ended."""
    if ahead is None:
        return
    try:
        ahead.wait(DISMISSED_SECONDS)
    except subprocess.TimeoutExpired:
        ahead.terminate()
        ahead.wait()


def make_launcher(
    flow: "PerpetualFlow",
    entrypoint: str,
    parameters: dict[str, Any],
    ledger: Ledger,
    where: Where,
    stack: ExitStack,
    note: Callable[[str], None],
    *,
    to_file: bool,
) -> Launcher:
    """A launcher, and a Prefect server for its sessions if none is configured, for as long as the stack is open.

    Args:
        note: Is told that a server is being started.

    Raises:
        InvalidInput: a parameter names a block that is not there.
        StorageError: the Prefect server cannot be asked for it.
    """
    from perpetual_blocks.adapters.local_server import configured_server, local_server
    from perpetual_blocks.cli.entrypoint import resolve_blocks

    environment = dict(os.environ)
    if configured_server() is None:
        note("starting a local Prefect server")
        environment["PREFECT_API_URL"] = stack.enter_context(local_server())
    with _server_of(environment):
        parameters = resolve_blocks(flow, parameters)
    command = [sys.executable, "-m", "perpetual_blocks.cli.one_session", entrypoint]
    return Launcher(ledger, command, where.store, parameters, environment, to_file)


@contextmanager
def _server_of(environment: Mapping[str, str]) -> Iterator[None]:
    """Lets this process talk to the server that the sessions talk to."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = environment.get("PREFECT_API_URL")
    with temporary_settings({PREFECT_API_URL: address}) if address else nullcontext():
        yield


@contextmanager
def on_signals(asked: Callable[[], None]) -> Iterator[None]:
    """Calls `asked` at SIGINT and SIGTERM, as long as the `with` block runs."""
    both = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: asked()) for number in both}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
