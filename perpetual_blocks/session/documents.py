"""The documents of a session, made from what the ledger says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from perpetual_blocks.budget import Forecast, Reading
from perpetual_blocks.checkpoint import Checkpoint, digest
from perpetual_blocks.clock import isoformat
from perpetual_blocks.handoff import (
    CalibrationLine,
    Handoff,
    HistoryLine,
    LimitLine,
    SessionLine,
    WorkLine,
)
from perpetual_blocks.handoff.chart import DRAWN
from perpetual_blocks.session.advice import advice
from perpetual_blocks.session.attempts import Story
from perpetual_blocks.session.chain import ChainStatus, SessionRecord, SessionState
from perpetual_blocks.session.ledger import Document, Ledger
from perpetual_blocks.session.metrics import success_metrics
from perpetual_blocks.telemetry import Level
from perpetual_blocks.usage import add
from perpetual_blocks.work import Item, ItemStatus
from perpetual_blocks.work.item import UNIT

LISTED = 10
"""How many items, and how many sessions, a handoff lists."""


def chain_folder(chain: str, uid: str) -> str:
    """Where a chain's documents lie. The uid keeps a later chain of the same name from finding this one's outcomes."""
    return f"perpetual/{chain}-{uid}"


def document_folders(chain: str, uid: str) -> list[str]:
    """Where a chain's documents, and its queue's outcomes, lie; a backup may lie beside these folders."""
    return [f"{chain_folder(chain, uid)}/{name}" for name in ("checkpoints", "handoffs", "units", "batches")]


def document_key(chain: str, uid: str, kind: Literal["checkpoint", "handoff"], ordinal: int, mark: str) -> str:
    """The key of a session's document.

    Args:
        mark: Random, because a session may come to write it a second time, and no key is used twice.
    """
    suffix = "json" if kind == "checkpoint" else "md"
    return f"{chain_folder(chain, uid)}/{kind}s/{ordinal:06d}-{mark}.{suffix}"


@dataclass(frozen=True, slots=True)
class UnitKeys:
    """The keys of the outcomes of a queue's units."""

    queue: str
    uid: str

    def unit(self, item: Item) -> str:
        """Of the item's next unit by itself."""
        return unit_key(self.queue, self.uid, item)

    def batch(self, token: str) -> str:
        """Of the units of a batch."""
        return f"{chain_folder(self.queue, self.uid)}/batches/{token}"

    def earlier(self, item: Item) -> list[str]:
        """Where the outcome of an item's next unit may lie already."""
        return [self.unit(item) if claim == UNIT else self.batch(claim) for claim in item.earlier_claims]


def unit_key(queue: str, uid: str, item: Item) -> str:
    """The key of a unit's outcome; never used for another unit.

    It is of the chain that the queue belongs to, whichever chain runs the unit.

    An interrupted unit has the same key when it is tried again, and so finds what was persisted; one that failed gets
    a new one. A strange id is escaped; one that no file name could hold, or not on every system, is cut and marked with
    its digest.
    """
    name = quote(item.id, safe="")
    if len(name) > 120 or not _is_file_name(name):
        # quote() never lets a "=" through, so no other id looks like this one.
        name = f"{name[:80].rstrip('%').replace('.', '_')}={digest(item.id)[:24]}"
    attempt = f"-{item.failures}" if item.failures else ""
    return f"{chain_folder(queue, uid)}/units/{name}/{item.units + 1}{attempt}"


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


def levels_now(readings: Sequence[Reading]) -> tuple[Level, ...]:
    """The same, as observers are told of it."""
    return tuple(Level(r.limit.name, r.limit.resource, r.limit.scope, r.used, r.amount) for r in readings)


def checkpoints_so_far(sessions: Sequence[SessionRecord], checkpoints: Sequence[Document], ordinal: int) -> int:
    """The sequence number of a session's checkpoint: how many the chain has had, with this one.

    Each session that has ended has left one, be it still there or not: what it could not write, the next one did.
    """
    written = {session.ordinal for session in sessions if session.state is not SessionState.RUNNING}
    return len(written | {document.ordinal for document in checkpoints} | {ordinal})


def checkpoint_now(ledger: Ledger, name: str, ordinal: int, task: str, now: float) -> Checkpoint:
    """What a session's checkpoint says at this moment."""
    chain, sessions = ledger.chain(name), ledger.sessions(name)
    upcoming = ledger.items(name, ItemStatus.AVAILABLE, 1, taken=True)
    return Checkpoint(
        chain=chain.name,
        uid=chain.uid,
        ordinal=ordinal,
        checkpoints=checkpoints_so_far(sessions, ledger.documents(name, "checkpoint"), ordinal),
        agent=chain.agent,
        task=task,
        items={status.value: count for status, count in ledger.counts(name).items()},
        units=sum(session.units for session in sessions),
        context=chain.context,
        context_version=chain.context_version,
        next_action=upcoming[0].next_action if upcoming else None,
        usage=chain_usage(sessions),
        at=isoformat(now) or "",
    )


def handoff_now(
    ledger: Ledger,
    this: SessionRecord,
    name: str,
    task: str,
    *,
    chain_status: ChainStatus,
    resume_at: float | None = None,
    calibration: Sequence[CalibrationLine] = (),
    resumed: Sequence[str] = (),
    failed_steps: Sequence[str] = (),
    commit: str | None = None,
    checkpoint: str | None = None,
    outlook: str | None = None,
    next_run_id: str | None = None,
) -> Handoff:
    """What a session's handoff says at this moment, before the agent adds to it.

    Args:
        this: The session as it will be, or is, when it has ended; its own end counts in the metrics, too.
        chain_status: What becomes of the chain.
        next_run_id: The flow run that goes on, where it is there already.
    """
    chain, counts = ledger.chain(name), ledger.counts(name)
    sessions = [this if session.ordinal == this.ordinal else session for session in ledger.sessions(name)]
    return Handoff(
        chain=name,
        ordinal=this.ordinal,
        agent=chain.agent,
        task=task,
        state=this.state,
        chain_status=chain_status,
        stop_reason=this.stop_reason or "",
        stop_message=this.stop_message or "",
        started_at=isoformat(this.started_at) or "",
        ended_at=isoformat(this.ended_at) or "",
        items={status.value: count for status, count in counts.items()},
        units=this.units,
        units_total=sum(session.units for session in sessions),
        usage=this.usage,
        usage_total=chain_usage(sessions),
        limits=[LimitLine(**limit) for limit in this.limits],
        next_items=[_line(item) for item in ledger.items(name, ItemStatus.AVAILABLE, LISTED, taken=True)],
        discarded=[
            _dead_letter(ledger.story(name, item.id)) for item in ledger.items(name, ItemStatus.DISCARDED, LISTED)
        ],
        sessions=[_session_line(session) for session in sessions if session.ordinal < this.ordinal][-LISTED:],
        resumed=list(resumed),
        steps=list(failed_steps),
        passed_over=dict(this.passed_over),
        choices=list(this.choices),
        calibration=list(calibration),
        advice=advice(sessions, checkpoint_sizes(ledger, name)),
        resume_at=isoformat(resume_at),
        context=chain.context,
        metrics=success_metrics(sessions, counts),
        commit=commit,
        checkpoint=checkpoint,
        outlook=outlook,
        flow_run_id=this.flow_run_id,
        previous_run_id=next((one.flow_run_id for one in sessions if one.ordinal == this.ordinal - 1), None),
        next_run_id=next_run_id,
        history=[history_line(session) for session in sessions if session.ordinal <= this.ordinal][-DRAWN:],
    )


def next_run(ledger: Ledger, chain: str, ordinal: int) -> str | None:
    """The flow run that is to be the session after that one, where it was created."""
    found = ledger.follow_on(chain, ordinal + 1)
    return found[0].flow_run_id if found else None


def history_line(session: SessionRecord) -> HistoryLine:
    """How full a session's limits were when it ended."""
    return HistoryLine(
        ordinal=session.ordinal,
        used={limit["name"]: limit["used"] / limit["amount"] for limit in session.limits},
        graceful=session.graceful or session.state is SessionState.RUNNING,
    )


def checkpoint_sizes(ledger: Ledger, chain: str) -> list[int]:
    """The sizes of a chain's checkpoints in bytes, the oldest first."""
    return [document.size for document in reversed(ledger.documents(chain, "checkpoint"))]


def calibration_of(forecasts: Mapping[str, Forecast]) -> list[CalibrationLine]:
    """How well units were foretold, by resource and kind."""
    return [
        CalibrationLine(resource=resource, kind=kind, **figures)
        for resource, forecast in forecasts.items()
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
