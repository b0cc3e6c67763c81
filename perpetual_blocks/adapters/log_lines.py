"""Moments as log lines, for people who follow a run."""

import logging
from typing import Any

from perpetual_blocks.telemetry import (
    BudgetWarned,
    CheckpointLarge,
    CodeChanged,
    FenceReached,
    FollowOnAnnounced,
    ItemDiscarded,
    ItemsAdded,
    Moment,
    Observer,
    SessionEnded,
    SessionStarted,
    StepFailed,
    UnitCompleted,
    UnitCutOff,
    UnitFailed,
)
from perpetual_blocks.usage import show_bytes


def log_moments(logger: "logging.Logger | logging.LoggerAdapter[Any]") -> Observer:
    """An observer that writes each moment to the logger: what is routine at DEBUG, what a person acts on at WARNING."""

    def write(moment: Moment) -> None:  # noqa: PLR0912 - one for each moment
        match moment:
            case SessionStarted(chain, ordinal, _, notes):
                logger.info("Session %d of %s starts. %s", ordinal, chain, "; ".join(notes))
            case ItemsAdded(_, count):
                logger.info("%d new items in the queue", count)
            case UnitCompleted(_, item, number, done, progress, _):
                how = "done" if done else f"advanced{f' ({progress[0]:g} of {progress[1]:g})' if progress else ''}"
                logger.debug("%s: unit %d %s", item, number, how)
            case UnitFailed(_, item, attempt, most, error):
                logger.warning("%s: attempt %d of %d failed: %s", item, attempt, most, error)
            case UnitCutOff(_, _, reason, discarded):
                logger.warning("%s; %s", reason, "discarded" if discarded else "given back")
            case ItemDiscarded(_, item, reason):
                logger.warning("%s: discarded: %s", item, reason)
            case BudgetWarned(_, _, reason):
                logger.warning("Budget: %s", reason)
            case StepFailed(_, step, error):
                logger.warning("Shutdown step %s failed, going on: %s", step, error)
            case CodeChanged(chain, _, what):
                logger.warning("%s: %s", chain, what)
            case CheckpointLarge(_, ordinal, size, budget):
                logger.warning(
                    "The checkpoint of session %d has %s; more than %s is too much for a context",
                    ordinal,
                    show_bytes(size),
                    show_bytes(budget),
                )
            case FollowOnAnnounced(_, ordinal, seconds):
                logger.info("Some %.0f s to the end of this session; then session %d goes on", seconds, ordinal)
            case FenceReached(chain, ordinal):
                logger.info("Waits for session %d of %s to end", ordinal - 1, chain)
            case SessionEnded(chain, ordinal, state, reason):
                logger.info("Session %d of %s: %s, because %s", ordinal, chain, state, reason)

    return write
