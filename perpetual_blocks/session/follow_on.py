"""The outbox: follow-ons are recorded with the end of their session, created from there, and moved when quota frees."""

from functools import partial

from perpetual_blocks.budget import Budget, BudgetMonitor
from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import RunsUnavailable
from perpetual_blocks.faults import reached
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.continuation import outages_in_a_row
from perpetual_blocks.session.ports import Ledger, Runs
from perpetual_blocks.work import ItemStatus

MOST_JITTER_SECONDS = 60.0
SOONER_SECONDS = MOST_JITTER_SECONDS + 5.0
"""A follow-on is moved only when it can start so much earlier: by more than its jitter."""

LOOKED_AT = 20


def create_follow_ons(ledger: Ledger, runs: Runs, chain: str | None = None, patience: Patience = IMPATIENT) -> int:
    """Creates the flow runs that are recorded and not yet created; returns how many.

    Safe to call from anywhere and at any time: the idempotency key makes one run of it, whoever calls how often.
    """
    pending = ledger.pending_follow_ons(chain)
    for follow_on in pending:
        flow_run_id = patience(partial(runs.create, follow_on), lambda error: isinstance(error, RunsUnavailable))
        reached("follow_on.created")
        ledger.follow_on_created(follow_on, flow_run_id)
    return len(pending)


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
    """When the first of a chain's next items fits every window and total; None if none ever does.

    A chain that waits after an outage waits it out, whatever fits.
    """
    chain = ledger.chain(name)
    if chain.resume_at is not None and outages_in_a_row(ledger.sessions(name)):
        return chain.resume_at
    budget = Budget.from_json(chain.settings.get("budget") or [])
    account = budget_record(ledger, chain, budget, clock.now(), before=chain.ordinal + 1)
    monitor = BudgetMonitor(budget, clock, {}, account)
    items = ledger.items(name, ItemStatus.AVAILABLE, LOOKED_AT)
    moments = [moment for item in items if (moment := monitor.ready_at(item.expectation)) is not None]
    return min(moments, default=None)
