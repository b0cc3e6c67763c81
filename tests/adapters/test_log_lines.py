"""Moments as log lines."""

import logging

import pytest

from perpetual_blocks.adapters.log_lines import log_moments
from perpetual_blocks.telemetry import CheckpointLarge, CodeChanged, Moment


@pytest.mark.parametrize(
    ("moment", "line"),
    [
        (CodeChanged("mine", 2, "its code changed since session 1"), "mine: its code changed since session 1"),
        (
            CheckpointLarge("mine", 2, 300 * 1024, 256 * 1024),
            "The checkpoint of session 2 has 300.0 KiB; more than 256.0 KiB is too much for a context",
        ),
    ],
)
def test_what_a_person_should_look_into_is_a_warning(
    moment: Moment, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line each."""
    log_moments(logging.getLogger("perpetual-test"))(moment)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", line)]
