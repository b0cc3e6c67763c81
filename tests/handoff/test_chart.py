"""The chart of budgets through the sessions."""

import re
from base64 import b64decode
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from perpetual_blocks.handoff import Handoff, HistoryLine, LimitLine, budget_chart, standalone
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.pages import masked_page

SVG = "{http://www.w3.org/2000/svg}"
LIMITS = {"tokens": "1,000 tokens", "calls/day": "50 calls"}


def history(*tokens: float, dead: Sequence[int] = (), **others: float) -> list[HistoryLine]:
    return [
        HistoryLine(
            ordinal=place, used={} if place in dead else {"tokens": share, **others}, graceful=place not in dead
        )
        for place, share in enumerate(tokens, start=1)
    ]


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in parsed(svg).iter(f"{SVG}text")]


def heights(svg: str, kind: str) -> list[float]:
    """How high the columns of a kind are, in the rows from top to bottom."""
    paths = [path.get("d") or "" for path in parsed(svg).iter(f"{SVG}path") if path.get("class") == kind]
    return [-float(height) for path in paths for height in re.findall(r"v(-[\d.]+)", path)]


def track(svg: str) -> float:
    """How high a column is that is full."""
    return next(float(box.get("height") or 0) for box in parsed(svg).iter(f"{SVG}rect") if box.get("class") == "track")


def test_a_column_is_as_high_as_the_limit_was_full() -> None:
    """Each session has one; the last stands out, and its share is said in words."""
    svg = budget_chart(history(0.5, 0.25, 1.0, 0.9), LIMITS)

    full = track(svg)
    assert heights(svg, "past") == pytest.approx([0.5 * full, 0.25 * full, full], abs=0.1)
    assert heights(svg, "bar") == pytest.approx([0.9 * full], abs=0.1)
    assert texts(svg)[:2] == ["tokens1,000 tokens", "90% used"]
    assert {"session 1", "session 4"} <= set(texts(svg))
    assert "How full each budget was, session 1 to 4" in svg


def test_what_was_overrun_is_above_the_limit() -> None:
    """By as much, up to the headroom; whatever it was."""
    svg = budget_chart(history(1.1, 7.0, 0.5), LIMITS)

    full = track(svg)
    assert heights(svg, "past") == pytest.approx([full, full], abs=0.1)
    assert heights(svg, "over") == pytest.approx([0.1 * full, 0.15 * full], abs=0.1)


def test_each_limit_has_a_row() -> None:
    """With the share that the last session which knows it has left behind."""
    svg = budget_chart(history(0.5, 0.6, 0.7, dead=[3], **{"calls/day": 0.42}), LIMITS)

    assert [text for text in texts(svg) if text.endswith("used")] == ["60% used", "42% used"]
    assert len(heights(svg, "past")) == 2
    assert len(heights(svg, "bar")) == 2


def test_who_died_is_crossed() -> None:
    """Once, and said in words."""
    lived, died = budget_chart(history(0.5, 0.6), LIMITS), budget_chart(history(0.5, 0.6, 0.7, dead=[2]), LIMITS)

    crosses = [path.get("d") or "" for path in parsed(died).iter(f"{SVG}path") if path.get("class") == "cross"]
    assert [path.count("M") for path in crosses] == [1]
    assert any("Crossed" in text for text in texts(died))
    assert "ross" not in lived


@pytest.mark.parametrize("sessions", [[], history(0.5), history(0.5, 0.6, dead=[1, 2])])
def test_there_is_none_without_something_to_compare(sessions: list[HistoryLine]) -> None:
    """One session, or sessions without limits, need no picture."""
    assert budget_chart(sessions, LIMITS) == standalone("") == ""


def test_names_are_escaped_and_fit() -> None:
    """Whatever a limit is called, the picture is well-formed, and the name is cut where it would run into the share."""
    name = "<script>&\"'" + "x" * 200
    svg = standalone(
        budget_chart([HistoryLine(ordinal=n, used={name: 0.5}) for n in (1, 2)], {name: "5 & 6"}, width=340)
    )

    [heading] = [text for text in texts(svg) if text.startswith("<script>")]
    assert heading.endswith("…")
    assert len(heading) < 50


def test_alone_it_has_a_size_and_a_background() -> None:
    """It is read on a light and on a dark page."""
    root = parsed(standalone(budget_chart(history(0.5, 0.6), LIMITS)))

    assert (root.get("viewBox") or "").split() == ["0", "0", root.get("width"), root.get("height")]
    style, background = list(root)[:2]
    assert style.tag == f"{SVG}style"
    assert background.get("fill") == "#fbfcfd"


def test_the_page_of_a_long_chain_is_small() -> None:
    """Sixty sessions and a handful of limits are drawn within 60 KB; a large context is left to the command line."""
    names = ["tokens", "seconds", "calls/day America/Los_Angeles", "cost/day", "cost/total"]
    limits = [LimitLine(name=name, resource="tokens", used=90, amount=100) for name in names]
    sessions = [
        HistoryLine(ordinal=place, used={name: 0.9 + place / 1000 for name in names}, graceful=place % 7 > 0)
        for place in range(1, 61)
    ]
    words = ("chain", "agent", "task", "state", "stop_reason", "stop_message", "started_at", "ended_at")
    said = Handoff(
        **dict.fromkeys(words, "mine"),
        **{"ordinal": 60, "items": {}, "units": 1, "units_total": 1, "usage": {}, "usage_total": {}},
        limits=limits,
        history=sessions,
        context={"pages": "x" * 2**20},
    )

    page = masked_page(said, Redactor())

    assert len(page.encode()) < 60_000
    assert "`perpetual handoff mine` prints it" in page
    [data] = re.findall(r"base64,([^)]*)\)", page)
    assert "session 60" in texts(b64decode(data).decode())
