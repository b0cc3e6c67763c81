"""The orchestrator: several agents of one deployment on one queue, watched by a flow until all of it is done.

Each agent is a chain whose sessions are runs of the agent's deployment, so that on a work pool they spread over
machines. The orchestrator's own run only looks: it may be killed, cancelled and started again at any time, and finds
its agents.
Deployed from deployments/prefect.yaml, or served by itself: `python flows/orchestrator.py`.
"""

import time
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, Field

from perpetual_blocks.adapters.prefect_runs import PrefectRuns, deployment_template
from perpetual_blocks.adapters.process import session_alive
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.blocks.loading import load_store
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.session.chain import check_chain_name
from perpetual_blocks.session.orchestration import Bounds
from perpetual_blocks.session.orchestrator import Orchestrator, Part, Report
from perpetual_blocks.session.queue_page import agents_to_markdown, done_in_short
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.work import Selector

PUBLISH_SECONDS = 60.0


class AgentForPart(BaseModel, title="Agent for a part of the queue"):
    """An agent that takes a part of the queue only."""

    name: str = Field(title="Name", description="Its chain's name is this one after the queue's.")
    kinds: list[str] = Field([], title="Kinds", description="Items of these kinds; of all if empty.")
    ids: list[str] = Field([], title="Ids", description="Items with these ids, or ids that begin so: `part/*`.")


@flow(name="orchestrator")
def orchestrate(
    deployment: str,
    chain: str,
    agents: str = "1-4",
    parts: list[AgentForPart] = [],  # noqa: B006 - the form shows it as empty; nobody changes it
    parameters: dict[str, Any] = {},  # noqa: B006
    store: StatePersistence | None = None,
    every_seconds: Annotated[float, Field(ge=1.0, le=600.0)] = 5.0,
) -> State[None]:
    """Lets several agents work on one queue, and reports for all; ends when nobody goes on any more.

    Cancelling this run ends the looking, and no agent: `perpetual pause` or `stop-all` does.

    Args:
        deployment: The agent's, as flow-name/deployment-name.
        chain: The chain that owns the queue; the others are named after it.
        agents: How many: a number, or the least and the most of them, as 1-8; then as many as bring something.
        parts: More agents, each for a part of the queue.
        parameters: The agent's parameters, without `chain`.
        store: The store of the agents' state; the default one if empty.
        every_seconds: How often to look.
    """
    logger, runs, clock = get_run_logger(), PrefectRuns(), SystemClock()
    queue, where = check_chain_name(chain), load_store(store)
    given = (
        {**parameters, "store": {"$ref": {"block_document_id": str(store._block_document_id)}}} if store else parameters
    )
    template = deployment_template(deployment, given)
    ledger = where.get_ledger()
    documents = StoredDocuments(load_storage(where.result_storage))
    orchestrator = Orchestrator(
        ledger,
        queue,
        Bounds.parse(agents),
        clock,
        Supervisor(ledger, runs, clock, session_alive, documents),
        [Part(part.name, Selector(kinds=tuple(part.kinds), ids=tuple(part.ids))) for part in parts],
        template.to_json(),
        runs,
    )
    published, wanted = 0.0, ""
    try:
        while True:
            report = orchestrator.look()
            for deed in report.deeds:
                logger.log(30 if deed.what in ("late", "failed") else 20, "%s %s: %s", deed.what, deed.chain, deed.why)
            if (now_wanted := f"{report.decision.agents} agents: {report.decision.why}") != wanted:
                wanted = now_wanted
                logger.info(wanted)
            if report.over or time.monotonic() - published >= PUBLISH_SECONDS:
                published = time.monotonic()
                create_markdown_artifact(page(report), key=f"agents-{queue}", description=done_in_short(report.items))
            if report.over:
                break
            time.sleep(every_seconds)
    finally:
        ledger.close()
    return Completed(name="Finished" if report.finished else "Stalled", message=done_in_short(report.items))


def page(report: Report) -> str:
    """How all agents stand, as the page in the UI has it."""
    decision = f"{report.decision.agents} agents: {report.decision.why}"
    return f"**{report.queue}**: {done_in_short(report.items)}\n\n{agents_to_markdown(report.agents, decision)}"


if __name__ == "__main__":
    orchestrate.serve(name="orchestrator")
