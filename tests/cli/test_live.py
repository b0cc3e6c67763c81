"""How a chain at work looks in a terminal of 80 columns."""

import time
from typing import Any

import pytest
from rich.console import Console
from support import some_item

from perpetual_blocks import Limit
from perpetual_blocks.cli.live import local_time, progress_view
from perpetual_blocks.session.agents import AgentLine
from perpetual_blocks.session.progress import Eta, Level, Progress

NOW = 1_900_000_000.0


@pytest.fixture(autouse=True)
def here_and_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same moment of the same day everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW)


def session(ordinal: int, state: str = "Wrapped") -> dict[str, Any]:
    limits = [{"name": "tokens", "resource": "tokens", "used": 36_000.0, "amount": 50_000.0}]
    ended = {"graceful": True, "stop_reason": "budget:tokens"} if state != "Running" else {}
    usage = {"tokens": 36_000.0}
    before = {"graceful": False, "stop_reason": None, "pid": 4711, "units": 12, "usage": usage, "limits": limits}
    return {"ordinal": ordinal, "state": state, **before, **ended}


def view(note: str = "", *, status: str = "running", **changes: Any) -> list[str]:
    """The lines of the view."""
    items = {"total": 100, "completed": 42, "available": 50, "claimed": 7, "blocked": 0, "discarded": 1, "cancelled": 0}
    known = {
        "chain": "docs",
        "status": status,
        "reason": "session 20 is at work",
        "queue": "docs",
        "takes": "everything",
        "others": ["docs-2"] if changes.get("agents") else [],
        "items": items,
        "resume_at": None,
        "asks_until": None,
        "sessions": [*map(session, range(1, 20)), session(20, "Running")],
    }
    levels = [Level(Limit("tokens", 50_000), 36_000.0), Level(Limit("cost", 80, scope="total"), 100.0)]
    progress = Progress(**{"at": NOW, "status": known, "levels": levels, "per_minute": 12.34, **changes})
    console = Console(width=80, emoji=False)
    with console.capture() as capture:
        console.print(progress_view(progress, note))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_a_session_at_work() -> None:
    """How far, when it is over, how fast, what comes next, its limits, and what stopped the latest sessions."""
    lines = view(eta=Eta(p50=NOW + 3600, p90=NOW + 90_000, sessions=3, session_ends=NOW + 60, next_begins=NOW + 60))

    assert lines[0] == "docs running session 20 is at work"
    assert lines[1].endswith("42 of 100 items 50 available, 7 claimed, 1 discarded")
    assert "end over by 18:47 (half of the time), by Mon 18 Mar 18:47 (9 of 10 times); 3" in lines
    assert "sessions with this one" in lines
    assert "pace 12.3 units a minute" in lines
    assert "next session 20 ends at about 17:48, session 21 goes on" in lines
    assert "limit, session 20 used of" in lines
    assert "tokens ███████░░░ 72% 36,000 tokens 50,000 tokens a session" in lines
    assert "cost/total ██████████ 125% $100.00 $80.00 in all" in lines
    assert lines[-2:] == [
        "19 4711 12 36,000 ███████░░░ 72% tokens Wrapped budget:tokens",
        "20 4711 12 36,000 ███████░░░ 72% tokens Running",
    ]
    assert not any(line.startswith("12 4711") for line in lines), "the latest are enough"


def test_items_in_hand() -> None:
    """What runs, with what it does; what was given up, and why; how many more; and nothing is taken for markup."""
    running = [some_item("a[bold]", units=2, progress=(2.0, 10.0), next_action="read\non")]
    lines = view(running=running, discarded=[some_item("[red]b", error="ValueError: [x] is empty")])

    assert "running a[bold] unit 3, 2 of 10, read on" in lines
    assert "and 6 more" in lines
    assert "discarded [red]b ValueError: [x] is empty" in lines


def test_company_silence_and_notes() -> None:
    """The other chains of the queue have a row each; a session that is not heard of is told, and what is noted."""
    line = {"reason": "", "takes": "everything", "sessions": 2, "usage": {"tokens": 5.0, "seconds": 9.0}}
    agents = [AgentLine(chain=name, state="at work", units=5, per_minute=1.0, **line) for name in ("docs", "docs-2")]
    lines = view("the ledger is away", agents=agents, silent=125.0)

    assert "on the queue of docs, with docs-2" in lines
    assert "docs-2 at work 2 5 1.0 5 tokens" in lines
    assert "its session has not been heard of for 2 min 5 s; `perpetual supervise" in lines
    assert lines[-1] == "the ledger is away"


def test_a_chain_that_waits_and_one_that_begins() -> None:
    """The moment of the next session; before the first there is nothing else to show."""
    assert any(
        line.startswith("next session 21 at 18:04, when there is room")
        for line in view(status="waiting", resume_at=NOW + 1000)
    )
    assert local_time(NOW + 86400 * 3) == "Wed 20 Mar 17:47"
