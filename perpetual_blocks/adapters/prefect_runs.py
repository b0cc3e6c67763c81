"""Flow runs through Prefect's API: the one we are, and the one that follows."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.input.run_input import keyset_from_paused_state
from prefect.states import Cancelled, Completed, Crashed, Scheduled, Suspended

from perpetual_blocks.errors import InvalidInput, RunsUnavailable
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import FollowOn
from perpetual_blocks.session.ports import RunFacts, RunState

_STATES = {
    StateType.SCHEDULED: RunState.SCHEDULED,
    StateType.PENDING: RunState.STARTING,
    StateType.RUNNING: RunState.RUNNING,
    StateType.PAUSED: RunState.PAUSED,
    StateType.CANCELLING: RunState.CANCELLED,
    StateType.CANCELLED: RunState.CANCELLED,
    StateType.COMPLETED: RunState.ENDED,
    StateType.FAILED: RunState.BROKEN,
    StateType.CRASHED: RunState.BROKEN,
}

LONG = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class OwnRun:
    """The flow run that this process is, as far as its follow-on needs it.

    Attributes:
        attended: Whether a person has started it: no schedule has, nor a session before it.
        since: Of when the state is in which this process has found it, in seconds since the Unix epoch.
    """

    id: str
    name: str
    created_on: str
    attended: bool = True
    deployment_id: str | None = None
    invitation: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] = field(default_factory=dict)
    work_queue: str | None = None
    deployment_version: str | None = None
    since: float = 0.0

    @classmethod
    def of(cls, run: FlowRun) -> "OwnRun":
        """From Prefect's record of the run."""
        return cls(
            id=str(run.id),
            name=run.name,
            created_on=run.created.strftime("%Y%m%d") if run.created else "",
            attended=run.idempotency_key is None and not run.auto_scheduled,
            deployment_id=str(run.deployment_id) if run.deployment_id else None,
            invitation=run.idempotency_key,
            parameters=dict(run.parameters or {}),
            tags=tuple(run.tags or ()),
            job_variables=dict(run.job_variables or {}),
            work_queue=run.work_queue_name if run.work_pool_name else None,
            deployment_version=run.deployment_version,
            since=run.state.timestamp.timestamp() if run.state else 0.0,
        )

    def template(self) -> RunTemplate | None:
        """What a run that goes on from this one is made of; None without a deployment."""
        if self.deployment_id is None:
            return None
        return RunTemplate(
            deployment_id=self.deployment_id,
            parameters=self.parameters,
            tags=self.tags,
            job_variables=self.job_variables,
            work_queue=self.work_queue,
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

    def leaves_room(self, deployment_id: str) -> bool:
        """Whether the deployment's concurrency limit has room for one more run.

        One that has none would delay the run by half a minute, or cancel it.
        """
        with _client() as client:
            limit = client.read_deployment(UUID(deployment_id)).global_concurrency_limit
        return limit is None or limit.active_slots < limit.limit

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

    def facts(self, flow_run_id: str) -> RunFacts:
        """How a run stands."""
        with _client() as client:
            try:
                state = client.read_flow_run(UUID(flow_run_id)).state
            except ObjectNotFound:
                return RunFacts(RunState.GONE, 0.0)
        if state is None:
            return RunFacts(RunState.SCHEDULED, 0.0)
        return RunFacts(_STATES[state.type], state.timestamp.timestamp())

    def cancel(self, flow_run_id: str, why: str) -> None:
        """Cancels a run that has not started yet; one that has is left as it is."""
        self._end(flow_run_id, {RunState.SCHEDULED, RunState.STARTING, RunState.PAUSED}, Cancelled(message=why))

    def crashed(self, flow_run_id: str, why: str) -> None:
        """Says of a run that is not over that its process is dead."""
        self._end(flow_run_id, {RunState.STARTING, RunState.RUNNING, RunState.PAUSED}, Crashed(message=why))

    def hold(self, flow_run_id: str, since: float) -> State[Any] | None:
        """Lets a run that was paused wait for as long as a person wants: Prefect's own pauses fail after a while.

        Resume is heard however soon it is pressed: the run then goes on in another process, as this one is at its end.

        Args:
            since: Of when the state is in which this process has found the run, in seconds since the Unix epoch.

        Returns:
            The state in which this process leaves the run; None if nobody has paused it.
        """
        run = UUID(flow_run_id)
        with _client() as client:
            later = [state for state in _states(client, run) if state.timestamp.timestamp() >= since]
            paused = [number for number, state in enumerate(later) if state.type is StateType.PAUSED]
            if not paused:
                return None
            # Of a run whose process is thought to wait, Resume makes a running one; else one that is to be started.
            after = [state.type for state in later[paused[-1] + 1 :]]
            if after not in ([], [StateType.RUNNING]):
                return later[paused[-1]]
            suspended: State[None] = Suspended(pause_expiration_time=datetime.now(UTC) + LONG)
            client.set_flow_run_state(run, suspended, force=True)
            *_, before, _ = _states(client, run)
            if before.type is not StateType.PAUSED:
                client.resume_flow_run(run)
        return suspended

    def superseded(self, flow_run_id: str) -> None:
        """Ends a suspended run whose chain goes on in another one."""
        self.end_suspended(flow_run_id, "Superseded", "its chain goes on in another run")

    def end_suspended(self, flow_run_id: str, name: str, why: str) -> None:
        """Ends a suspended run as Completed, with this name."""
        self._end(flow_run_id, {RunState.PAUSED}, Completed(name=name, message=why))

    def ask(self, flow_run_id: str, key: str, form: dict[str, Any], text: str, why: str) -> State[None]:
        """Suspends a run until somebody has filled in a form.

        Args:
            key: Names the question; the same one may be asked again.
            form: The JSON schema of its fields; one of them is required, as the server does not keep an empty answer.
            text: Markdown that is shown above them.
            why: The state's message.
        """
        state: State[None] = Suspended(pause_expiration_time=datetime.now(UTC) + LONG, pause_key=key, message=why)
        keys = keyset_from_paused_state(state)
        state.state_details.run_input_keyset = {str(name): value for name, value in keys.items()}
        run = UUID(flow_run_id)
        with _client() as client:
            for name, value in ((keys["schema"], form), (keys["description"], text)):
                if _input(client, run, name) is not None:
                    client.delete_flow_run_input(run, name)
                client.create_flow_run_input(run, name, json.dumps(value))
            client.set_flow_run_state(run, state, force=True)
        return state

    def answer(self, flow_run_id: str, key: str) -> dict[str, Any] | None:
        """What somebody has filled in, the form's defaults for what was left out; None where nobody has."""
        keys, run = keyset_from_paused_state(Suspended(pause_key=key)), UUID(flow_run_id)
        with _client() as client:
            given, form = (_input(client, run, keys[name]) for name in ("response", "schema"))
        if given is None or form is None:
            return None
        return {**{name: field["default"] for name, field in form["properties"].items() if "default" in field}, **given}

    def _end(self, flow_run_id: str, among: set[RunState], state: State[Any]) -> None:
        if self.facts(flow_run_id).state in among:
            with _client() as client:
                client.set_flow_run_state(UUID(flow_run_id), state, force=True)


def _input(client: SyncPrefectClient, run: UUID, key: str) -> Any:
    """What a run was given under a key; None for nothing."""
    try:
        return json.loads(client.read_flow_run_input(run, key))
    except httpx.HTTPStatusError as error:
        if error.response.status_code == 404:
            return None
        raise


def _scheduled(at: float) -> State[None]:
    return Scheduled(scheduled_time=datetime.fromtimestamp(at, UTC))


def deployment_template(deployment: str, parameters: dict[str, Any]) -> RunTemplate:
    """What runs of a deployment with these parameters are made of.

    Args:
        deployment: Its name, as flow-name/deployment-name.

    Raises:
        InvalidInput: there is no such deployment, or it has no such parameter.
        RunsUnavailable: Prefect's API cannot be reached.
    """
    with _client() as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError):
            expected = "a deployment, as flow-name/deployment-name; `prefect deployment ls` lists them"
            raise InvalidInput.of("deployment", deployment, expected) from None
    known = (found.parameter_openapi_schema or {}).get("properties", {})
    for name in parameters:
        if name not in known or name == "chain":
            others = ", ".join(one for one in known if one != "chain")
            raise InvalidInput.of("parameters", name, f"one of the deployment's, and not `chain`: {others}")
    return RunTemplate(
        deployment_id=str(found.id),
        parameters={**(found.parameters or {}), **parameters},
        tags=tuple(found.tags or ()),
        work_queue=found.work_queue_name if found.work_pool_name else None,
    )


def ask_for_api() -> None:
    """Returns when Prefect's API has answered.

    Raises:
        RunsUnavailable: it has not.
    """
    with _client() as client:
        client.hello()


def _states(client: SyncPrefectClient, run: UUID) -> list[State[Any]]:
    """All that a run has been in, the oldest first."""
    return sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)


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
