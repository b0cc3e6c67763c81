"""The five success metrics, against figures worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from perpetual_blocks.session.chain import SessionRecord, SessionState
from perpetual_blocks.session.metrics import (
    context_preservation,
    graceful_shutdowns,
    resource_efficiency,
    resume_overhead,
    success_metrics,
    work_completion_rate,
)
from perpetual_blocks.work import ItemStatus


def session(ordinal: int = 1, **changes: Any) -> SessionRecord:
    """A session of 100 seconds that ended in order."""
    return replace(
        SessionRecord(
            ordinal=ordinal,
            epoch=ordinal,
            state=SessionState.WRAPPED,
            flow_run_id=None,
            deployment_id=None,
            host="here",
            pid=1,
            process_started=0.0,
            started_at=1000.0,
            ended_at=1100.0,
            graceful=True,
        ),
        **changes,
    )


def used(*shares: float) -> list[dict[str, Any]]:
    return [{"resource": "tokens", "used": 200 * share, "amount": 200.0, "threshold": 0.85} for share in shares]


def test_resource_efficiency() -> None:
    """How full the fullest limit was, on average over the sessions that ended for their budget."""
    sessions = [
        session(1, stop_reason="budget:tokens", limits=used(0.3, 0.9)),
        session(2, stop_reason="nothing-fits", limits=used(0.5)),
        session(3, stop_reason="budget:calls", limits=used(1.1)),
        session(4, stop_reason="queue-empty", limits=used(0.01)),
        session(5, stop_reason="signal", limits=used(0.02)),
        session(6, stop_reason="nothing-fits", limits=[]),
        session(7, stop_reason=None, limits=used(0.04)),
    ]

    assert resource_efficiency(sessions) == pytest.approx((0.9 + 0.5 + 1.1) / 3)
    assert resource_efficiency(sessions[3:]) is None


def test_resume_overhead() -> None:
    """The time before the first unit, as a share of the time of the sessions that resumed and have ended."""
    sessions = [
        session(1, resume_seconds=50.0),
        session(2, resume_seconds=1.0),
        session(3, resume_seconds=2.0, started_at=1000.0, ended_at=1020.0),
        session(4, resume_seconds=None),
        session(5, resume_seconds=7.0, ended_at=None),
    ]

    assert resume_overhead(sessions) == pytest.approx(3 / 120)
    assert resume_overhead(sessions[:1]) is None


def test_context_preservation() -> None:
    """The share of the verified fields that agreed; sessions that had nothing to verify are left out."""
    sessions = [session(1), session(2, verified=(6, 6)), session(3, verified=(4, 3))]

    assert context_preservation(sessions) == 0.9
    assert context_preservation(sessions[:1]) is None


def test_graceful_shutdowns() -> None:
    """The share of the ended sessions that ended by their own shutdown; one at work is not counted yet."""
    sessions = [
        session(1),
        session(2, state=SessionState.CRASHED, graceful=False),
        session(3, state=SessionState.FAILED, graceful=False),
        session(4, state=SessionState.FINISHED),
        session(5, state=SessionState.RUNNING, graceful=False),
    ]

    assert graceful_shutdowns(sessions) == 0.5
    assert graceful_shutdowns(sessions[4:]) is None


def test_work_completion_rate() -> None:
    """The share of the items still wanted that is completed: dead letters count against it, cancelled ones do not."""
    counts = {ItemStatus.COMPLETED: 6, ItemStatus.DISCARDED: 1, ItemStatus.AVAILABLE: 1, ItemStatus.CANCELLED: 5}

    assert work_completion_rate(counts) == 0.75
    assert work_completion_rate({ItemStatus.CANCELLED: 3}) is None


def test_there_is_nothing_to_measure_at_first() -> None:
    """A new chain has all five metrics, and none of them has a value."""
    assert success_metrics([], {}) == {
        "resource_efficiency": None,
        "resume_overhead": None,
        "context_preservation": None,
        "graceful_shutdowns": None,
        "work_completion_rate": None,
    }


def test_metrics_are_rounded() -> None:
    """The five metrics are given to four places."""
    sessions = [session(1, stop_reason="budget:tokens", limits=used(1 / 3))]

    metrics = success_metrics(sessions, {ItemStatus.COMPLETED: 2, ItemStatus.AVAILABLE: 1})

    assert metrics["resource_efficiency"] == 0.3333
    assert metrics["work_completion_rate"] == 0.6667
    assert metrics["graceful_shutdowns"] == 1.0
