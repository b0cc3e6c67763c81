"""A chain at a glance: the object that `perpetual status --json` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from perpetual_blocks.budget import Budget
from perpetual_blocks.clock import isoformat
from perpetual_blocks.session.advice import advice
from perpetual_blocks.session.chain import Chain, SessionRecord, SessionState
from perpetual_blocks.session.documents import chain_usage, checkpoint_sizes
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.metrics import resume_cost, success_metrics
from perpetual_blocks.work import ItemStatus


def chain_status(ledger: Ledger, name: str) -> dict[str, Any]:
    """The chain, its queue's items by status and other chains, its sessions, its usage, the five success metrics and
    what they advise.

    Raises:
        UnknownChain: there is no such chain.
    """
    chain, sessions, counts = ledger.chain(name), ledger.sessions(name), ledger.counts(name)
    return {
        **in_short(ledger, chain, sessions, counts),
        "usage": chain_usage(sessions),
        "metrics": success_metrics(sessions, counts),
        "resume": resume_cost(sessions),
        "advice": advice(sessions, checkpoint_sizes(ledger, name)),
        "updated_at": isoformat(chain.updated_at),
    }


def in_short(
    ledger: Ledger, chain: Chain, sessions: Sequence[SessionRecord], counts: Mapping[ItemStatus, int]
) -> dict[str, Any]:
    """As much of it as is cheap to ask for, again and again."""
    return {
        "chain": chain.name,
        "status": chain.status.value,
        "reason": chain.reason,
        "agent": chain.agent,
        "queue": chain.queue,
        "takes": str(chain.selector),
        "others": sorted(one.name for one in ledger.chains(chain.queue) if one.name != chain.name),
        "items": {"total": sum(counts.values()), **{status.value: count for status, count in counts.items()}},
        "resume_at": isoformat(chain.resume_at),
        "asks_until": isoformat(chain.asks_until),
        "approvals": [{**one.to_json(), "at": isoformat(one.at)} for one in chain.approvals],
        "sessions": [_session(session, chain.budget) for session in sessions],
    }


def _session(session: SessionRecord, budget: Budget) -> dict[str, Any]:
    # A session writes its limits down when it ends; until then its units' usage says how full its own are.
    running = [
        {
            "name": limit.name,
            "resource": limit.resource,
            "amount": limit.amount,
            "used": session.usage.get(limit.resource, 0.0),
        }
        for limit in budget
        if limit.scope == "session"
    ]
    return {
        "ordinal": session.ordinal,
        "flow_run_id": session.flow_run_id,
        "stop_reason": session.stop_reason,
        "stop_message": session.stop_message,
        "state": session.state.value,
        "units": session.units,
        "usage": session.usage,
        "limits": running if session.state is SessionState.RUNNING else session.limits,
        "graceful": session.graceful,
        "host": session.host,
        "pid": session.pid,
        "started_at": isoformat(session.started_at),
        "ended_at": isoformat(session.ended_at),
        "ends_at": isoformat(session.ends_at),
        "waited_seconds": session.waited,
        "resume_seconds": session.resume_seconds,
        "steps": session.steps,
        "passed_over": session.passed_over,
        "choices": session.choices,
    }
