"""Squares whose runs an impatient person resumes while their processes have not yet said that they wait."""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from squares import Squares

from perpetual_blocks.adapters.prefect_runs import PrefectRuns

hold, set_state = PrefectRuns.hold, SyncPrefectClient.set_flow_run_state


def press_resume(flow_run_id: object) -> None:
    with get_client(sync_client=True) as client:
        client.resume_flow_run(UUID(str(flow_run_id)))


def resumed_before(runs: PrefectRuns, flow_run_id: str, since: float) -> object:
    """Before the process has looked at how its run stands."""
    name = runs.read(flow_run_id).parameters["chain"]
    if name.startswith("before"):
        press_resume(flow_run_id)
    else:
        SyncPrefectClient.set_flow_run_state = resumed_within
    return hold(runs, flow_run_id, since)


def resumed_within(client: SyncPrefectClient, flow_run_id: UUID, state: object, *, force: bool) -> object:
    """After it has looked, and before it says that the run waits."""
    SyncPrefectClient.set_flow_run_state = set_state
    press_resume(flow_run_id)
    return set_state(client, flow_run_id, state, force=force)


PrefectRuns.hold = resumed_before
resumed_at_once = Squares.as_flow(name="resumed-at-once")

if __name__ == "__main__":
    resumed_at_once.serve(name="served", limit=40)
