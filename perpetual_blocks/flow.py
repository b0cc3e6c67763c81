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
from functools import partial
from typing import Annotated, Any, get_args, get_origin

from prefect import Flow
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ParameterTypeError
from prefect.logging import get_logger
from prefect.task_runners import TaskRunner
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic import Secret as PydanticSecret

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.child import check_guarded
from perpetual_blocks.adapters.deadlines import grace_seconds
from perpetual_blocks.adapters.masking import masked, redactor_for
from perpetual_blocks.adapters.output import guard_output
from perpetual_blocks.adapters.prefect_events import emit_deeds
from perpetual_blocks.adapters.prefect_runs import PrefectRuns
from perpetual_blocks.adapters.remote_unit import Home
from perpetual_blocks.adapters.serving import wrapping_first
from perpetual_blocks.adapters.signals import in_background, pass_on
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.blocks import ResourceBudget, StatePersistence
from perpetual_blocks.blocks.forms import explained
from perpetual_blocks.blocks.loading import chosen_blocks, load_budget, load_manners, load_store
from perpetual_blocks.budget import Budget, check_metered
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.flow_run import METERS, ask_to_stop, current_flow_run, run_session
from perpetual_blocks.patience import GRACE_SECONDS, Patience
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.usage import RESOURCES

MOST_AT_ONCE = 1000

OWN_PARAMETERS = ("chain", "budget", "store")


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

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """As Prefect's own; says of a chosen block that cannot be loaded what is wrong with it."""
        try:
            return super().validate_parameters(parameters)
        except ParameterTypeError as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            which = str(error.__cause__).partition(" of block type ")[0]
            raise ParameterTypeError(f"{which}: {explained(error.__cause__)}. Edit it under Blocks") from error

    def serve(self, *args: Any, **kwargs: Any) -> None:
        """As Prefect's own; when the serving process is asked to end, its sessions wrap first."""
        with wrapping_first():
            super().serve(*args, **kwargs)

    def to_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own; finds out first under which name a new process can import this flow, and which blocks the
        run form is to show as chosen."""
        self._take_name_of_variable()
        return super().to_deployment(*args, **self._with_chosen_blocks(kwargs))

    async def ato_deployment(self, *args: Any, **kwargs: Any) -> Any:
        """As Prefect's own; finds out first under which name a new process can import this flow, and which blocks the
        run form is to show as chosen."""
        self._take_name_of_variable()
        return await super().ato_deployment(*args, **self._with_chosen_blocks(kwargs))

    def _with_chosen_blocks(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A deployment's arguments with the flow's own saved blocks as parameters: Prefect makes references of them."""
        chosen = chosen_blocks(self.budget, self.store)
        return {**arguments, "parameters": {**chosen, **(arguments.get("parameters") or {})}}

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
    concurrency: int,
    task_runner: TaskRunner[Any] | None,
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
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or not 1 <= concurrency <= MOST_AT_ONCE:
        raise InvalidInput.of("as_flow(concurrency)", concurrency, f"a whole number from 1 to {MOST_AT_ONCE}")
    _check_meters(agent)
    _check_secrets(agent)
    if agent.isolated:
        Home.of(agent, f"{agent.__name__}.isolated")
    if task_runner is not None:
        _check_task_runner(agent, task_runner)
    if isinstance(budget, Budget):
        check_metered(budget, {**METERS, **agent.meters})

    def run(**parameters: Any) -> State[Any]:
        own = {field: parameters.pop(field) for field in OWN_PARAMETERS}
        guard_output()
        stop = StopRequest()

        def session() -> State[Any]:
            program, where = agent(**parameters), load_store(own["store"] or store, Patience(GRACE_SECONDS))
            redactor = redactor_for(program, where.get_address())
            with masked(redactor), process.garbage_of_its_own():
                return run_session(
                    program,
                    chain=own["chain"],
                    budget=load_budget(own["budget"] or budget, Patience(GRACE_SECONDS)),
                    store=where,
                    manners=load_manners(own["budget"], manners),
                    concurrency=concurrency,
                    on_task_runner=task_runner is not None,
                    stop=stop,
                    redactor=redactor,
                )

        asked = partial(ask_to_stop, stop, grace_seconds(os.environ), str(current_flow_run().id))
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
        task_runner=task_runner,
        on_crashed=[run_is_over],
        on_cancellation=[run_is_over],
    )
    made.agent, made.budget, made.store = agent, budget, store
    return made


def _check_task_runner(agent: type[PerpetualAgent], task_runner: TaskRunner[Any]) -> None:
    if not isinstance(task_runner, TaskRunner):
        raise InvalidInput.of("as_flow(task_runner)", task_runner, "a task runner of Prefect's, as DaskTaskRunner()")
    if agent.isolated:
        expected = "False for an agent whose units run on a task runner, in the processes of its workers"
        raise InvalidInput.of(f"{agent.__name__}.isolated", True, expected)
    Home.of(agent, "as_flow(task_runner)")


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
        "chain": "The chain to go on with; leave it empty for a new one. In follow-ons it is set by the chain itself.",
        "budget": "What each session may use; the flow's own budget if empty.",
        "store": "Where state is kept; the flow's own store if empty.",
    }
    lines = [f"    {name}: {' '.join(text.split())}" for name, text in described.items()]
    return "\n".join([agent.task(), "", "Args:", *lines])


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
        deeds = supervisor.run_is_over(str(flow_run.id))
        for deed in deeds:
            get_logger("perpetual_blocks").info("%s: %s (%s)", deed.chain, deed.why, deed.what)
        emit_deeds(deeds, redactor_for())
    finally:
        ledger.close()
