"""`perpetual demo`: the doc-miner, in a chain of runs of a deployment that is served here."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.panel import Panel

from perpetual_blocks.cli.demos.application import DemoFailed, flow_file
from perpetual_blocks.cli.follow import Follower
from perpetual_blocks.cli.output import INTERRUPTED, Where, err, exit_code_of, out, print_json
from perpetual_blocks.cli.render import chain_view
from perpetual_blocks.session.ledger import Ledger

FLOW = "doc_miner.py"
DEPLOYMENT = "mine-docs/doc-miner"
POLL_SECONDS = "1"
MOST_SECONDS = 900.0


def mine_docs(chain: str, folder: Path, where: Where, *, json: bool) -> int:
    """Mines Python's standard library into a knowledge base, in a chain of flow runs that hand over to each other.

    Starts a local Prefect server if none is configured, serves the deployment, triggers a run through the API, and
    shows what happens until the chain is finished.

    Args:
        folder: Where the knowledge base and the handoffs go.
        json: Print the chain's status as one JSON object, and nothing else.
    """
    from perpetual_blocks.adapters.local_server import configured_server, local_server
    from perpetual_blocks.session.status import chain_status

    store = where.get_store()
    ledger = store.get_ledger()
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(ledger, chain, err, quiet=json))
        address = configured_server()
        started_here = address is None
        if address is None:
            follower.note("starting a local Prefect server (the first time takes a little longer)")
            address = stack.enter_context(local_server())
        os.environ["PREFECT_API_URL"] = address
        follower.note("serving the deployment " + DEPLOYMENT)
        stack.enter_context(_served(folder / "serve.log"))
        stack.enter_context(_settings_for(address))
        _trigger(chain, folder / "knowledge", where.store)
        try:
            status = _follow(follower)
        except KeyboardInterrupt:
            err.print(f"stopped; `perpetual status {chain}` shows how far it came", highlight=False)
            return INTERRUPTED
        _write_handoffs(ledger, store.result_storage, chain, folder)
        status = chain_status(ledger, chain)
        if json:
            print_json(status)
        else:
            follower.close()
            out.print(chain_view(status))
            out.print(_where_to_look(folder, chain, address, started_here=started_here))
            _hold_server(address, started_here=started_here)
    return exit_code_of(status)


@contextmanager
def _served(log: Path) -> Iterator[None]:
    """Serves the deployment from a process of its own."""
    from perpetual_blocks.adapters.local_server import stop

    script = flow_file(FLOW)
    environment = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": POLL_SECONDS}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=script.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_until_served(process, log)
        yield
    finally:
        stop(process, seconds=40)


def _wait_until_served(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if "being served" in text:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    last = log.read_text(errors="replace").strip().splitlines()[-3:] or ["no output"]
    raise DemoFailed(f"serve: {FLOW} did not start: {' | '.join(last)} (see {log})")


@contextmanager
def _settings_for(address: str) -> Iterator[None]:
    """Prefect reads its settings once; this makes them say what the environment says now."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address}):
        yield


def _trigger(chain: str, knowledge: Path, store: str | None) -> UUID:
    from prefect.client.orchestration import get_client

    from perpetual_blocks.blocks.loading import load_store
    from perpetual_blocks.session.follow_on import chain_tag, run_name

    parameters: dict[str, Any] = {"chain": chain, "knowledge": str(knowledge)}
    if store:
        parameters["store"] = {"$ref": {"block_document_id": str(load_store(store)._block_document_id)}}
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=parameters, name=run_name(chain, 1), tags=[chain_tag(chain)]
        )
    return run.id


def _follow(follower: Follower) -> dict[str, Any]:
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        status = follower.look()
        if status is not None and status["status"] not in ("running", "waiting"):
            return status
        time.sleep(0.25)
    raise DemoFailed(f"demo: the chain did not end within {MOST_SECONDS:g} s; `perpetual status` shows how far it came")


def _write_handoffs(ledger: Ledger, result_storage: str, chain: str, folder: Path) -> None:
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage

    documents = StoredDocuments(load_storage(result_storage))
    (folder / "handoffs").mkdir(exist_ok=True)
    for document in ledger.documents(chain, "handoff"):
        (folder / "handoffs" / f"session-{document.ordinal}.md").write_text(documents.read(document.key))


def _where_to_look(folder: Path, chain: str, address: str, *, started_here: bool) -> Panel:
    ui = address.removesuffix("/api")
    shown = os.path.relpath(folder)
    lines = [
        f"knowledge base  {shown}/knowledge/index.md",
        f"handoffs        {shown}/handoffs/",
        f"runs            {ui}/v2/runs?tags=chain:{chain}",
        f"again           perpetual status {chain}",
    ]
    if started_here and not sys.stdin.isatty():
        lines.append("the server stops with this command; `prefect server start` shows these runs again")
    return Panel("\n".join(lines), title="where to look", title_align="left", expand=False)


def _hold_server(address: str, *, started_here: bool) -> None:
    """A person may want to look around before the server that was started for the demo goes away."""
    if not (started_here and sys.stdin.isatty() and out.is_terminal):
        return
    out.print(f"The Prefect UI stays at {address.removesuffix('/api')} until you press Enter.", highlight=False)
    try:
        sys.stdin.readline()
    except KeyboardInterrupt:
        out.print()
