"""Flow runs through Prefect's API: the one we are, and the one that follows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Scheduled

from perpetual_blocks.errors import RunsUnavailable
from perpetual_blocks.session.ports import FollowOn


def chain_tag(chain: str) -> str:
    """The tag that all runs of a chain have."""
    return f"chain:{chain}"


def run_name(chain: str, ordinal: int) -> str:
    """What the runs list shows."""
    return f"{chain} · {ordinal}"


@dataclass(frozen=True, slots=True)
class OwnRun:
    """The flow run that this process is, as far as its follow-on needs it."""

    id: str
    name: str
    created_on: str
    deployment_id: str | None = None
    invitation: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] = field(default_factory=dict)
    work_queue: str | None = None

    @classmethod
    def of(cls, run: FlowRun) -> "OwnRun":
        """From Prefect's record of the run."""
        return cls(
            id=str(run.id),
            name=run.name,
            created_on=run.created.strftime("%Y%m%d") if run.created else "",
            deployment_id=str(run.deployment_id) if run.deployment_id else None,
            invitation=run.idempotency_key,
            parameters=dict(run.parameters or {}),
            tags=tuple(run.tags or ()),
            job_variables=dict(run.job_variables or {}),
            work_queue=run.work_queue_name if run.work_pool_name else None,
        )


class PrefectRuns:
    """Creates and names flow runs."""

    def create(self, follow_on: FollowOn) -> str:
        """Creates the flow run; the server answers with the one that has this idempotency key, if there is one."""
        with _client() as client:
            run = client.create_flow_run_from_deployment(
                UUID(follow_on.deployment_id),
                parameters=follow_on.parameters,
                name=follow_on.run_name,
                tags=follow_on.tags,
                idempotency_key=follow_on.idempotency_key,
                job_variables=follow_on.job_variables or None,
                work_queue_name=follow_on.work_queue,
                state=None if follow_on.not_before is None else _scheduled(follow_on.not_before),
            )
        return str(run.id)

    def move(self, flow_run_id: str, at: float) -> None:
        """Lets a run that has not started yet start at that moment."""
        with _client() as client:
            state = client.read_flow_run(UUID(flow_run_id)).state
            if state is not None and state.type is StateType.SCHEDULED:
                client.set_flow_run_state(UUID(flow_run_id), _scheduled(at), force=True)

    def read(self, flow_run_id: str) -> OwnRun:
        """The run as the server has it, with its parameters as they were given: blocks by reference."""
        with _client() as client:
            return OwnRun.of(client.read_flow_run(UUID(flow_run_id)))

    def label(self, flow_run_id: str, name: str, tags: Iterable[str]) -> None:
        """Gives a run its name and tags."""
        with _client() as client:
            client.update_flow_run(UUID(flow_run_id), name=name, tags=tags)

    def is_being_cancelled(self, flow_run_id: str) -> bool:
        """Whether a person, or an automation, has cancelled the run."""
        with _client() as client:
            state = client.read_flow_run(UUID(flow_run_id)).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


def _scheduled(at: float) -> State[None]:
    return Scheduled(scheduled_time=datetime.fromtimestamp(at, UTC))


def ask_for_api() -> None:
    """Returns when Prefect's API has answered.

    Raises:
        RunsUnavailable: it has not.
    """
    with _client() as client:
        client.hello()


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """A connection of its own to Prefect's API.

    Raises:
        RunsUnavailable: it cannot be reached, or refuses for a reason that may pass.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        if not may_pass(error):
            raise
        raise RunsUnavailable(f"Prefect's API: cannot be asked: {type(error).__name__}: {error}") from error


def may_pass(error: httpx.HTTPError) -> bool:
    """Whether it is about the way to the server, or the server itself, and not about what it was asked."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, httpx.TransportError)
