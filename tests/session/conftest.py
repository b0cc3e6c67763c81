"""What the tests of sessions have in common."""

import pytest

from perpetual_blocks.session import successor


@pytest.fixture(autouse=True)
def _between_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a session is looked for between its units only: while they run, the clock of a test jumps."""
    monkeypatch.setattr(successor, "WATCH_SECONDS", 3600.0)
