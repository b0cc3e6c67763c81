"""`perpetual pause | resume | cancel | stop-all | supervise`: chains in a person's hands."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from perpetual_blocks.cli.output import NOT_FINISHED, OK, Json, Where, out, print_json
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import Wanted

if TYPE_CHECKING:
    from perpetual_blocks.adapters.database import SqlLedger
    from perpetual_blocks.adapters.prefect_runs import PrefectRuns
    from perpetual_blocks.session.ledger import FollowOn, Ledger

HERE = Where()

Why = Annotated[str, Parameter(name="--why", help="The reason, for whoever looks next.")]


def pause(chain: str, *, why: Why = "paused by a person", json: Json = False, where: Where = HERE) -> None:
    """Hold a chain: its session wraps within seconds of its unit's end, and nothing follows until `resume`.

    Example: perpetual pause research --why "the provider is down"

    Args:
        chain: The chain's name.
        json: Print a JSON object.
    """
    _want(chain, Wanted.PAUSE, why, json=json, where=where)


def cancel(chain: str, *, why: Why = "cancelled by a person", json: Json = False, where: Where = HERE) -> None:
    """End a chain: as pause, but for good. What is done stays; only `resume` makes it go on.

    Example: perpetual cancel research

    Args:
        chain: The chain's name.
        json: Print a JSON object.
    """
    _want(chain, Wanted.CANCEL, why, json=json, where=where)


def resume(
    chain: str | None = None,
    *,
    all: Annotated[bool, Parameter(name="--all", negative="")] = False,
    json: Json = False,
    where: Where = HERE,
) -> None:
    """Let a chain go on that was paused, cancelled, stalled or exhausted; with --all, take `stop-all` back.

    A chain with a deployment goes on by itself; for any other, run it again.

    Example: perpetual resume research

    Args:
        chain: The chain's name.
        all: Every chain that stop-all has stopped.
        json: Print a JSON object.
    """
    if (chain is None) == (not all):
        raise InvalidInput.of("resume", chain, "a chain's name, or --all, and not both")
    ledger = where.open_ledger()
    before = {name: _waiting_run(ledger, name) for name in ([chain] if chain is not None else [])}
    names = ledger.resume_all() if chain is None else [ledger.resume(chain).name]
    created = _create(ledger, before)
    if json:
        print_json({"resumed": names, "runs": created})
        return
    for name in names:
        out.print(f"{name} goes on" + ("" if name in created else ": start a run of it"), highlight=False)
    if not names:
        out.print("no chain was stopped by stop-all", highlight=False)


def stop_all(*, why: Why = "stopped by a person", json: Json = False, where: Where = HERE) -> None:
    """Hold every chain of the ledger, and let none start, until `resume --all`.

    Example: perpetual stop-all --why "the bill"

    Args:
        json: Print a JSON object.
    """
    ledger = where.open_ledger()
    scheduled = ledger.stop_all(why)
    for follow_on in scheduled:
        _cancel_run(follow_on, why)
    held = [chain.name for chain in ledger.chains() if chain.wanted is Wanted.STOP_ALL]
    if json:
        print_json({"stopped": held, "why": why})
    else:
        out.print(f"{len(held)} chains are held; `perpetual resume --all` lets them go on", highlight=False)


def supervise(
    *,
    once: Annotated[bool, Parameter(name="--once", negative="")] = False,
    every: float = 60.0,
    json: Json = False,
    where: Where = HERE,
) -> int:
    """Go on with chains whose process died, create follow-ons that are missing, and say what nobody takes up.

    Deploy flows/supervisor.py to have it done on a schedule. Exit code 1 if something could not be looked at.

    Example: perpetual supervise --once

    Args:
        once: Look once, and end.
        every: Seconds between two looks.
        json: Print a JSON array of what was done.
    """
    import time

    from perpetual_blocks.adapters.masking import redactor_for
    from perpetual_blocks.adapters.process import session_alive
    from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
    from perpetual_blocks.clock import SystemClock
    from perpetual_blocks.session.supervisor import Supervisor

    ledger = where.open_ledger()
    documents = StoredDocuments(load_storage(where.get_store().result_storage))
    supervisor = Supervisor(ledger, prefect_runs(), SystemClock(), session_alive, documents)
    while True:
        deeds = supervisor.look()
        if deeds:
            from perpetual_blocks.adapters.prefect_events import emit_deeds

            emit_deeds(deeds, redactor_for())
        if json:
            print_json([{"chain": deed.chain, "what": deed.what, "why": deed.why} for deed in deeds])
        elif deeds:
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for deed in deeds:
                table.add_row(deed.what, deed.chain, deed.why)
            out.print(table)
        elif once:
            out.print("every chain goes its way", highlight=False)
        if once:
            return NOT_FINISHED if any(deed.what == "failed" for deed in deeds) else OK
        time.sleep(every)


def _want(chain: str, wanted: Wanted, why: str, *, json: bool, where: Where) -> None:
    ledger = where.open_ledger()
    asks = ledger.chain(chain).asks_until is not None
    scheduled = ledger.want(chain, wanted, why)
    if asks and (runs := prefect_runs()) is not None and (waiting := _waiting_run(ledger, chain)) is not None:
        with suppress(Exception):
            runs.cancel(waiting, why)
    if scheduled is not None:
        _cancel_run(scheduled, why)
    status = ledger.chain(chain).status
    if json:
        print_json({"chain": chain, "wanted": wanted.value, "status": status.value})
    elif status.value == "running":
        out.print(f"{chain}: its session wraps after the unit that runs", highlight=False)
    else:
        out.print(f"{chain} is {status.value}", highlight=False)


def prefect_runs() -> "PrefectRuns | None":
    """Prefect's flow runs, where a server is configured."""
    from perpetual_blocks.adapters.local_server import configured_server
    from perpetual_blocks.adapters.prefect_runs import PrefectRuns

    return PrefectRuns() if configured_server() else None


def _cancel_run(follow_on: "FollowOn", why: str) -> None:
    """The run would end Superseded if it started; where Prefect can be asked, it does not even start."""
    runs = prefect_runs()
    if runs is not None and follow_on.flow_run_id is not None:
        with suppress(Exception):
            runs.cancel(follow_on.flow_run_id, why)


def _waiting_run(ledger: "SqlLedger", chain: str) -> str | None:
    """The flow run that is suspended, where the chain was paused in Prefect's UI, or asks for more."""
    latest = ledger.sessions(ledger.chain(chain).name)[-1:]
    return latest[0].flow_run_id if latest and latest[0].state.value in ("Paused", "Exhausted") else None


def create(ledger: "Ledger", chain: str | None = None) -> dict[str, Any]:
    """Creates the follow-ons of chains that go on, or of one; the names of their chains with the runs."""
    from perpetual_blocks.session.follow_on import create_follow_ons

    runs = prefect_runs()
    if runs is None:
        return {}
    pending = ledger.pending_follow_ons(chain)
    create_follow_ons(ledger, runs, chain)
    created = {}
    for follow_on in pending:
        found = ledger.follow_on(follow_on.chain, follow_on.ordinal)
        created[follow_on.chain] = found[0].flow_run_id if found else None
    return created


def _create(ledger: "SqlLedger", suspended: dict[str, str | None]) -> dict[str, Any]:
    """Creates the follow-ons of chains that go on, in place of suspended runs."""
    created, runs = create(ledger), prefect_runs()
    if runs is None:
        return created
    for flow_run_id in suspended.values():
        if flow_run_id is not None:
            with suppress(Exception):
                runs.superseded(flow_run_id)
    return created
