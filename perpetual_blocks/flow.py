"""The perpetual flow: an agent as an ordinary Prefect flow.

The flow's function runs in the main thread, and does nothing there but wait. Everything else, the session and each of
its units, runs in one thread of its own: Prefect turns SIGTERM into an exception at a random instruction of the *main*
thread, so what must not be torn runs elsewhere, and the main thread turns the exception into a request to stop.
"""

import inspect
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Lock, Thread
from typing import Annotated, Any, TypeVar

import httpx
from prefect import Flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Completed

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.child import Home, check_guarded
from perpetual_blocks.adapters.deadlines import deadlines, flow_timeout_deadline
from perpetual_blocks.adapters.log_lines import log_moments
from perpetual_blocks.adapters.prefect_runs import OwnRun, PrefectRuns, chain_tag, run_name
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.adapters.saved_work import PrefectSavedWork
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.blocks import ResourceBudget, StatePersistence
from perpetual_blocks.blocks.state_persistence import DEFAULT
from perpetual_blocks.budget import Budget, Meter, check_metered
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import Fenced, InvalidInput, RunsUnavailable, StorageError, Superseded
from perpetual_blocks.patience import GRACE_SECONDS, IMPATIENT, Patience
from perpetual_blocks.session.chain import SessionRequest, StopReason, check_chain_name, invitation
from perpetual_blocks.session.follow_on import create_follow_ons, move_follow_ons
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.ports import Fence, FollowOn
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import Moment, Observer, SessionStarted
from perpetual_blocks.usage import RESOURCES

T = TypeVar("T")

OWN_PARAMETERS = ("chain", "budget", "store")

METERS: dict[str, Callable[[], Meter]] = {"memory": process.MemoryMeter, "cpu_seconds": process.CpuMeter}
"""What reads our own gauges; each session has new ones."""


class PerpetualFlow(Flow[..., Any]):
    """A Prefect flow that knows its agent."""

    agent: type[PerpetualAgent]
    budget: Budget | ResourceBudget | str | None = None
    store: StatePersistence | str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own."""
        check_guarded(self.agent)
        return super().__call__(*args, **kwargs)

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
    _check_meters(agent)
    if agent.isolated:
        Home.of(agent)
    if isinstance(budget, Budget):
        check_metered(budget, {**METERS, **agent.meters})

    def run(**parameters: Any) -> State[Any]:
        own = {field: parameters.pop(field) for field in OWN_PARAMETERS}
        return run_session(
            agent(**parameters),
            chain=own["chain"],
            budget=load_budget(own["budget"] or budget, Patience(GRACE_SECONDS)),
            store=load_store(own["store"] or store, Patience(GRACE_SECONDS)),
        )

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


def run_session(agent: PerpetualAgent, *, chain: str | None, budget: Budget, store: StatePersistence) -> State[Any]:
    """One session, within the current flow run; the state that the run ends in."""
    runs, patience = PrefectRuns(), Patience(GRACE_SECONDS)
    own = patience(partial(_own_run, runs), _is_away)
    chain = check_chain_name(chain) if chain else _new_chain_name(own)
    ledger = store.get_ledger(patience_seconds=GRACE_SECONDS)
    storage = patience(partial(load_storage, store.result_storage), _is_away)
    documents = StoredDocuments(storage, patience)
    documents.probe()
    backup = None
    if store.backup_storage:
        backup = patience(partial(load_storage, store.backup_storage, "backup_storage"), _is_away)
    stop = StopRequest()
    units = PrefectUnits(agent, storage, store.result_storage or None, patience)
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
        settings={"kinds": list(agent.kinds), "budget": budget.to_json()},
    )
    world = World(
        ledger=ledger,
        documents=documents,
        runner=units,
        saved_work=PrefectSavedWork(StoredDocuments(backup) if backup else None),
        clock=SystemClock(),
        meters={**{name: make() for name, make in METERS.items() if name not in agent.meters}, **agent.meters},
        runs=runs,
        keep_checkpoints=store.keep_checkpoints,
        price=price,
        observers=(log_moments(get_run_logger()), _label_run(runs, own)),
    )
    session = Session(
        agent,
        request,
        budget,
        world,
        task=agent.task(),
        follow_on=partial(_follow_on, own) if own.deployment_id else None,
        until=_until(),
        stop=stop,
    )

    def asked_to_stop() -> None:
        cancelled = False
        with suppress(Exception):
            cancelled = runs.is_being_cancelled(own.id)
        if cancelled:
            stop.ask(StopReason("cancelled", "its flow run was cancelled"))
        else:
            stop.ask(StopReason("signal", "the process was asked to end"))

    # A follow-on that could not be created when its session ended is created by whoever comes by next.
    with suppress(Exception):
        create_follow_ons(ledger, runs)
        move_follow_ons(ledger, runs, world.clock)
    try:
        end, signal = in_background(session.run, asked_to_stop)
    except (Superseded, Fenced) as reason:
        get_run_logger().info("Superseded: %s", reason)
        return Completed(name="Superseded", message=str(reason))
    finally:
        units.close()
        ledger.close()
    if signal is not None and end.reason.code == "cancelled":
        raise signal  # Prefect makes the run Cancelled of it
    return Completed(name=end.state.value, message=_message(end, own, chain))


def _message(end: SessionEnd, own: OwnRun, chain: str) -> str:
    message = end.reason.message
    if end.state == "Wrapped" and own.deployment_id is None:
        message += f"; no deployment, so start the next session yourself, or use `perpetual run` (chain {chain})"
    return message


def _own_run(runs: PrefectRuns) -> OwnRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise InvalidInput("flow run: a session runs within a flow run; call the flow itself")
    own = OwnRun.of(context.flow_run)
    # The context's parameters are resolved; the server's still name blocks by reference, as a follow-on needs them.
    return runs.read(own.id) if own.deployment_id else own


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


def _follow_on(own: OwnRun, uid: str, fence: Fence, not_before: float | None) -> FollowOn:
    ordinal = fence.ordinal + 1
    return FollowOn(
        chain=fence.chain,
        ordinal=ordinal,
        idempotency_key=invitation(uid, ordinal),
        deployment_id=own.deployment_id or "",
        parameters={**own.parameters, "chain": fence.chain},
        run_name=run_name(fence.chain, ordinal),
        tags=tuple(dict.fromkeys((*own.tags, chain_tag(fence.chain)))),
        job_variables=own.job_variables,
        work_queue=own.work_queue,
        not_before=not_before,
    )


def _label_run(runs: PrefectRuns, own: OwnRun) -> Observer:
    def label(moment: Moment) -> None:
        if isinstance(moment, SessionStarted):
            name, tag = run_name(moment.chain, moment.ordinal), chain_tag(moment.chain)
            if own.name != name or tag not in own.tags:
                with suppress(Exception):  # a name is a comfort; the session does not depend on it
                    runs.label(own.id, name, tuple(dict.fromkeys((*own.tags, tag))))

    return label


def in_background(work: Callable[[], T], on_signal: Callable[[], None]) -> tuple[T, BaseException | None]:
    """Runs `work` in a thread and waits in this one; signals that arrive here ask it to stop, and are waited out.

    Returns:
        What `work` returned, and the first signal that came, as the exception that Prefect or Python made of it.

    Raises:
        Exception: whatever `work` raised.
    """
    outcome: list[Any] = []
    error: list[BaseException] = []
    # A bare lock, because taking it is one instruction: Thread.join() and Event.wait() have Python code of their own
    # in which an exception from a signal handler would do harm.
    over = Lock()
    over.acquire()

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as raised:  # noqa: BLE001 - handed over to the waiting thread
            error.append(raised)
        finally:
            over.release()

    Thread(target=copy_context().run, args=(target,), name="perpetual session").start()
    first: BaseException | None = None
    while not (outcome or error):
        try:
            over.acquire()
        except (TerminationSignal, KeyboardInterrupt) as signal:
            first = first or signal
            with suppress(TerminationSignal, KeyboardInterrupt):
                on_signal()
    if error:
        raise error[0]
    return outcome[0], first
