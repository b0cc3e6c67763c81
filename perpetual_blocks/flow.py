"""The perpetual flow: an agent as an ordinary Prefect flow.

The flow's function runs in the main thread, and does nothing there but wait. Everything else runs in other threads:
Prefect turns SIGTERM into an exception at a random instruction of the *main* thread, so what must not be torn runs
elsewhere, and the main thread turns the exception into a request to stop.

However the run was started, it ends in the state that says how its session ended: a signal is not raised again, unless
a person cancelled the run. Under `prefect flow-run execute` with `reschedule` this state takes the place of
AwaitingRetry, so that the run is not run again beside its follow-on; with `relinquish` an infrastructure that tries
again finds a run that is over.
"""

import inspect
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar, get_args, get_origin

import httpx
from prefect import Flow, get_run_logger
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.logging import get_logger
from prefect.states import Cancelled, Completed
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic import Secret as PydanticSecret

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.child import Home, check_guarded
from perpetual_blocks.adapters.code_version import code_version
from perpetual_blocks.adapters.deadlines import deadlines, flow_timeout_deadline, grace_seconds
from perpetual_blocks.adapters.log_lines import log_moments
from perpetual_blocks.adapters.masking import masked, redactor_for
from perpetual_blocks.adapters.output import guard_output
from perpetual_blocks.adapters.prefect_runs import OwnRun, PrefectRuns
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.adapters.saved_work import PrefectSavedWork
from perpetual_blocks.adapters.serving import wrapping_first
from perpetual_blocks.adapters.signals import in_background, pass_on
from perpetual_blocks.adapters.signing import load_signer
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.blocks import ResourceBudget, StatePersistence
from perpetual_blocks.blocks.state_persistence import DEFAULT
from perpetual_blocks.budget import Budget, Meter, check_metered
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import Fenced, InvalidInput, RunsUnavailable, StorageError, Superseded, UnknownChain
from perpetual_blocks.patience import GRACE_SECONDS, IMPATIENT, Patience
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import SessionRequest, SessionState, StopReason, check_chain_name
from perpetual_blocks.session.follow_on import RunTemplate, chain_tag, create_follow_ons, move_follow_ons, run_name
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.ports import Fence, FollowOn, Ledger, RunState
from perpetual_blocks.session.steps import within
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import Moment, Observer, SessionStarted
from perpetual_blocks.usage import RESOURCES

T = TypeVar("T")

MOST_ASKED_SECONDS = 3.0
"""How long Prefect's API has to say whether a signal came because a person cancelled the run."""

OWN_PARAMETERS = ("chain", "budget", "store")

INVITATION = "PERPETUAL_INVITATION"
"""The environment variable by which `perpetual run` says which session a run is to be, as an idempotency key does."""

METERS: dict[str, Callable[[], Meter]] = {"memory": process.MemoryMeter, "cpu_seconds": process.CpuMeter}
"""What reads our own gauges; each session has new ones."""


class PerpetualFlow(Flow[..., Any]):
    """A Prefect flow that knows its agent."""

    agent: type[PerpetualAgent]
    budget: Budget | ResourceBudget | str | None = None
    store: StatePersistence | str | None = None
    signalled: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own. A signal ends the caller too, once the run is over; under Prefect's engine, which calls the
        function itself, the process ends anyway."""
        check_guarded(self.agent)
        self.signalled = None
        returned = super().__call__(*args, **kwargs)
        if self.signalled is not None:
            pass_on(self.signalled)
        return returned

    def serve(self, *args: Any, **kwargs: Any) -> None:
        """As Prefect's own; when the serving process is asked to end, its sessions wrap first."""
        with wrapping_first():
            super().serve(*args, **kwargs)

    def to_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own; finds out first under which name a new process can import this flow."""
        self._take_name_of_variable()
        return super().to_deployment(*args, **kwargs)

    async def ato_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own; finds out first under which name a new process can import this flow."""
        self._take_name_of_variable()
        return await super().ato_deployment(*args, **kwargs)

    def _take_name_of_variable(self) -> None:
        check_guarded(self.agent)
        # Prefect builds a deployment's entrypoint from the function's name; ours is made in here, and what can be
        # imported is the variable that the user gave the flow to.
        module = sys.modules[self.fn.__module__]
        for name, value in vars(module).items():
            if value is self:
                self.fn.__name__ = self.fn.__qualname__ = name
                return
        raise InvalidInput.of(
            "as_flow",
            self.name,
            f"a flow that is given to a variable of {module.__name__}, so that it can be imported",
        )


def make_flow(
    agent: type[PerpetualAgent],
    name: str | None,
    budget: Budget | ResourceBudget | str | None,
    store: StatePersistence | str | None,
    manners: Manners | None,
    module: str,
) -> PerpetualFlow:
    """The flow of an agent, made in that module; see `PerpetualAgent.as_flow`."""
    taken = [field for field in OWN_PARAMETERS if field in agent.model_fields]
    if taken:
        raise InvalidInput.of(
            f"{agent.__name__}.{taken[0]}", taken[0], f"a field not named {', '.join(OWN_PARAMETERS)}"
        )
    if budget is not None and not isinstance(budget, Budget | ResourceBudget | str):
        raise InvalidInput.of("as_flow(budget)", budget, "a Budget, a ResourceBudget block or its name")
    if store is not None and not isinstance(store, StatePersistence | str):
        raise InvalidInput.of("as_flow(store)", store, "a StatePersistence block or its name")
    if manners is not None and not isinstance(manners, Manners):
        raise InvalidInput.of("as_flow(manners)", manners, "a Manners")
    _check_meters(agent)
    _check_secrets(agent)
    if agent.isolated:
        Home.of(agent)
    if isinstance(budget, Budget):
        check_metered(budget, {**METERS, **agent.meters})

    def run(**parameters: Any) -> State[Any]:
        own = {field: parameters.pop(field) for field in OWN_PARAMETERS}
        guard_output()
        stop = StopRequest()

        def session() -> State[Any]:
            program, where = agent(**parameters), load_store(own["store"] or store, Patience(GRACE_SECONDS))
            redactor = redactor_for(program, where.get_address())
            with masked(redactor):
                return run_session(
                    program,
                    chain=own["chain"],
                    budget=load_budget(own["budget"] or budget, Patience(GRACE_SECONDS)),
                    store=where,
                    manners=load_manners(own["budget"], manners),
                    stop=stop,
                    redactor=redactor,
                )

        asked = partial(_ask_to_stop, stop, grace_seconds(os.environ), str(_flow_run().id))
        state, made.signalled = in_background(session, asked)
        if made.signalled is not None and state.name == SessionState.CANCELLED:
            raise made.signalled  # Prefect makes the run Cancelled of it
        return state

    run.__name__ = run.__qualname__ = re.sub(r"(?<!^)(?=[A-Z])", "_", agent.__name__).lower()
    run.__module__ = module
    run.__signature__ = _signature(agent)  # type: ignore[attr-defined]
    run.__doc__ = _documentation(agent)
    made = PerpetualFlow(
        fn=run,
        name=name or run.__name__.replace("_", "-"),
        description=agent.task(),
        validate_parameters=True,
        persist_result=False,
        on_crashed=[run_is_over],
        on_cancellation=[run_is_over],
    )
    made.agent, made.budget, made.store = agent, budget, store
    return made


def _check_meters(agent: type[PerpetualAgent]) -> None:
    gauges = [name for name, resource in RESOURCES.items() if resource.kind == "gauge"]
    for name, meter in agent.meters.items():
        where = f"{agent.__name__}.meters"
        if name not in gauges:
            raise InvalidInput.of(where, name, f"a gauge: {', '.join(gauges)}, or one that define_resource made known")
        if isinstance(meter, type) or not all(callable(getattr(meter, part, None)) for part in ("level", "capacity")):
            raise InvalidInput.of(f"{where}[{name!r}]", meter, "an object with level() and capacity()")


def _check_secrets(agent: type[PerpetualAgent]) -> None:
    for name, field in agent.model_fields.items():
        if holds_secret(field.annotation):
            raise InvalidInput.of(
                f"{agent.__name__}.{name}",
                field.annotation,
                f"a block, as a run's parameters are seen by everybody: `{name}: Secret` of prefect.blocks.system, of "
                "which they hold the block's id only",
            )


def holds_secret(annotation: Any) -> bool:
    """Whether a parameter of this type would hold a secret itself; a block does not, as it is passed by reference."""
    if isinstance(annotation, type) and not get_args(annotation):
        if issubclass(annotation, SecretStr | SecretBytes | PydanticSecret):
            return True
        if issubclass(annotation, BaseModel) and not issubclass(annotation, Block):
            return any(holds_secret(field.annotation) for field in annotation.model_fields.values())
        return False
    origin = get_origin(annotation)
    return origin is PydanticSecret or any(holds_secret(inner) for inner in get_args(annotation))


def load_budget(budget: Budget | ResourceBudget | str | None, patience: Patience = IMPATIENT) -> Budget:
    """The budget itself, whatever it was given as.

    Raises:
        InvalidInput: there is no such block.
    """
    if isinstance(budget, str):
        budget = patience(partial(_load_block, ResourceBudget, budget, "budget"), _is_away)
    if isinstance(budget, ResourceBudget):
        return budget.get_budget()
    return budget or Budget()


def load_manners(block: object, manners: Manners | None) -> Manners:
    """How far the chain may go by itself: as the budget's block says, or else as the flow does."""
    if isinstance(block, ResourceBudget) and (said := block.get_manners()) != Manners():
        return said
    return manners or Manners()


def load_store(store: StatePersistence | str | None, patience: Patience = IMPATIENT) -> StatePersistence:
    """The store itself, whatever it was given as; the default one for None.

    Raises:
        InvalidInput: there is no such block.
    """
    if isinstance(store, str):
        return patience(partial(_load_block, StatePersistence, store, "store"), _is_away)
    return store or StatePersistence(ledger=DEFAULT)


def _load_block(kind: type[T], name: str, field: str) -> T:
    try:
        return kind.load(name, _sync=True)  # type: ignore[attr-defined, no-any-return]
    except ValueError as error:
        slug = kind._block_type_slug  # type: ignore[attr-defined]
        raise InvalidInput.of(field, name, f"the name of a {slug} block ({error})") from error
    except httpx.HTTPError as error:
        raise StorageError(f"{field}: cannot ask the Prefect server for the block {name}: {error}") from error


def _is_away(error: Exception) -> bool:
    return isinstance(error, StorageError | RunsUnavailable)


def _signature(agent: type[PerpetualAgent]) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = []
    for name, field in agent.model_fields.items():
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        fields.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    fields += [
        inspect.Parameter("chain", keyword, default=None, annotation=str | None),
        inspect.Parameter("budget", keyword, default=None, annotation=ResourceBudget | None),
        inspect.Parameter("store", keyword, default=None, annotation=StatePersistence | None),
    ]
    return inspect.Signature(fields)


def _documentation(agent: type[PerpetualAgent]) -> str:
    described = {name: field.description for name, field in agent.model_fields.items() if field.description}
    described |= {
        "chain": "The chain to go on with; a new one for each run if empty. Follow-ons are set by the chain itself.",
        "budget": "What each session may use; the flow's own budget if empty.",
        "store": "Where state is kept; the flow's own store if empty.",
    }
    lines = [f"    {name}: {' '.join(text.split())}" for name, text in described.items()]
    return "\n".join([agent.task(), "", "Args:", *lines])


def run_session(
    agent: PerpetualAgent,
    *,
    chain: str | None,
    budget: Budget,
    store: StatePersistence,
    manners: Manners,
    stop: StopRequest,
    redactor: Redactor,
) -> State[Any]:
    """One session, within the current flow run; the state that the run ends in."""
    runs, patience = PrefectRuns(), Patience(GRACE_SECONDS)
    own = patience(partial(_own_run, runs), _is_away)
    signer = load_signer(store.signing_secret)
    chain = check_chain_name(chain) if chain else _new_chain_name(own)
    ledger = store.get_ledger(patience_seconds=GRACE_SECONDS)
    storage = patience(partial(load_storage, store.result_storage), _is_away)
    documents = StoredDocuments(storage, patience)
    documents.probe()
    backup = None
    if store.backup_storage:
        backup = StoredDocuments(patience(partial(load_storage, store.backup_storage, "backup_storage"), _is_away))
    units = PrefectUnits(agent, storage, store.result_storage or None, redactor, patience)
    template = own.template()
    request = SessionRequest(
        chain=chain,
        agent=type(agent).__name__,
        holder=process.holder_id(),
        host=process.host_name(),
        pid=os.getpid(),
        process_started=process.process_started(),
        flow_run_id=own.id,
        deployment_id=own.deployment_id,
        invitation=own.invitation,
        settings={
            "kinds": list(agent.kinds),
            "budget": budget.to_json(),
            "manners": manners.to_json(),
            "task": agent.task(),
        },
        attended=own.attended,
        machine=process.machine(),
        template=template.to_json() if template else None,
        code=code_version(type(agent), _version(own)),
    )
    world = World(
        ledger=ledger,
        documents=documents,
        runner=units,
        saved_work=PrefectSavedWork(backup),
        backup=backup,
        clock=SystemClock(),
        meters={**{name: make() for name, make in METERS.items() if name not in agent.meters}, **agent.meters},
        runs=runs,
        keep_checkpoints=store.keep_checkpoints,
        signer=signer,
        price=price,
        watched={"run": partial(_run_wishes, runs, own.id)},
        redactor=redactor,
        observers=(log_moments(get_run_logger()), _label_run(runs, own)),
    )
    session = Session(
        agent,
        request,
        budget,
        world,
        task=agent.task(),
        follow_on=partial(_follow_on, template) if template else None,
        until=_until(),
        stop=stop,
    )

    # What others have left undone is done by whoever comes by next.
    with suppress(Exception):
        _declare_dead(ledger, chain)
        create_follow_ons(ledger, runs, but=chain)
        move_follow_ons(ledger, runs, world.clock)
    try:
        end = session.run()
    except (Superseded, Fenced) as reason:
        get_run_logger().info("Superseded: %s", reason)
        return Completed(name="Superseded", message=str(reason))
    finally:
        units.close()
        ledger.close()
    if end.state is SessionState.CANCELLED:
        return Cancelled(message=end.reason.message)
    if end.state is SessionState.PAUSED and own.deployment_id and _stands(runs, own) is RunState.PAUSED:
        # The run itself waits, for as long as a person wants; Prefect's own pause would become Failed.
        raise Pause(state=runs.suspend(own.id))
    return Completed(name=end.state.value, message=_message(end, own, chain))


def _declare_dead(ledger: Ledger, chain: str) -> None:
    """A session of this chain whose process is gone need not be waited for."""
    with suppress(UnknownChain):
        latest = ledger.sessions(ledger.chain(chain).name)[-1:]
        for session in latest:
            if session.state is SessionState.RUNNING and process.session_alive(session) is False:
                ledger.declare_dead(chain, session.ordinal)


def _stands(runs: PrefectRuns, own: OwnRun) -> RunState | None:
    with suppress(Exception):
        return runs.facts(own.id).state
    return None


def _run_wishes(runs: PrefectRuns, flow_run_id: str) -> StopReason | None:
    """What a person wants of this flow run, in Prefect's UI or through its API, as a reason to stop."""
    match runs.facts(flow_run_id).state:
        case RunState.CANCELLED:
            return StopReason("cancelled", "its flow run was cancelled")
        case RunState.PAUSED:
            return StopReason("paused", "its flow run was paused")
        case _:
            return None


def _follow_on(template: RunTemplate, uid: str, fence: Fence, not_before: float | None) -> FollowOn:
    return template.follow_on(fence.chain, uid, fence.ordinal + 1, not_before)


def run_is_over(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The hook of a run that has crashed, or was cancelled and killed: its chain goes on, or ends, at once.

    Prefect calls it in the process that served the run or in a new one, and may not call it at all; the supervisor does
    the same on a schedule.
    """
    store: Any = (flow_run.parameters or {}).get("store") or getattr(flow, "store", None)
    if isinstance(store, dict):
        store = StatePersistence.load_from_ref(store["$ref"], _sync=True)  # type: ignore[call-arg]
    ledger = load_store(store).get_ledger()
    try:
        supervisor = Supervisor(ledger, PrefectRuns(), SystemClock(), process.session_alive)
        for deed in supervisor.run_is_over(str(flow_run.id)):
            get_logger("perpetual_blocks").info("%s: %s (%s)", deed.chain, deed.why, deed.what)
    finally:
        ledger.close()


def _ask_to_stop(stop: StopRequest, grace: float, flow_run_id: str, at: float) -> None:
    """What a signal at that moment, by the monotonic clock, means for the session of this run."""
    reason: StopReason | None = None
    with suppress(Exception):
        reason = within(min(MOST_ASKED_SECONDS, grace / 4), lambda: _run_wishes(PrefectRuns(), flow_run_id))
    stop.ask(reason or StopReason("signal", "the process was asked to end"), by=at + grace)


def _message(end: SessionEnd, own: OwnRun, chain: str) -> str:
    message = end.reason.message
    if end.state == "Wrapped" and own.deployment_id is None:
        message += f"; no deployment, so start the next session yourself, or use `perpetual run` (chain {chain})"
    return message


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise InvalidInput("flow run: a session runs within a flow run; call the flow itself")
    return context.flow_run


def _own_run(runs: PrefectRuns) -> OwnRun:
    own = OwnRun.of(_flow_run())
    if own.deployment_id is None and (invited := os.environ.get(INVITATION)):
        own = replace(own, invitation=invited, attended=False)
    # The context's parameters are resolved; the server's still name blocks by reference, as a follow-on needs them.
    return runs.read(own.id) if own.deployment_id else own


def _version(own: OwnRun) -> str | None:
    """The deployment's version. One that was given none has its flow's, which says nothing of the agent."""
    context = FlowRunContext.get()
    default = context.flow.version if context and context.flow else None
    return own.deployment_version if own.deployment_version != default else None


def _until() -> float | None:
    """When this process will be ended, as far as its environment, or the flow's own timeout, tells."""
    found = [deadline.at for deadline in deadlines(os.environ)]
    context = FlowRunContext.get()
    if context is not None and context.flow is not None and context.flow_run is not None:
        started = context.flow_run.start_time
        limit = flow_timeout_deadline(context.flow.timeout_seconds, started.timestamp() if started else time.time())
        found += [limit.at] if limit else []
    return min(found, default=None)


def _new_chain_name(own: OwnRun) -> str:
    context = FlowRunContext.get()
    flow_name = context.flow.name if context and context.flow else "chain"
    slug = re.sub(r"[^a-z0-9]+", "-", flow_name.lower()).strip("-")[:40]
    # Made of the run's own id, so that a retry of the same run finds the same chain.
    return f"{slug}-{own.created_on}-{own.id[:8]}"


def _label_run(runs: PrefectRuns, own: OwnRun) -> Observer:
    def label(moment: Moment) -> None:
        if isinstance(moment, SessionStarted):
            name, tag = run_name(moment.chain, moment.ordinal), chain_tag(moment.chain)
            if own.name != name or tag not in own.tags:
                with suppress(Exception):  # a name is a comfort; the session does not depend on it
                    runs.label(own.id, name, tuple(dict.fromkeys((*own.tags, tag))))

    return label
