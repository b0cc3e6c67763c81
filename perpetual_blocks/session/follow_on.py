"""The outbox: follow-ons are recorded with the end of their session, created from there, and moved when quota frees."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from perpetual_blocks.budget import BudgetMonitor
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import RunsUnavailable
from perpetual_blocks.faults import reached
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.chain import invitation
from perpetual_blocks.session.continuation import WAITING
from perpetual_blocks.session.ledger import Fence, FollowOn, Ledger
from perpetual_blocks.session.manners import Manners
from perpetual_blocks.session.ports import Runs
from perpetual_blocks.work import ItemStatus

MOST_JITTER_SECONDS = 60.0
SOONER_SECONDS = MOST_JITTER_SECONDS + 5.0
"""A follow-on is moved only when it can start so much earlier: by more than its jitter."""

LOOKED_AT = 20

FollowOnMaker = Callable[[str, Fence, float | None], FollowOn]
"""Makes the follow-on of a session, given the chain's uid, the fence, and when it is to start."""

WAITS_FOR_ROOM = ("budget", "nothing-fits", "backing-off", WAITING)
"""Stop reasons after which the follow-on may start as soon as an item can be claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTemplate:
    """What a run that goes on is made of. Kept with the session, so that whoever finds it dead can make one.

    Attributes:
        parameters: As they were given to the run: blocks by reference.
    """

    deployment_id: str
    parameters: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    job_variables: dict[str, Any] = field(default_factory=dict)
    work_queue: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the session's row keeps it."""
        return {**asdict(self), "tags": list(self.tags)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RunTemplate":
        """From a session's row."""
        return cls(**{**value, "tags": tuple(value["tags"])})

    def follow_on(self, chain: str, uid: str, ordinal: int, not_before: float | None, renewal: str = "") -> FollowOn:
        """The run that is to be session `ordinal` of the chain."""
        return FollowOn(
            chain=chain,
            ordinal=ordinal,
            idempotency_key=invitation(uid, ordinal, renewal),
            deployment_id=self.deployment_id,
            parameters={**self.parameters, "chain": chain},
            run_name=run_name(chain, ordinal),
            tags=tuple(dict.fromkeys((*self.tags, chain_tag(chain)))),
            job_variables=self.job_variables,
            work_queue=self.work_queue,
            not_before=not_before,
        )


def chain_tag(chain: str) -> str:
    """The tag that all runs of a chain have."""
    return f"chain:{chain}"


def run_name(chain: str, ordinal: int) -> str:
    """What the runs list shows."""
    return f"{chain} · {ordinal}"


def create_follow_ons(
    ledger: Ledger, runs: Runs, chain: str | None = None, patience: Patience = IMPATIENT, *, but: str | None = None
) -> int:
    """Creates the flow runs that are recorded and not yet created; returns how many.

    Safe to call from anywhere and at any time: the idempotency key makes one run of it, whoever calls how often.

    Args:
        chain: Those of this chain only.
        patience: For how long each is tried again while Prefect's API is away.
        but: Not those of this chain: its next session is about to begin anyway.

    Raises:
        Exception: what went wrong with the first that could not be created; the others were.
    """
    pending = [follow_on for follow_on in ledger.pending_follow_ons(chain) if follow_on.chain != but]
    failed: list[Exception] = []
    for follow_on in pending:
        try:
            create_follow_on(ledger, runs, follow_on, patience)
        except Exception as error:  # noqa: BLE001 - a deployment that is gone must not keep other chains waiting
            failed.append(error)
    if failed:
        raise failed[0]
    return len(pending)


def create_follow_on(ledger: Ledger, runs: Runs, follow_on: FollowOn, patience: Patience = IMPATIENT) -> str:
    """Creates the flow run of a follow-on that is recorded, and ticks it off; returns the run's id."""
    flow_run_id = patience(partial(runs.create, follow_on), lambda error: isinstance(error, RunsUnavailable))
    reached("follow_on.created")
    ledger.follow_on_created(follow_on, flow_run_id)
    return flow_run_id


def jitter(uid: str, wait: float) -> float:
    """Seconds, up to a twentieth of the wait and a minute at most, that keep chains from starting all at one moment."""
    return min(MOST_JITTER_SECONDS, wait / 20) * (int(uid[:8], 16) / 0xFFFFFFFF)


def move_follow_ons(ledger: Ledger, runs: Runs, clock: Clock) -> int:
    """Lets those follow-ons start earlier whose quota has become free earlier; returns how many.

    That happens when somebody who shares a pool spends less than was reserved, or a budget was raised.
    """
    moved = 0
    for follow_on in ledger.waiting_follow_ons():
        ready = ready_at(ledger, follow_on.chain, clock)
        if ready is None or follow_on.flow_run_id is None or follow_on.not_before is None:
            continue
        if ready < follow_on.not_before - SOONER_SECONDS:
            runs.move(follow_on.flow_run_id, ready)
            ledger.follow_on_moved(follow_on, ready)
            moved += 1
    return moved


def ready_at(ledger: Ledger, name: str, clock: Clock) -> float | None:
    """When the first of a chain's next items fits every window and total, is not left alone after a failed attempt, and
    it is not to be quiet. Now where it waits for other chains of its queue, and they leave it nothing any more.

    None if none ever does, or if the chain waits for something else: a back-off is not over when a quota is free.
    """
    chain = ledger.chain(name)
    latest = ledger.sessions(name)[-1:]
    if not latest or (latest[0].stop_reason or "").partition(":")[0] not in WAITS_FOR_ROOM:
        return None
    items = ledger.items(name, ItemStatus.AVAILABLE, LOOKED_AT, taken=True)
    if not items and latest[0].stop_reason == WAITING and not ledger.is_elsewhere(name):
        return clock.now()
    budget = chain.budget
    account = budget_record(ledger, chain, budget, clock.now(), before=chain.ordinal + 1)
    monitor = BudgetMonitor(budget, clock, {}, account)
    fitting = [(item, moment) for item in items if (moment := monitor.ready_at(item.expectation)) is not None]
    if not fitting:
        return None
    ready = min(max(moment, item.retry_at or 0.0) for item, moment in fitting)
    return Manners.of(chain.settings).quiet_until(ready) or ready
