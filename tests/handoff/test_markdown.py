"""The handoff as people read it."""

import json
import re
from base64 import b64decode
from typing import Any

import pytest

from perpetual_blocks.handoff import CalibrationLine, Handoff, LimitLine, SessionLine, WorkLine, in_a_line, to_markdown
from perpetual_blocks.handoff.markdown import linked


def handoff(**changes: Any) -> Handoff:
    """The handoff of a second session that wrapped, changed."""
    fields: dict[str, Any] = {
        "chain": "mine",
        "ordinal": 2,
        "agent": "Tester",
        "task": "Counts words.",
        "state": "Wrapped",
        "stop_reason": "budget:tokens",
        "stop_message": "900 tokens of 1,000 tokens (90%) reached the 85% threshold",
        "started_at": "2023-11-14T22:13:20.000Z",
        "ended_at": "2023-11-14T22:14:20.000Z",
        "items": {"completed": 1200, "available": 34, "blocked": 0},
        "units": 7,
        "units_total": 1201,
        "usage": {"tokens": 900.0, "seconds": 75.0},
        "usage_total": {"tokens": 1_900_000.0, "cost": 4.2, "seconds": 3700.0},
        "limits": [LimitLine(name="tokens", resource="tokens", used=900, amount=1000, reserve=80)],
    }
    return Handoff(**{**fields, **changes})


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    assert text.count(f"## {title}\n") == 1
    return re.split(r"\n(?=## |<details>)", text.partition(f"## {title}\n")[2])[0].strip()


def test_it_begins_with_what_matters() -> None:
    """Who, how far, why it stopped and what comes next are said first."""
    lines = to_markdown(handoff()).split("\n\n")

    assert lines[0] == "# mine · session 2 · Wrapped"
    assert lines[1] == "**1,200 of 1,234 items done.** Session 3 goes on from here."
    assert lines[2] == "*Why it stopped:* 900 tokens of 1,000 tokens (90%) reached the 85% threshold."
    assert section(to_markdown(handoff()), "The task") == "Counts words."


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("Wrapped", "Session 3 goes on from here."),
        ("Finished", "The queue is empty."),
        ("Failed", "It does not go on by itself. `perpetual status mine` says what to do."),
        ("Cancelled", "It does not go on by itself. `perpetual status mine` says what to do."),
    ],
)
def test_it_says_whether_the_chain_goes_on(state: str, said: str) -> None:
    """Each way to end is told in a sentence."""
    assert said in to_markdown(handoff(state=state))


def test_it_says_when_a_waiting_chain_goes_on() -> None:
    """A chain that waits for room says until when; never earlier than that."""
    for resume_at, shown in (
        ("2023-11-15T08:00:00.000Z", "2023-11-15 08:00"),
        ("2023-12-31T23:59:00.001Z", "2024-01-01 00:00"),
    ):
        text = to_markdown(handoff(resume_at=resume_at))
        assert f"items done.** Session 3 goes on at {shown} UTC, when there is room.\n" in text


@pytest.mark.parametrize(
    ("state", "stop_reason", "parts"),
    [
        ("Exhausted", "exhausted:cost", ["total limit of cost"]),
        ("Stalled", "blocked", ["discarded items", "`perpetual items retry mine`"]),
        ("Stalled", "too-large", ["session's limits", "`perpetual items discard mine ID`"]),
    ],
)
def test_it_says_what_a_person_can_do(state: str, stop_reason: str, parts: list[str]) -> None:
    """A chain that does not go on by itself says, at the top, what would make it go on."""
    header = to_markdown(handoff(state=state, stop_reason=stop_reason)).split("\n\n")[1]

    for part in ["It does not go on by itself.", *parts, "`perpetual run FILE:FLOW --param chain=mine`"]:
        assert part in header


def test_links_are_relative() -> None:
    """Links lead from an artifact's page to this run, the chain's runs and its handoffs."""
    text = to_markdown(handoff(flow_run_id="run-id"))

    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links == [
        "../../runs/flow-run/run-id",
        "../../runs?tags=chain:mine&tag=chain:mine",
        "../key/handoff-mine",
    ]
    assert "flow-run" not in to_markdown(handoff(flow_run_id=None))


def test_neighbours_are_linked() -> None:
    """Who reads one handoff gets to the sessions before and after, where their runs are known."""
    text = to_markdown(handoff(flow_run_id="b", previous_run_id="a", next_run_id="c"))

    assert (
        "[← session 1](../../runs/flow-run/a) · [this run](../../runs/flow-run/b) · "
        "[session 3 →](../../runs/flow-run/c) · [all runs" in text
    )


def test_a_picture_is_with_the_budget() -> None:
    """Only where one is given, and as data: Prefect's UI shows no inline SVG."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><title>ü</title></svg>'

    text = section(to_markdown(handoff(), picture=svg), "Budget")

    found = re.fullmatch(r"!\[How full each budget was\]\(data:image/svg\+xml;base64,(.*)\)", text.splitlines()[0])
    assert found is not None
    assert b64decode(found[1]).decode() == svg
    assert text.splitlines()[2].startswith("| limit |")


@pytest.mark.parametrize(
    ("used", "bar", "share"),
    [
        (0, "░" * 20, "0%"),
        (500, "█" * 10 + "░" * 10, "50%"),
        (900, "█" * 18 + "░" * 2, "90%"),
        (1000, "█" * 20, "100%"),
        (2500, "█" * 20, "250%"),
    ],
)
def test_budget_bars(used: float, bar: str, share: str) -> None:
    """Each limit has a bar of twenty that is full at the amount and never longer."""
    text = to_markdown(handoff(limits=[LimitLine(name="tokens", resource="tokens", used=used, amount=1000)]))

    row = section(text, "Budget").splitlines()[-1]
    assert row == f"| tokens | `{bar}`\N{NO-BREAK SPACE}{share} | {used:,} tokens | 1,000 tokens |  |"


def test_what_was_done() -> None:
    """The session and the chain are told apart, each resource in its own unit."""
    assert section(to_markdown(handoff()), "Done").splitlines() == [
        "- This session: 7 units, 900 tokens, 1 min 15 s of work",
        "- The chain: 1,201 units, 1,900,000 tokens, $4.20, 1 h 1 min of work",
    ]
    assert "- This session: 0 units\n" in to_markdown(handoff(units=0, usage={}))


def test_what_comes_next_and_what_was_given_up() -> None:
    """Open items are listed with their progress and next action, dead letters with their errors."""
    text = to_markdown(
        handoff(
            next_items=[
                WorkLine(id="a", kind="default", progress=(2, 7.5), next_action="page 3"),
                WorkLine(id="b", kind="default"),
            ],
            discarded=[WorkLine(id="c", kind="default", error="ValueError: no")],
        )
    )

    assert section(text, "Next").splitlines() == ["- `a` (2 of 7.5): page 3", "- `b`"]
    assert section(text, "Discarded") == "- `c`: ValueError: no"


def test_what_went_wrong_and_what_was_found() -> None:
    """Failed steps, what was found on resuming, and the agent's notes have their own sections."""
    text = to_markdown(
        handoff(
            steps=["backup: OSError: full", "commit_changes: GitError: none"],
            resumed=["the checkpoint of session 1 agrees"],
            notes=["Look at **b** first.", "", "- then at c"],
        )
    )

    assert section(text, "Went wrong at the end").splitlines() == [
        "- backup: OSError: full",
        "- commit_changes: GitError: none",
    ]
    assert section(text, "On resuming") == "- the checkpoint of session 1 agrees"
    assert section(text, "Notes") == "Look at **b** first.\n\n- then at c"


def test_what_was_decided_and_what_is_advised() -> None:
    """Items that were passed over, automatic choices and advice have their own sections."""
    text = to_markdown(
        handoff(
            passed_over={"big": "needs 900 tokens,\n100 tokens left"},
            choices=["rung 'careful': 700 of 1,000 tokens (70%)"],
            advice=["Resuming takes 6.2% of the sessions' time."],
        )
    )

    assert section(text, "Passed over") == "- `big`: needs 900 tokens, 100 tokens left"
    assert section(text, "Chosen automatically") == "- rung 'careful': 700 of 1,000 tokens (70%)"
    assert section(text, "Advice") == "- Resuming takes 6.2% of the sessions' time."


def test_of_many_that_were_passed_over_ten_are_listed() -> None:
    """However many were passed over, the handoff stays short and says how many there were."""
    whys = {f"item-{n}": "too large" for n in range(1234)}

    assert section(to_markdown(handoff(passed_over=whys)), "Passed over").splitlines() == [
        *(f"- `item-{n}`: too large" for n in range(10)),
        "- and 1,224 more",
    ]
    ten = section(to_markdown(handoff(passed_over=dict(list(whys.items())[:10]))), "Passed over")
    assert len(ten.splitlines()) == 10


def test_forecasts_are_compared_with_what_was_used() -> None:
    """Each kind and resource is a row, each amount in its own unit."""
    line: dict[str, Any] = {"kind": "a|b", "units": 1200, "predicted": 100.0, "used": 150.0, "p90_coverage": 0.875}
    text = to_markdown(
        handoff(
            calibration=[
                CalibrationLine(resource="tokens", ratio=1.5, **line),
                CalibrationLine(resource="seconds", ratio=None, **line),
            ]
        )
    )

    rows = section(text, "Forecasts").splitlines()
    assert [cells(row) for row in rows[2:]] == [
        ["tokens", "a\\|b", "1,200", "100 tokens", "150 tokens", "1.50", "88%"],
        ["seconds", "a\\|b", "1,200", "1 min 40 s", "2 min 30 s", "", "88%"],
    ]
    assert len(cells(rows[0])) == len(cells(rows[1])) == 7


def test_the_commit_is_named() -> None:
    """The git commit of the session's work is in the handoff that people read."""
    assert "0123abc" in to_markdown(handoff(commit="0123abc"))


def test_what_is_empty_is_left_out() -> None:
    """A handoff has no section without content, and no gap where one would be."""
    text = to_markdown(handoff(limits=[]))

    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["The task", "Done"]
    assert "![" not in text
    assert "\n\n\n" not in text


def session(**changes: Any) -> SessionLine:
    fields: dict[str, Any] = {
        "ordinal": 1,
        "state": "Wrapped",
        "units": 1200,
        "usage": {"tokens": 1000.0},
        "stop": "its budget",
        "fullness": 0.912,
    }
    return SessionLine(**{**fields, **changes})


def cells(row: str) -> list[str]:
    """A table's row as a Markdown reader takes it apart."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def test_sessions_are_a_table() -> None:
    """The sessions before are rows; one without a budget has no fullness."""
    rows = section(
        to_markdown(handoff(sessions=[session(), session(ordinal=2, usage={}, fullness=None)])), "Sessions"
    ).splitlines()

    assert [cells(row) for row in rows[2:]] == [
        ["1", "Wrapped", "1,200", "1,000 tokens", "91%", "its budget"],
        ["2", "Wrapped", "1,200", "0 tokens", "", "its budget"],
    ]
    assert len(cells(rows[0])) == len(cells(rows[1])) == 6


@pytest.mark.parametrize("stop", ["ValueError: a | b", "1 validation error\n  units\n    is wrong"])
def test_whatever_stopped_a_session_stays_in_its_row(stop: str) -> None:
    """An error's text, of whatever lines and signs, does not break the table."""
    rows = section(to_markdown(handoff(sessions=[session(stop=stop), session(ordinal=2)])), "Sessions").splitlines()

    assert len(rows) == 4
    assert [len(cells(row)) for row in rows] == [6, 6, 6, 6]


def test_what_a_dead_letter_cost_is_told() -> None:
    """How often it failed or was cut off, in which sessions, what was spent in vain, and the last error."""
    wasted = {"tokens": 12_400.0, "cost": 1.5, "calls": 0.0}
    discarded = [
        WorkLine(id="a", kind="default", error="ValueError: no", failed=3, sessions=[2, 3], wasted=wasted),
        WorkLine(id="b", kind="default", error="no room", failed=1, cut_off=2, sessions=[2], progress=(1, 2)),
        WorkLine(id="c", kind="default", error="not wanted"),
    ]

    assert section(to_markdown(handoff(discarded=discarded)), "Discarded").splitlines() == [
        "- `a`: failed 3 times (sessions 2, 3), 12,400 tokens, $1.50 spent in vain: ValueError: no",
        "- `b` (1 of 2): failed once, cut off 2 times (session 2): no room",
        "- `c`: not wanted",
    ]


def test_an_error_of_many_lines_stays_in_its_list() -> None:
    """A dead letter is one entry of its list, whatever its error's text is."""
    discarded = [
        WorkLine(id="a", kind="default", error="1 validation error\n\n# units\n  is wrong"),
        WorkLine(id="b", kind="default", error="no"),
    ]

    text = section(to_markdown(handoff(discarded=discarded)), "Discarded")

    assert [line[:5] for line in text.splitlines()] == ["- `a`", "- `b`"]


def test_the_state_is_folded_json() -> None:
    """What a program wants is folded, and is JSON that can be read back; what is not known is left out."""
    context = {"seen": ["ü", "```", "</details>"], "depth": {"x": None}}

    text = to_markdown(handoff(metrics={"graceful_shutdowns": 1.0, "resume_overhead": None}, context=context))

    assert re.findall(r"<summary>(.*?)</summary>", text) == ["State"]
    [block] = re.findall(r"^```json\n(.*?)\n^```$", text, re.MULTILINE | re.DOTALL)
    state = json.loads(block)
    assert state["context"] == context
    assert (state["chain"], state["ordinal"], state["state"]) == ("mine", 2, "Wrapped")
    assert state["items"] == {"completed": 1200, "available": 34, "blocked": 0}
    assert "next_run_id" not in state


def test_metrics_that_are_known() -> None:
    """One line each, in words; what could not be measured is left out."""
    text = to_markdown(handoff(metrics={"graceful_shutdowns": 0.9784, "resume_overhead": None}))

    assert section(text, "Metrics") == "- graceful shutdowns: 97.8%"


def test_the_description_tells_the_story_in_45_characters() -> None:
    """Lists cut what comes behind."""
    told = in_a_line(handoff(ordinal=12, stop_message="its budget\nof tokens"))

    assert told == "Session 12 wrapped, 1,200 of 1,234 done: its budget of tokens"
    assert told[:45] == "Session 12 wrapped, 1,200 of 1,234 done: its "
    assert in_a_line(handoff(stop_message="")) == "Session 2 wrapped, 1,200 of 1,234 done"


def test_the_outlook() -> None:
    """What is to come is said below why it stopped, and left out where it is not known."""
    text = to_markdown(handoff(outlook="about 3 more sessions in 2 h 5 min, $4.20 more"))

    assert "*Outlook:* about 3 more sessions in 2 h 5 min, $4.20 more." in text
    assert "Outlook" not in to_markdown(handoff())


def test_links_for_a_terminal() -> None:
    """They lead to the UI's pages, wherever it is; a page's own links are relative."""
    text = to_markdown(handoff(flow_run_id="7f3c"))

    assert re.findall(r"\]\((?!\.\./)", text) == []
    assert re.findall(r"\]\((\S+?)\)", linked(text, "http://127.0.0.1:4200")) == [
        "http://127.0.0.1:4200/runs/flow-run/7f3c",
        "http://127.0.0.1:4200/runs?tags=chain:mine&tag=chain:mine",
        "http://127.0.0.1:4200/artifacts/key/handoff-mine",
    ]
