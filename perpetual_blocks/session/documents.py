"""The documents of a session, made from what the ledger says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from perpetual_blocks.budget import BudgetMonitor, Reading
from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.clock import isoformat
from perpetual_blocks.handoff import CalibrationLine, Handoff, LimitLine, SessionLine, WorkLine
from perpetual_blocks.session.advice import advice
from perpetual_blocks.session.attempts import Story
from perpetual_blocks.session.chain import SessionRecord
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.metrics import success_metrics
from perpetual_blocks.session.ports import Document, Fence, Ledger
from perpetual_blocks.usage import add
from perpetual_blocks.work import Item, ItemStatus

LISTED = 10
"""How many items, and how many sessions, a handoff lists."""


def chain_folder(chain: str, uid: str) -> str:
    """Where a chain's documents lie. The uid keeps a later chain of the same name from finding this one's outcomes."""
    return f"perpetual/{chain}-{uid}"


def unit_key(chain: str, uid: str, item: Item) -> str:
    """The key of a unit's outcome; never used for another unit.

    An interrupted unit has the same key when it is tried again, and so finds what was persisted; one that failed gets
    a new one. A strange id is escaped; one that no file name could hold, or not on every system, is cut and marked with
    its digest.
    """
    name = quote(item.id, safe="")
    if len(name) > 120 or not _is_file_name(name):
        # quote() never lets a "=" through, so no other id looks like this one.
        name = f"{name[:80].rstrip('%').replace('.', '_')}={digest(item.id)[:24]}"
    attempt = f"-{item.failures}" if item.failures else ""
    return f"{chain_folder(chain, uid)}/units/{name}/{item.units + 1}{attempt}"


_ESCAPE = re.compile(r"%[0-9A-F]{2}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def _is_file_name(name: str) -> bool:
    """Whether an escaped id names the same file on every system, and no other id's.

    Two ids that differ in capitals are one name on macOS and Windows; Windows drops a dot at the end, and takes some
    names for devices.
    """
    plain = _ESCAPE.sub("", name)
    return plain == plain.lower() and not name.endswith(".") and _DEVICE.fullmatch(name) is None


def chain_usage(sessions: Sequence[SessionRecord]) -> dict[str, float]:
    """What a chain's sessions have used together."""
    total: dict[str, float] = {}
    for session in sessions:
        total = add(total, session.usage)
    return total


def limits_now(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Each limit with what is used of it, as the session's row keeps it."""
    return [
        {
            "name": reading.limit.name,
            "resource": reading.limit.resource,
            "used": round(reading.used, 6),
            "amount": reading.amount,
            "reserve": round(reading.reserve, 6),
        }
        for reading in readings
    ]


def checkpoints_so_far(sessions: Sequence[SessionRecord], checkpoints: Sequence[Document], ordinal: int) -> int:
    """The sequence number of a session's checkpoint: how many the chain has written, with this one.

    A session that ended in order has written one, be it still there or not.
    """
    written = {session.ordinal for session in sessions if session.graceful}
    return len(written | {document.ordinal for document in checkpoints} | {ordinal})


def checkpoint_now(ledger: Ledger, fence: Fence, task: str, now: float) -> Checkpoint:
    """What a checkpoint says at this moment."""
    chain, sessions = ledger.chain(fence.chain), ledger.sessions(fence.chain)
    upcoming = ledger.items(fence.chain, ItemStatus.AVAILABLE, 1)
    return Checkpoint(
        chain=chain.name,
        uid=chain.uid,
        ordinal=fence.ordinal,
        checkpoints=checkpoints_so_far(sessions, ledger.documents(fence.chain, "checkpoint"), fence.ordinal),
        agent=chain.agent,
        task=task,
        items={status.value: count for status, count in ledger.counts(fence.chain).items()},
        units=sum(session.units for session in sessions),
        context=chain.context,
        context_version=chain.context_version,
        next_action=upcoming[0].next_action if upcoming else None,
        usage=chain_usage(sessions),
        at=isoformat(now) or "",
    )


def handoff_now(
    ledger: Ledger,
    fence: Fence,
    task: str,
    now: float,
    end: Ending,
    monitor: BudgetMonitor,
    *,
    passed_over: Mapping[str, str],
    choices: Sequence[str],
    resumed: Sequence[str],
    failed_steps: Sequence[str],
    commit: str | None,
    outlook: str | None = None,
) -> Handoff:
    """What the handoff says at this moment, before the agent adds to it."""
    chain, sessions, counts = (
        ledger.chain(fence.chain),
        ledger.sessions(fence.chain),
        ledger.counts(fence.chain),
    )
    limits = limits_now(monitor.readings())
    # As it will be when it is closed: its own end counts in the metrics, too.
    this = sessions[-1] = replace(
        sessions[-1],
        state=end.session,
        stop_reason=end.reason.code,
        stop_message=end.reason.message,
        ended_at=now,
        graceful=True,
        limits=limits,
    )
    return Handoff(
        chain=fence.chain,
        ordinal=fence.ordinal,
        agent=chain.agent,
        task=task,
        state=end.session,
        stop_reason=end.reason.code,
        stop_message=end.reason.message,
        started_at=isoformat(this.started_at) or "",
        ended_at=isoformat(now) or "",
        items={status.value: count for status, count in counts.items()},
        units=this.units,
        units_total=sum(session.units for session in sessions),
        usage=this.usage,
        usage_total=chain_usage(sessions),
        limits=[LimitLine(**limit) for limit in limits],
        next_items=[_line(item) for item in ledger.items(fence.chain, ItemStatus.AVAILABLE, LISTED)],
        discarded=[
            _dead_letter(ledger.story(fence.chain, item.id))
            for item in ledger.items(fence.chain, ItemStatus.DISCARDED, LISTED)
        ],
        sessions=[_session_line(session) for session in sessions[-LISTED - 1 : -1]],
        resumed=list(resumed),
        steps=list(failed_steps),
        passed_over=dict(passed_over),
        choices=list(choices),
        calibration=_calibration(monitor),
        advice=advice(sessions, checkpoint_sizes(ledger, fence.chain)),
        resume_at=isoformat(end.reason.resume_at),
        context=chain.context,
        metrics=success_metrics(sessions, counts),
        commit=commit,
        outlook=outlook,
        flow_run_id=this.flow_run_id,
    )


def checkpoint_sizes(ledger: Ledger, chain: str) -> list[int]:
    """The sizes of a chain's checkpoints in bytes, the oldest first."""
    return [document.size for document in reversed(ledger.documents(chain, "checkpoint"))]


def _calibration(monitor: BudgetMonitor) -> list[CalibrationLine]:
    return [
        CalibrationLine(resource=resource, kind=kind, **figures)
        for resource, forecast in monitor.forecasts.items()
        for kind, figures in forecast.calibration().items()
    ]


def _line(item: Item) -> WorkLine:
    return WorkLine(
        id=item.id,
        kind=item.kind,
        units=item.units,
        progress=item.progress,
        next_action=item.next_action,
        error=item.error,
    )


def _dead_letter(story: Story) -> WorkLine:
    told = {"failed": story.failed, "cut_off": story.cut_off, "sessions": story.sessions, "wasted": story.wasted}
    return _line(story.item).model_copy(update=told)


def _session_line(session: SessionRecord) -> SessionLine:
    return SessionLine(
        ordinal=session.ordinal,
        state=session.state,
        units=session.units,
        usage=session.usage,
        stop=session.stop_message or "",
        fullness=max((limit["used"] / limit["amount"] for limit in session.limits), default=None),
    )
