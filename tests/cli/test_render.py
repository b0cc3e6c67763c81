"""How a chain looks in a terminal of 80 columns."""

from typing import Any

from rich.console import Console

from perpetual_blocks.cli.render import chain_view


def limit(name: str, used: float, amount: float) -> dict[str, Any]:
    return {"name": name, "resource": name.partition("/")[0], "used": used, "amount": amount, "reserve": 0.0}


def session(ordinal: int, *limits: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "pid": 1234567,
        "units": 1200,
        "usage": {"tokens": 1_200_000.0},
        "limits": list(limits),
        "state": "Wrapped",
        "graceful": True,
        "stop_reason": "budget:tokens",
        **changes,
    }


def view(**changes: Any) -> list[str]:
    """The lines of a chain's view."""
    items = {"total": 9, "completed": 4, "available": 5, "claimed": 0, "blocked": 0, "discarded": 0, "cancelled": 0}
    status = {
        "chain": "docs",
        "status": "waiting",
        "reason": "480 calls of 500 calls a day (96%)",
        "queue": "docs",
        "takes": "everything",
        "others": [],
        "items": items,
        "resume_at": None,
        "asks_until": None,
        "approvals": [],
        "sessions": [session(1)],
        "usage": {"tokens": 1_200_000.0},
        "metrics": {"resume_overhead": 0.062, "graceful_shutdowns": None},
        "resume": {},
        "advice": [],
        **changes,
    }
    console = Console(width=80, emoji=False)
    with console.capture() as capture:
        console.print(chain_view(status))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert not any("…" in line for line in lines), "80 columns are enough"
    return lines


def test_a_shared_queue_is_told() -> None:
    """Whose it is, who else works on it, and what this chain takes of it."""
    assert "on the queue of docs, with docs-2, docs-3" in view(others=["docs-2", "docs-3"])
    assert "on the queue of docs, with docs; takes kinds review" in view(
        chain="docs-2", others=["docs"], takes="kinds review"
    )
    assert not any("on the queue" in line for line in view())


def test_a_waiting_chain_says_when_it_goes_on() -> None:
    """Only one that waits does, and only for a moment that is known."""
    said = "goes on at 2030-11-14 08:01 UTC, when there is room"

    assert said in view(resume_at="2030-11-14T08:00:10.000Z")
    assert not any("goes on" in line for line in view())
    assert said not in view(status="running", resume_at="2030-11-14T08:00:10.000Z")


def test_a_chain_that_waits_for_a_failed_item_says_so() -> None:
    """It is not room that it waits for."""
    lines = view(resume_at="2030-11-14T08:00:10.000Z", sessions=[session(1, stop_reason="backing-off")])

    assert "goes on at 2030-11-14 08:01 UTC, when what has failed is tried again" in lines


def test_windows_and_totals_are_shown_by_name() -> None:
    """As the last session that has ended left them; a session's own limits are in its row."""
    ended = [
        limit("tokens", 98_000, 100_000),
        limit("calls/day America/Los_Angeles", 480, 500),
        limit("cost/total", 12.5, 80),
    ]
    lines = view(sessions=[session(1, *ended), session(2, limit("tokens", 5, 100), state="Running", stop_reason=None)])
    at = next(number for number, line in enumerate(lines) if line.startswith("limit, after session 1 "))

    assert [" ".join(line.split()) for line in lines[at + 1 : at + 3]] == [
        "calls/day America/Los_Angeles ██████████ 96% 480 calls 500 calls",
        "cost/total ██░░░░░░░░ 16% $12.50 $80.00",
    ]
    assert any("98% tokens" in line and "budget:tokens" in line for line in lines)
    assert not any("limit, after" in line for line in view())


def test_the_cost_of_a_resume_and_advice() -> None:
    """What a resume costs is said where it is known, and advice comes last."""
    advice = ["Resuming takes 6.2% of the time: be brief.", "Units used 9.9%: raise them."]
    lines = view(resume={"seconds": 1.5, "tokens": 250.0}, advice=advice)

    assert "a resume: 1.5 s, 250 tokens" in lines
    assert lines[-2:] == [f"advice: {line}" for line in advice]
    assert "resume overhead 6%" in lines[-3]
    assert not any("a resume:" in line for line in view())


def test_what_was_approved_and_what_is_asked() -> None:
    """A chain whose total is gone says until when its run asks, and what was decided before."""
    approved = {"decision": "more", "session": 1, "by": "form", "key": "k", "amounts": {"cost": 2.5}}
    lines = view(
        status="exhausted",
        asks_until="2026-11-27T08:44:00.000Z",
        approvals=[{**approved, "at": "2026-11-26T08:44:00.000Z"}],
    )
    assert "its run asks for more until 2026-11-27 08:44 UTC" in lines
    assert "after session 1: a person has approved $2.50 more, 2026-11-26 08:44 UTC" in lines


def test_a_chain_that_has_ended_says_what_is_left_to_people() -> None:
    """What was given up, and how it gets another try; or that there was nothing to do. A chain at work says neither."""
    none = dict.fromkeys(("total", "completed", "available", "claimed", "blocked", "discarded", "cancelled"), 0)
    given_up = " ".join(view(status="finished", items={**none, "total": 9, "completed": 7, "discarded": 2}))
    empty = " ".join(view(status="finished", items=none))

    assert "2 given up: `perpetual items list docs --status discarded` says why" in given_up
    assert "`perpetual items retry docs` gives them another try" in " ".join(given_up.split())
    assert "plan() yielded no item" in empty
    assert not any("advice" in line for line in view(items={**none, "total": 9, "completed": 7, "discarded": 2}))
