"""The handoff: what whoever comes next, person or agent, needs to know."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class WorkLine(BaseModel):
    """One item, as far as the handoff speaks of it.

    Attributes:
        failed: How many of its attempts have failed, and `cut_off` how many had no room to finish.
        sessions: The sessions that made those attempts.
        wasted: What they spent in vain.
    """

    id: str
    kind: str
    units: int = 0
    progress: tuple[float, float] | None = None
    next_action: str | None = None
    error: str | None = None
    failed: int = 0
    cut_off: int = 0
    sessions: list[int] = Field(default_factory=list)
    wasted: dict[str, float] = Field(default_factory=dict)


class LimitLine(BaseModel):
    """One limit, how much of it is used, and what is kept of it for the shutdown."""

    name: str
    resource: str
    used: float
    amount: float
    reserve: float = 0.0


class SessionLine(BaseModel):
    """One session of the chain, for the table."""

    ordinal: int
    state: str
    units: int
    usage: dict[str, float]
    stop: str
    fullness: float | None


class HistoryLine(BaseModel):
    """How full the limits were when a session ended, for the chart.

    Attributes:
        used: used / amount, by the limit's name.
        graceful: Whether it ended through its own shutdown.
    """

    ordinal: int
    used: dict[str, float]
    graceful: bool = True


class CalibrationLine(BaseModel):
    """What was foretold of a kind's finished units in one resource, and what they used.

    Attributes:
        ratio: used / predicted; None where nothing was predicted.
        p90_coverage: The share of units within the 90th percentile that was foretold.
    """

    resource: str
    kind: str
    units: int
    predicted: float
    used: float
    ratio: float | None
    p90_coverage: float


class Handoff(BaseModel):
    """What was done, why it stopped, what comes next.

    Attributes:
        task: What the agent is for.
        items: How many items have each status.
        units: What the session finished, `units_total` the chain.
        next_items: The first of those that would be claimed next.
        discarded: The dead letters, with their errors, and what was spent on them.
        steps: Steps of the shutdown that failed, `step: error`.
        resumed: What was found when the session started: what was verified, what was lost.
        passed_over: Items in whose place others were taken, and why (by id).
        choices: What was decided automatically, and why.
        calibration: How well units were foretold, as long as the chain, or those that it learned from, ran.
        advice: What should be changed, with the figures that say so.
        resume_at: When there will be room for the next unit, where the chain waits for that.
        outlook: How many sessions, how long and how much are still to come.
        notes: The agent's own, Markdown; `create_handoff` may add to them.
        commit: The git commit of the session's work.
        checkpoint: The digest of the session's checkpoint; the commit names it, too.
        flow_run_id: The session's flow run; `previous_run_id` that of the session before, `next_run_id` of the one that
            goes on, where it is known.
        chain_status: What becomes of the chain.
        history: The sessions' limits up to this one's, the oldest first, for the chart.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    chain: str
    ordinal: int
    agent: str
    task: str
    state: str
    stop_reason: str
    stop_message: str
    started_at: str
    ended_at: str
    items: dict[str, int]
    units: int
    units_total: int
    usage: dict[str, float]
    usage_total: dict[str, float]
    limits: list[LimitLine]
    next_items: list[WorkLine] = Field(default_factory=list)
    discarded: list[WorkLine] = Field(default_factory=list)
    sessions: list[SessionLine] = Field(default_factory=list)
    resumed: list[str] = Field(default_factory=list)
    steps: list[str] = Field(default_factory=list)
    passed_over: dict[str, str] = Field(default_factory=dict)
    choices: list[str] = Field(default_factory=list)
    calibration: list[CalibrationLine] = Field(default_factory=list)
    advice: list[str] = Field(default_factory=list)
    resume_at: str | None = None
    outlook: str | None = None
    notes: list[str] = Field(default_factory=list)
    context: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float | None] = Field(default_factory=dict)
    commit: str | None = None
    checkpoint: str | None = None
    flow_run_id: str | None = None
    previous_run_id: str | None = None
    next_run_id: str | None = None
    chain_status: str = ""
    history: list[HistoryLine] = Field(default_factory=list)
