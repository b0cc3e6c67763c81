"""What happens within one flow run: it finds out which run it is, and runs one session with all that this needs."""

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Cancelled, Completed

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.code_version import code_version
from perpetual_blocks.adapters.deadlines import deadlines, flow_timeout_deadline
from perpetual_blocks.adapters.log_lines import log_moments
from perpetual_blocks.adapters.open_telemetry import open_telemetry
from perpetual_blocks.adapters.prefect_events import PrefectEvents
from perpetual_blocks.adapters.prefect_progress import ShownProgress
from perpetual_blocks.adapters.prefect_runs import OwnRun, PrefectRuns
from perpetual_blocks.adapters.prefect_units import PrefectUnits
from perpetual_blocks.adapters.prices import price
from perpetual_blocks.adapters.result_storage import StoredDocuments, load_storage
from perpetual_blocks.adapters.saved_work import PrefectSavedWork
from perpetual_blocks.adapters.signing import load_signer
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.blocks import StatePersistence
from perpetual_blocks.blocks.loading import is_away
from perpetual_blocks.budget import Budget, Meter
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import Fenced, InvalidInput, Superseded, UnknownChain, described
from perpetual_blocks.form import Withdrawal, answered, ask
from perpetual_blocks.patience import GRACE_SECONDS, Patience
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState, StopReason, check_chain_name
from perpetual_blocks.session.follow_on import RunTemplate, chain_tag, create_follow_ons, move_follow_ons, run_name
from perpetual_blocks.session.ledger import Fence, FollowOn, Ledger
from perpetual_blocks.session.loop import Session, SessionEnd
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.ports import RunState
from perpetual_blocks.session.steps import within
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.session.turn import SentAway
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import FenceReached, LastingObserver, Moment, SessionStarted

MOST_ASKED_SECONDS = 3.0
"""How long Prefect's API has to say whether a signal came because a person cancelled the run."""

LAST_SECONDS = 2.0
"""Kept free of a machine's time for what comes after the session: Prefect hears how its run ended, the process ends."""

SHOWN_SECONDS = 3.0
"""How long the end of a session waits for what people see of it: pages, events, names."""

KEPT_SECONDS = 5.0
"""Where the process is about to be killed: what the run's own last state needs."""

LAUNCHED = "PERPETUAL_LAUNCHED"
"""The environment variable of a process whose starter sees to the next session, as `perpetual run` does."""

INVITATION = "PERPETUAL_INVITATION"
"""The environment variable by which `perpetual run` says which session a run is to be, as an idempotency key does."""

METERS: dict[str, Callable[[], Meter]] = {"memory": process.MemoryMeter, "cpu_seconds": process.CpuMeter}
"""What reads our own gauges; each session has new ones."""


def run_session(
    agent: PerpetualAgent,
    *,
    chain: str | None,
    budget: Budget,
    store: StatePersistence,
    manners: Manners,
    concurrency: int,
    on_task_runner: bool,
    stop: StopRequest,
    redactor: Redactor,
) -> State[Any]:
    """One session, within the current flow run; the state that the run ends in."""
    runs, patience = PrefectRuns(), Patience(GRACE_SECONDS)
    own = patience(partial(_own_run, runs), is_away)
    signer = load_signer(store.signing_secret)
    chain = check_chain_name(chain) if chain else _new_chain_name(own)
    ledger = store.get_ledger(patience_seconds=GRACE_SECONDS)
    storage = patience(partial(load_storage, store.result_storage), is_away)
    documents = StoredDocuments(storage, patience)
    documents.probe()
    backup = None
    if store.backup_storage:
        backup = StoredDocuments(patience(partial(load_storage, store.backup_storage, "backup_storage"), is_away))
    slug = store.result_storage or None
    units = PrefectUnits(agent, storage, slug, redactor, patience, on_task_runner=on_task_runner)
    template, name = own.template(), type(agent).__name__
    shown: tuple[LastingObserver, ...] = (
        *open_telemetry(name),
        _Label(runs, own),
        ShownProgress(ledger, own.id, redactor),
        PrefectEvents(name, redactor),
    )
    request = SessionRequest(
        chain=chain,
        agent=name,
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
        observers=(log_moments(get_run_logger()), *shown, Withdrawal(ledger, runs, own)),
        alive=process.session_alive,
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
        concurrency=concurrency,
    )

    asked: State[Any] | None = None
    # What others have left undone is done by whoever comes by next.
    with suppress(Exception):
        _declare_dead(ledger, chain)
        _rescue_others(ledger, runs, chain)
        create_follow_ons(ledger, runs, but=chain)
        move_follow_ons(ledger, runs, world.clock)
    try:
        if (state := patience(partial(answered, ledger, runs, own, chain), is_away)) is not None:
            return state
        end = session.run()
        if end.state is SessionState.EXHAUSTED and own.deployment_id:
            asked = _ask(ledger, runs, own, chain, end.ordinal, manners)
    except SentAway as away:
        get_run_logger().info("%s", away)
        return _sent_away(away, runs, own)
    except (Superseded, Fenced) as reason:
        get_run_logger().info("Superseded: %s", reason)
        return Completed(name="Superseded", message=str(reason))
    finally:
        until = _shown_until(stop)
        for observer in shown:
            observer.close(max(0.0, until - time.monotonic()))
        units.close()
        ledger.close()
    if end.state is SessionState.CANCELLED:
        return Cancelled(message=end.reason.message)
    if end.state is SessionState.PAUSED and own.deployment_id:
        _hold(runs, own)
    if asked is not None:
        raise Pause(state=asked)
    return Completed(name=end.state.value, message=_message(end, own, chain))


def ask_to_stop(stop: StopRequest, grace: float, flow_run_id: str, at: float) -> None:
    """What a signal at that moment, by the monotonic clock, means for the session of this run."""
    reason: StopReason | None = None
    with suppress(Exception):
        reason = within(min(MOST_ASKED_SECONDS, grace / 4), lambda: _run_wishes(PrefectRuns(), flow_run_id))
    stop.ask(reason or StopReason("signal", "the process was asked to end"), by=at + grace)


def current_flow_run() -> FlowRun:
    """The flow run that this process, or thread, is in."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise InvalidInput("flow run: a session runs within a flow run; call the flow itself")
    return context.flow_run


def _shown_until(stop: StopRequest) -> float:
    """Until when, by the monotonic clock, the end of a session waits for what is shown of it."""
    until = time.monotonic() + SHOWN_SECONDS
    return until if stop.by is None else min(until, stop.by - KEPT_SECONDS)


def _sent_away(away: SentAway, runs: PrefectRuns, own: OwnRun) -> State[Any]:
    """The state of a run that had waited for its session, and was asked to stop."""
    if away.reason.code == "cancelled":
        return Cancelled(message=str(away))
    if away.reason.code == "paused" and own.deployment_id:
        _hold(runs, own)
    return Completed(name="Superseded", message=str(away))


def _declare_dead(ledger: Ledger, chain: str) -> None:
    """A session of this chain whose process is gone need not be waited for."""
    with suppress(UnknownChain):
        latest = ledger.sessions(ledger.chain(chain).name)[-1:]
        for session in latest:
            if session.state is SessionState.RUNNING and process.session_alive(session) is False:
                ledger.declare_dead(chain, session.ordinal)


def _rescue_others(ledger: Ledger, runs: PrefectRuns, name: str) -> None:
    """What other chains of the queue hold is not waited for longer than they live."""
    with suppress(UnknownChain):
        supervisor = Supervisor(ledger, runs, SystemClock(), process.session_alive)
        for chain in ledger.chains(ledger.chain(name).queue):
            if chain.name != name and chain.status is ChainStatus.RUNNING:
                supervisor.look_at(chain.name)


def _ask(
    ledger: Ledger, runs: PrefectRuns, own: OwnRun, chain: str, ordinal: int, manners: Manners
) -> State[Any] | None:
    try:
        state = ask(ledger, runs, own, chain, ordinal, manners)
        if state is not None:
            get_run_logger().info("Suspended: %s", state.message)
        return state
    except Exception as error:  # noqa: BLE001 - the chain is exhausted all the same, and a command needs no form
        get_run_logger().warning("Cannot ask for more: %s", described(error))
        return None


def _hold(runs: PrefectRuns, own: OwnRun) -> None:
    """Leaves the run to a person, where it is the run that was paused; where only the chain was, the run ends.

    Raises:
        Pause: it waits for Resume, or goes on already in another process.
    """
    state: State[Any] | None = None
    with suppress(Exception):  # then the run ends, and `perpetual resume` goes on with the chain
        state = runs.hold(own.id, own.since)
    if state is not None:
        raise Pause(state=state)


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


def _message(end: SessionEnd, own: OwnRun, chain: str) -> str:
    message = end.reason.message
    if end.state is SessionState.EXHAUSTED:
        message += f"; `perpetual approve {chain}` lets it go on"
    if end.state == "Wrapped" and own.deployment_id is None and LAUNCHED not in os.environ:
        message += f"; no deployment, so start the next session yourself, or use `perpetual run` (chain {chain})"
    return message


def _own_run(runs: PrefectRuns) -> OwnRun:
    own = OwnRun.of(current_flow_run())
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
    """When the session must be over, for this process will be ended, as far as its environment, or the flow's own
    timeout, tells."""
    found = [deadline.at for deadline in deadlines(os.environ)]
    context = FlowRunContext.get()
    if context is not None and context.flow is not None and context.flow_run is not None:
        started = context.flow_run.start_time
        limit = flow_timeout_deadline(context.flow.timeout_seconds, started.timestamp() if started else time.time())
        found += [limit.at] if limit else []
    return min(found) - LAST_SECONDS if found else None


def _new_chain_name(own: OwnRun) -> str:
    context = FlowRunContext.get()
    flow_name = context.flow.name if context and context.flow else "chain"
    slug = re.sub(r"[^a-z0-9]+", "-", flow_name.lower()).strip("-")[:40]
    # Made of the run's own id, so that a retry of the same run finds the same chain.
    return f"{slug}-{own.created_on}-{own.id[:8]}"


class _Label:
    """Names a run after what it does, and tags it: an observer.

    A session does not wait for its name. A name is a comfort, and nothing depends on it.
    """

    def __init__(self, runs: PrefectRuns, own: OwnRun) -> None:
        self._runs = runs
        self._own = own
        self._name = own.name
        self._tags = own.tags
        self._waits = False
        self._naming: Thread | None = None

    def __call__(self, moment: Moment) -> None:
        match moment:
            case FenceReached(chain, ordinal):
                self._waits = True
                self._set(f"{run_name(chain, ordinal)} waits for session {ordinal - 1} to end", chain_tag(chain))
            case SessionStarted(chain, ordinal):
                self._waits = False
                self._set(run_name(chain, ordinal), chain_tag(chain))

    def close(self, seconds: float) -> None:
        """Gives a run that has waited for nothing its own name back, and waits so long until it has it."""
        if self._waits:
            self._set(self._own.name)
        self._join(seconds)

    def _join(self, seconds: float) -> None:
        if self._naming is not None:
            self._naming.join(seconds)

    def _set(self, name: str, *tags: str) -> None:
        wanted = tuple(dict.fromkeys((*self._tags, *tags)))
        if (name, wanted) == (self._name, self._tags):
            return
        self._join(MOST_ASKED_SECONDS)
        self._name, self._tags = name, wanted

        def work() -> None:
            with suppress(Exception):
                self._runs.label(self._own.id, name, wanted)

        self._naming = Thread(target=copy_context().run, args=(work,), name="perpetual label", daemon=True)
        self._naming.start()
