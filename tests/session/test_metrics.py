"""The five success metrics, what a resume costs, and what is advised, against figures worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from perpetual_blocks.session.advice import advice
from perpetual_blocks.session.chain import SessionRecord, SessionState
from perpetual_blocks.session.metrics import (
    context_preservation,
    graceful_shutdowns,
    resource_efficiency,
    resume_cost,
    resume_overhead,
    success_metrics,
    useful_share,
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


def limit(name: str, used: float, amount: float = 100.0) -> dict[str, Any]:
    return {"name": name, "resource": name.partition("/")[0], "used": used, "amount": amount}


def test_useful_share() -> None:
    """What units used of the limit that ended the session, on average; other ends, windows and gauges say nothing."""
    sessions = [
        session(1, stop_reason="budget:seconds", limits=[limit("seconds", 90), limit("tokens", 99)]),
        session(2, stop_reason="nothing-fits", limits=[limit("tokens", 8), limit("seconds", 3)]),
        session(3, stop_reason="budget:tokens", limits=[limit("tokens/day", 99), limit("tokens", 5)]),
        session(4, stop_reason="budget:memory", limits=[limit("memory", 99)]),
        session(5, stop_reason="queue-empty", limits=[limit("tokens", 1)]),
        session(6, stop_reason="budget:calls", limits=[]),
    ]
    sessions = [replace(one, usage={"seconds": 4.0, "tokens": 8.0}) for one in sessions]

    assert useful_share(sessions) == pytest.approx((0.04 + 0.08) / 2)
    assert useful_share(sessions[2:]) is None


def test_resume_cost() -> None:
    """What first units used beyond the mean of all, and the seconds before them; the first session resumes nothing."""
    sessions = [
        session(1, resume_seconds=9.0, units=5, usage={"tokens": 500.0, "calls": 5.0}, first_usage={"tokens": 9e9}),
        session(2, resume_seconds=1.0, units=3, usage={"tokens": 700.0, "calls": 3.0, "seconds": 8.0}),
        session(3, resume_seconds=2.0, units=2, usage={"tokens": 800.0, "calls": 2.0, "cost": 0.0}),
        session(4),
    ]
    sessions[1] = replace(sessions[1], first_usage={"tokens": 500.0, "calls": 1.0})
    sessions[2] = replace(sessions[2], first_usage={"tokens": 600.0})

    assert resume_cost(sessions) == {"seconds": 1.5, "tokens": (500 + 600) / 2 - 2000 / 10, "calls": 0.0}
    assert resume_cost(sessions[:1]) == {}
    assert resume_cost([]) == {}


def test_little_work_in_a_session_is_advised_against() -> None:
    """Sessions whose units get less than a tenth of what ended them do not pay."""
    short = session(1, stop_reason="budget:seconds", limits=[limit("seconds", 95)], usage={"seconds": 9.9})

    assert advice([short], []) == [
        "Units used 9.9% of the limits that ended their sessions: "
        "raise these limits, or split the items that do not fit."
    ]
    assert advice([replace(short, usage={"seconds": 10.0})], []) == []


def test_slow_resumes_are_advised_against() -> None:
    """More than 5 % of the time before the first unit, over three sessions, is too much."""
    sessions = [session(1), session(2, resume_seconds=6.0), session(3, resume_seconds=6.5)]

    assert advice(sessions, []) == [
        "Resuming takes 6.2% of the sessions' time: let sessions be longer, or start with less to load."
    ]
    assert advice(sessions[:2], []) == []
    assert advice([sessions[0], *(replace(one, resume_seconds=5.0) for one in sessions[1:])], []) == []


@pytest.mark.parametrize(
    ("checkpoints", "advised"),
    [
        ([9000, 8000, 10_000, 12_000, 16_000, 17_000], True),
        ([8000, 10_000, 12_000, 12_000, 17_000], False),
        ([8192, 10_000, 12_000, 16_000, 16_384], False),
        ([8192, 10_000, 12_000, 16_000, 16_385], True),
        ([9000, 10_000, 12_000, 16_000, 18_000], False),
        ([1000, 2000, 4000, 8000, 16_000], False),
        ([8000, 16_000, 32_000, 64_000], False),
        ([8000, 7000, 16_000, 32_000, 64_000], False),
        ([], False),
    ],
)
def test_a_checkpoint_that_grows_is_advised_against(checkpoints: list[int], advised: bool) -> None:
    """Five in a row that grow, to more than twice the first of them and above 16 KiB, grow without bound."""
    said = advice([], checkpoints)

    assert bool(said) == advised
    if advised:
        assert said[0].startswith(f"The checkpoint grew from {checkpoints[-5] / 1024:.1f} KiB to ")
