"""The supervisor: a recurring flow that goes on with chains which a crash, or an outage, has left half done.

Deployed from deployments/prefect.yaml every two minutes, or served by itself: `python flows/supervisor.py`. It may run
as often as one likes, and beside the hooks and automations that do the same: one follow-on comes of it.
"""

import sys

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from perpetual_blocks.adapters.masking import redactor_for
from perpetual_blocks.adapters.prefect_events import emit_deeds
from perpetual_blocks.adapters.prefect_runs import PrefectRuns
from perpetual_blocks.adapters.process import session_alive
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.blocks.loading import load_store
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.session.supervisor import Deed, Supervisor


@flow(name="supervisor")
def supervise(store: StatePersistence | None = None) -> State[None]:
    """Looks after every chain of a ledger once: rescues the dead, creates what is missing, names what is late.

    Args:
        store: The store whose chains are looked after; the default one if empty.
    """
    logger = get_run_logger()
    where = load_store(store)
    ledger = where.get_ledger()
    documents = StoredDocuments(load_storage(where.result_storage))
    try:
        deeds = Supervisor(ledger, PrefectRuns(), SystemClock(), session_alive, documents).look()
    finally:
        ledger.close()
    for deed in deeds:
        logger.log(30 if deed.what in ("late", "failed") else 20, "%s %s: %s", deed.what, deed.chain, deed.why)
    emit_deeds(deeds, redactor_for())
    if deeds:
        create_markdown_artifact(_page(deeds), key="supervisor", description=f"{len(deeds)} things done or found")
    failed = [deed for deed in deeds if deed.what == "failed"]
    if failed:
        raise RuntimeError(f"{len(failed)} chains could not be looked at; the first: {failed[0].why}")
    return Completed(message=f"{len(deeds)} things done or found" if deeds else "every chain goes its way")


def _page(deeds: list[Deed]) -> str:
    rows = [f"| {deed.what} | {deed.chain} | {deed.why.replace('|', '/')} |" for deed in deeds]
    return "\n".join(["| what | chain | why |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    supervise.serve(name="supervisor", interval=float(sys.argv[1]) if len(sys.argv) > 1 else 120)
