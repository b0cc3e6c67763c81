"""The outbox: follow-ons are recorded with the end of their session, and created from there."""

from perpetual_blocks.faults import reached
from perpetual_blocks.session.ports import Ledger, Runs


def create_follow_ons(ledger: Ledger, runs: Runs, chain: str | None = None) -> int:
    """Creates the flow runs that are recorded and not yet created; returns how many.

    Safe to call from anywhere and at any time: the idempotency key makes one run of it, whoever calls how often.
    """
    pending = ledger.pending_follow_ons(chain)
    for follow_on in pending:
        flow_run_id = runs.create(follow_on)
        reached("follow_on.created")
        ledger.follow_on_created(follow_on, flow_run_id)
    return len(pending)
