"""`perpetual report`: what it says of a chain, and how the page looks in a real browser."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chromium import launched, need
from support import LEASE, FakeClock, LedgerFactory, claim, close, finish_next, open_session
from test_cli import make_shell

from perpetual_blocks import Budget, Limit, WorkItem
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.cli.output import OK
from perpetual_blocks.cli.report_page import budgets, ratio_place, report_page, stop_words
from perpetual_blocks.cli.timeline import Stretch, timeline
from perpetual_blocks.session.chain import ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.session.ledger import Fence, KindCount
from perpetual_blocks.session.report import Gap, chain_report, gap_after
from perpetual_blocks.work import ItemStatus

HOSTILE = "<script>alert('id')</script>\"'><img src=x onerror=alert(1)>"
ERROR = "ValueError: </pre><script>document.title = 'owned'</script> & a secret: postgresql://me:hunter2hunter2@db/x"
BUDGET = Budget(Limit("tokens", 1000), Limit("calls", 60, scope="window", window="day"))
SETTINGS = {"kinds": ["default", "other"], "budget": BUDGET.to_json(), "task": "Reads <b>pages</b> & sums them up."}
HOUR, DAY = 3600.0, 86400.0


def limits(tokens: float, calls: float) -> list[dict[str, Any]]:
    return [
        {"name": "tokens", "resource": "tokens", "used": tokens, "amount": 1000.0, "reserve": 0.0},
        {"name": "calls/day", "resource": "calls", "used": calls, "amount": 60.0, "reserve": 0.0},
    ]


def work(ledger: SqlLedger, clock: FakeClock, units: int = 5, seconds: float = 120.0) -> Fence:
    """A session at work; returns its fence."""
    clock.advance(5)
    fence = open_session(ledger, holder=f"{clock.now()}", settings=SETTINGS).fence
    for _ in range(units):
        clock.advance(seconds)
        ledger.heartbeat(fence)
        finish_next(ledger, fence, usage={"tokens": 190.0, "calls": 2.0})
    return fence


def wrap(ledger: SqlLedger, fence: Fence, reason: str, calls: float, **changes: Any) -> None:
    close(ledger, fence, stop=StopReason(reason, "so it was"), limits=limits(950, calls), **changes)


def a_chain(ledger: SqlLedger, clock: FakeClock, days: int = 4) -> SqlLedger:
    """A chain with sessions on several days: it waits for its window each night, one process dies, a person holds it,
    two items are discarded; then it waits."""
    opened = open_session(ledger, settings=SETTINGS)
    items = [WorkItem(id=f"page-{n}", kind="other" if n % 3 else "default") for n in range(days * 16 + 40)]
    bad = [WorkItem(id=HOSTILE, priority=9, max_attempts=1), WorkItem(id="b" * 200, priority=8, max_attempts=1)]
    ledger.add_items("mine", [*items, *bad], planned_by=opened.fence)
    for _ in bad:
        usage = {"tokens": 40.0}
        ledger.fail_unit(opened.fence, claim(ledger, opened.fence), ERROR, usage, usage)
    wrap(ledger, opened.fence, "budget:tokens", 2)
    for day in range(days):
        for part in range(3):
            fence = work(ledger, clock)
            if (day, part) == (1, 1):
                clock.advance(600)  # its process is dead, and nobody has seen it
            elif (day, part) == (2, 2):
                stop = StopReason("paused", "a person has paused it")
                close(ledger, fence, ChainStatus.PAUSED, state=SessionState.PAUSED, stop=stop, limits=limits(950, 58))
                ledger.resume("mine")
            else:
                last = part == 2
                wrap(ledger, fence, "budget:calls" if last else "budget:tokens", 58 if last else 20 * (part + 1))
            if (day, part) == (3, 0):
                clock.advance(2 * HOUR)  # no worker was there to take the follow-on up
        clock.advance(DAY - 3 * HOUR)
    fence = work(ledger, clock, 1)
    resume_at = clock.now() + 5 * HOUR
    stop = StopReason("budget:calls", "60 calls of 60 calls a day", resume_at)
    close(ledger, fence, stop=stop, limits=limits(190, 60))
    clock.advance(HOUR)
    return ledger


@dataclass(frozen=True)
class Made:
    """The chain, and the moment that it is looked at."""

    ledger: SqlLedger
    path: Path
    now: float

    def told(self) -> dict[str, Any]:
        return chain_report(self.ledger, "mine", self.now)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: bytes) -> Iterator[Made]:
    """The chain, which no test changes."""
    path, clock = tmp_path_factory.mktemp("report") / "ledger.db", FakeClock()
    path.write_bytes(empty_database)
    ledger = SqlLedger(str(path), clock=clock, lease_seconds=LEASE)
    yield Made(a_chain(ledger, clock), path, clock.now())
    ledger.close()


# What it says -------------------------------------------------------------------------------------------------------


def test_what_is_told_of_a_chain(made: Made) -> None:
    """Beside its status: what the time went into, why sessions ended, units by kind, forecasts and dead letters."""
    told = made.told()

    between = {kind: [gap["after"] for gap in told["gaps"] if gap["kind"] == kind] for kind in Gap}
    assert between == {
        Gap.HANDOFF: [1, 2, 3, 5, 8, 9, 12],
        Gap.WAIT: [4, 7, 13],
        Gap.HELD: [10],
        Gap.DOWN: [6, 11],
    }
    times = [(one["started_at"], one["ended_at"]) for one in told["sessions"]]
    first, last = datetime.fromisoformat(times[0][0]), datetime.fromisoformat(times[-1][1])
    assert sum(told["time"].values()) == pytest.approx((last - first).total_seconds())
    assert (told["time"]["down"], told["time"]["held"]) == (2 * HOUR + 5, DAY - 3 * HOUR + 5)
    assert told["stop_reasons"] == {"budget:tokens": 8, "budget:calls": 4, "crashed": 1, "paused": 1}
    assert [(kind["kind"], kind["units"]) for kind in told["kinds"]] == [("default", 21), ("other", 40)]
    assert {name: told["kinds"][0]["items"][name] for name in ("total", "completed", "discarded")} == {
        "total": 37, "completed": 21, "discarded": 2
    }  # fmt: skip
    assert {(line["resource"], line["kind"]) for line in told["calibration"]} == {
        (resource, kind) for resource in ("tokens", "calls") for kind in ("default", "other")
    }
    dead = told["discarded"][0]
    assert (dead["id"], dead["error"], dead["wasted"]) == (HOSTILE, ERROR, {"tokens": 40.0})
    assert dead["attempts"] == "failed once (session 1), 40 tokens spent in vain"
    assert told["next"] == "Session 15 goes on at 2023-11-18 19:27 UTC, when there is room."
    assert "more sessions" in told["outlook"]
    json.dumps(told)


@pytest.mark.parametrize(
    ("state", "reason", "seconds", "full", "gap"),
    [
        ("Wrapped", "budget:tokens", 14, (950, 10), Gap.HANDOFF),
        ("Wrapped", "budget:tokens", 3600, (950, 60), Gap.DOWN),
        ("Wrapped", "budget:calls", 3600, (950, 60), Gap.WAIT),
        ("Wrapped", "nothing-fits", 3600, (950, 60), Gap.WAIT),
        ("Wrapped", "nothing-fits", 3600, (990, 30), Gap.DOWN),
        ("Wrapped", "budget:memory", 3600, (990, 30), Gap.DOWN),
        ("Wrapped", "backing-off", 3600, (0, 0), Gap.WAIT),
        ("Wrapped", "quiet-hours", 3600, (0, 0), Gap.WAIT),
        ("Wrapped", "waiting", 3600, (0, 0), Gap.WAIT),
        ("Wrapped", "signal", 3600, (0, 0), Gap.DOWN),
        ("Crashed", "crashed", 3600, (0, 0), Gap.DOWN),
        ("Failed", "outage", 3600, (0, 0), Gap.DOWN),
        ("Paused", "paused", 3600, (0, 0), Gap.HELD),
        ("Exhausted", "exhausted:cost", 3600, (0, 0), Gap.HELD),
        ("Finished", "queue-empty", 3600, (0, 0), Gap.HELD),
    ],
)
def test_what_a_gap_went_into(state: str, reason: str, seconds: float, full: tuple[float, float], gap: Gap) -> None:
    """A wait for a window is told from a follow-on that nobody took up by the limit that ended the session."""
    session = SessionRecord(
        ordinal=1, epoch=1, state=SessionState(state), flow_run_id=None, deployment_id=None, host="", pid=1,
        process_started=0.0, started_at=0.0, ended_at=1.0, stop_reason=reason, limits=limits(*full),
    )  # fmt: skip

    assert gap_after(session, seconds) is gap


def test_kinds_are_those_of_the_queue(make_ledger: LedgerFactory) -> None:
    """None where there are no items; another chain's items are not among them."""
    ledger = make_ledger()
    mine, other = open_session(ledger, "mine").fence, open_session(ledger, "other").fence
    ledger.add_items("other", [WorkItem(id="a")], planned_by=other)
    assert ledger.kinds("mine") == []

    ledger.add_items("mine", [WorkItem(id="b", kind="other"), WorkItem(id="c", kind="other")], planned_by=mine)
    finish_next(ledger, mine)

    counted = {ItemStatus.COMPLETED: 1, ItemStatus.AVAILABLE: 1}
    assert ledger.kinds("mine") == [KindCount("other", counted, 1)]


# How it is drawn ----------------------------------------------------------------------------------------------------


def drawn_boxes(svg: str, kind: str) -> list[tuple[float, float]]:
    """The left edge and the width of each box of a kind."""
    found = []
    for path in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        if path.get("class") == kind:
            found += re.findall(r"M([\d.]+) [\d.]+v[-\d.]+h([\d.]+)", path.get("d") or "")
    return [(float(left), float(width)) for left, width in found]


def test_time_is_drawn_to_scale() -> None:
    """Of a short chain in one row: work, a wait, work."""
    parts = [Stretch("bar", 0, 100, 1), Stretch("wait", 100, 300), Stretch("over", 300, 400, 2)]

    svg = timeline(parts, 800)

    assert drawn_boxes(svg, "bar") == [(0, 199)]
    assert drawn_boxes(svg, "wait") == [(200, 400)]
    assert drawn_boxes(svg, "over") == [(600, 199)]
    assert ">waits 3 min 20 s</text>" in svg
    assert svg.count('class="cross"') == 1


def test_days_are_rows() -> None:
    """What begins at the same time each day stands in one column; a wait over midnight is in both rows."""
    parts: list[Stretch] = []
    for day in range(5):
        begin = day * DAY + 6 * HOUR
        parts.append(Stretch("bar", begin, begin + HOUR, day + 1))
        parts.append(Stretch("wait", begin + HOUR, begin + DAY))

    svg = timeline(parts, 892)

    assert {left for left, _ in drawn_boxes(svg, "bar")} == {92 + 800 / 4}
    assert len(drawn_boxes(svg, "bar")) == 5
    assert len(drawn_boxes(svg, "wait")) == 10
    assert [words for words in re.findall(r">([^<]*)</text>", svg) if "Jan" in words] == [
        f"0{n} Jan" for n in range(1, 7)
    ]


def test_thousands_of_sessions_are_drawn_in_a_picture_of_a_bounded_size() -> None:
    """What is thinner than a line is drawn once."""
    parts = [Stretch("bar", 60.0 * n, 60.0 * n + 55, n + 1) for n in range(50_000)]

    for width in (340, 880):
        svg = timeline(parts, width)
        ElementTree.fromstring(svg)
        assert len(svg) < 200_000


def test_many_sessions_share_columns() -> None:
    """Each column is the fullest of a few, and the last session is named."""
    sessions = [
        {"ordinal": n, "limits": limits(10 * (n % 100), 6), "graceful": n != 7, "state": "Wrapped"}
        for n in range(1, 301)
    ]

    svg = budgets(sessions, 340, 44)

    assert {">session 1<", ">session 300<"} <= set(re.findall(r">session \d+<", svg))
    assert "A column is 7 sessions, as the fullest ended." in svg
    assert sum(path.count("M") for path in re.findall(r'd="([^"]*)" class="(?:past|bar)"', svg)) == 2 * 43


def test_where_a_ratio_stands() -> None:
    """Even is in the middle; half and double are as far from it."""
    places = [ratio_place(ratio) for ratio in (None, 0, 0.01, 0.25, 0.5, 1, 2, 4, 99)]

    assert places == [None, 0, 0, 0, 25, 50, 75, 100, 100]


def test_stop_reasons_in_words() -> None:
    """The resource is said; what is not known is shown as it is."""
    assert [stop_words(reason) for reason in ("budget:tokens", "queue-empty", "new-one")] == [
        "budget: tokens",
        "the queue was empty",
        "new-one",
    ]


class Read(HTMLParser):
    """A page's elements, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_whatever_an_item_is_called_is_text(made: Made) -> None:
    """Ids, errors and the task are shown as they are, and are no elements; nothing is fetched from anywhere."""
    told = made.told()
    told["kinds"][0]["kind"] = told["sessions"][3]["limits"][0]["name"] = HOSTILE

    read = Read(report_page(told))

    for words in (HOSTILE, ERROR, "Reads <b>pages</b> & sums them up."):
        assert words in read.text
    assert not read.names & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert [name for name, _ in read.attributes if name.startswith("on")] == []
    assert [value for name, value in read.attributes if name in ("href", "src")] == ["data:,"]


def test_a_chain_that_has_not_begun(make_ledger: LedgerFactory, clock: FakeClock) -> None:
    """It has a page, too, without what is not there yet."""
    ledger = make_ledger()
    ledger.add_chain("new")

    told = chain_report(ledger, "new", clock.now())

    assert told["gaps"] == told["calibration"] == told["kinds"] == []
    read = Read(report_page(told))
    assert "0 of 0 items done" in read.text
    assert "svg" not in read.names


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page(made: Made, tmp_path: Path) -> None:
    """CHAIN.html by default; secrets are masked in it and in the data; what cannot be is said in a line."""
    shell = make_shell(tmp_path)
    ledger = ("--ledger", str(made.path))

    said = shell.here("report", "mine", *ledger)
    data = shell.here("report", "mine", "--json", *ledger)
    named = shell.here("report", "mine", "--html", "other.html", *ledger)

    assert (said.code, data.code, named.code) == (OK, OK, OK), said
    assert re.fullmatch(r"mine\.html has the report \([\d.]+ KiB\)\n", said.out)
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["mine.html", "other.html"]
    for text in (data.out, *(path.read_text() for path in tmp_path.glob("*.html"))):
        assert "hunter2" not in text
        assert "postgresql://me:***@db/x" in text
    assert data.json()["stop_reasons"] == made.told()["stop_reasons"]
    shell.here("report", "mine", "--html", "no/where.html", *ledger).is_refusal("--html", "no/where.html", "a file")
    shell.here("report", "yours", *ledger).is_refusal("'yours'", "mine")


def test_it_looks_right_in_a_browser(made: Made, tmp_path: Path) -> None:
    """On a telephone, on a desk and on paper, light and dark: all fits, and nothing is asked of anybody."""
    need()
    page_file, heard = tmp_path / "report.html", list[str]()
    page_file.write_text(report_page(made.told()))

    with launched() as browser:
        backgrounds = set()
        for width in (375, 1280):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
                page.on("console", lambda message: heard.append(f"console: {message.text}"))
                page.on("pageerror", lambda error: heard.append(f"error: {error}"))
                page.on("request", lambda request: heard.append(request.url))
                page.goto(page_file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") == width
                assert page.title() == "mine · waiting"
                drawings = page.locator("svg:visible")
                assert drawings.count() == 2
                assert {round(drawing.bounding_box()["width"]) for drawing in drawings.all()} == {min(880, width - 32)}
                backgrounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
                page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf().startswith(b"%PDF")

    assert backgrounds == {("light", "rgb(255, 255, 255)"), ("dark", "rgb(17, 22, 28)")}
    assert heard == [page_file.as_uri()] * 4
