"""`perpetual run`: a whole chain without a deployment, each session in a fresh process."""

import json as jsonlib
import os
import secrets
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Parameter

from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.output import (
    INTERRUPTED,
    NOT_FINISHED,
    OK,
    SUPERSEDED,
    Json,
    Where,
    err,
    out,
    print_json,
)
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.errors import PerpetualError, UnknownChain
from perpetual_blocks.session.ports import Ledger
from perpetual_blocks.session.status import chain_status

HERE = Where()

MOST_CRASHES = 3
"""So many sessions in a row may die without finishing a unit; a chain that crashes at once would never end."""

GOES_ON = ("running", "waiting")


class SessionFailed(PerpetualError):
    """The process of a session ended before it could open one."""


def run(
    entrypoint: str,
    *,
    param: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Run a perpetual flow on this machine until its chain ends.

    Starts each session in a fresh process, and a local Prefect server if none is configured. Ctrl-C wraps the session;
    the same command with --param chain=NAME goes on.

    Example: perpetual run flows/doc_miner.py:mine_docs --param knowledge=out --param chain=docs

    Args:
        entrypoint: path/to/file.py:name of a flow made by as_flow().
        param: A parameter of the flow, as name=value; may be given several times. chain=NAME names the chain.
        json: Print the chain's status as one JSON object.
    """
    from perpetual_blocks.adapters.local_server import configured_server, local_server
    from perpetual_blocks.cli.entrypoint import load_perpetual_flow, parse_parameters
    from perpetual_blocks.session.chain import check_chain_name

    flow = load_perpetual_flow(entrypoint)
    parameters = parse_parameters(flow, param or [])
    chain = check_chain_name(parameters.setdefault("chain", _new_name(flow.name)))
    ledger = where.get_store(flow.store).get_ledger()
    command = [sys.executable, "-m", "perpetual_blocks.cli.one_session", entrypoint, jsonlib.dumps(parameters)]
    command += [where.store] if where.store else []
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(ledger, chain, err, quiet=json))
        environment = dict(os.environ)
        if configured_server() is None:
            follower.note("starting a local Prefect server")
            environment["PREFECT_API_URL"] = stack.enter_context(local_server())
        interrupted = _run_sessions(ledger, chain, command, environment, follower)
    status = chain_status(ledger, chain)
    print_json(status) if json else out.print(chain_view(status))
    if interrupted:
        err.print(f"stopped; go on with --param chain={chain}", highlight=False)
        return INTERRUPTED
    return OK if status["status"] == "finished" else NOT_FINISHED


def _new_name(flow_name: str) -> str:
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in flow_name.lower()).strip("-")[:40]
    return f"{slug}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"


def _run_sessions(
    ledger: Ledger, chain: str, command: list[str], environment: dict[str, str], follower: Follower
) -> bool:
    """Starts sessions until the chain ends; whether it was interrupted."""
    _bury_the_dead(ledger, chain)
    crashes = 0
    while True:
        before = _progress(ledger, chain)
        child, interrupted = _run_session(command, environment, follower)
        status = follower.look()
        if status is None:
            raise SessionFailed(f"session: its process ended with code {child.returncode} before it opened {chain}")
        latest = status["sessions"][-1]
        if latest["state"] == "Running" and latest["pid"] != child.pid:
            err.print(f"{chain} is at work elsewhere: {ledger.chain(chain).reason}", highlight=False)
            raise SystemExit(SUPERSEDED)
        if latest["state"] == "Running":
            # The process is dead and its session open: nobody needs to wait for the lease to run out.
            ledger.declare_dead(chain, latest["host"], child.pid)
            crashes = crashes + 1 if _progress(ledger, chain) == before else 0
            follower.note(f"session {latest['ordinal']} died (exit code {child.returncode})")
        else:
            crashes = 0
        if interrupted or status["status"] not in GOES_ON or crashes >= MOST_CRASHES:
            return interrupted


def _run_session(
    command: list[str], environment: dict[str, str], follower: Follower
) -> "tuple[subprocess.Popen[bytes], bool]":
    # Its logs go to standard error, and not at all while a live view is drawn there.
    quiet = follower.draws or follower.quiet
    child = subprocess.Popen(
        command,
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL if quiet else None,
        env=environment,
        start_new_session=True,
    )
    interrupted = False

    def forward(number: int, _frame: Any) -> None:
        # The session wraps at SIGTERM; it has its own process group, so that Ctrl-C reaches it through us alone.
        nonlocal interrupted
        interrupted = True
        child.terminate()

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            try:
                child.wait(timeout=0.25)
                return child, interrupted
            except subprocess.TimeoutExpired:
                follower.look()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _bury_the_dead(ledger: Ledger, chain: str) -> None:
    """A session of this machine whose process is gone need not be waited for."""
    from perpetual_blocks.adapters.process import is_alive

    try:
        sessions = ledger.sessions(ledger.chain(chain).name)
    except UnknownChain:
        return
    for session in sessions[-1:]:
        if session.state == "Running" and is_alive(session.host, session.pid, session.process_started) is False:
            ledger.declare_dead(chain, session.host, session.pid)


def _progress(ledger: Ledger, chain: str) -> int:
    return sum(session.units for session in ledger.sessions(chain))
