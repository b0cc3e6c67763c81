"""A client of an API with a quota, against one that has a quota."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import quota_worker
from quota_worker import QuotaWorker

from perpetual_blocks import Budget, Limit
from perpetual_blocks.cli.demos import quota
from perpetual_blocks.cli.demos.http_server import served
from perpetual_blocks.cli.demos.quota import CatalogueHandler, QuotaOfServer
from perpetual_blocks.testing import ManualClock, run_chain, run_session

PAGES, CALLS = 12, 5
A_DAY = Budget(Limit("calls", 1000, scope="window", window="day"))


class Api:
    """The API, and the clock that it has in common with the chain.

    Attributes:
        agent: Its client, whose pages are beside it.
    """

    def __init__(self, address: str, allowed: QuotaOfServer, clock: ManualClock, folder: Path) -> None:
        self.allowed, self.clock, self.folder = allowed, clock, folder
        self.agent = QuotaWorker(url=f"{address}/catalogue?page=1", out=folder)

    def pages(self) -> list[str]:
        """The names of the pages that are there."""
        return sorted(file.stem for file in self.folder.glob("*.json"))


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Twelve pages, of which five may be read in twelve seconds."""
    monkeypatch.setattr(quota, "PAGES", PAGES)
    monkeypatch.setattr(quota, "CALLS", CALLS)
    clock = ManualClock(time.time())
    allowed = QuotaOfServer(clock.now)
    with served(type("Handler", (CatalogueHandler,), {"quota": allowed})) as address:
        yield Api(address, allowed, clock, tmp_path)


def test_the_quota_is_used_to_its_last_call_and_not_beyond(api: Api) -> None:
    """The budget says a thousand calls a day; what the API says goes before that, and the chain waits for the reset."""
    chain = run_chain(api.agent, budget=A_DAY, clock=api.clock)

    assert [len(session.units) for session in chain] == [CALLS, CALLS, PAGES - 2 * CALLS]
    assert [session.state for session in chain] == ["Wrapped", "Wrapped", "Finished"]
    assert all(session.reason.code == "budget:calls" for session in chain[:-1])
    assert len(api.pages()) == PAGES
    assert api.allowed.refused == 0


def test_what_has_not_changed_costs_no_call(api: Api) -> None:
    """A second chain asks with the ETags of the first one's files."""
    run_chain(api.agent, budget=A_DAY, clock=api.clock)
    before = {file: file.stat().st_mtime_ns for file in api.folder.glob("*.json")}

    [again] = run_chain(api.agent, budget=A_DAY, clock=api.clock)

    assert (again.state, again.usage.get("calls", 0)) == ("Finished", 0)
    assert not any(result["changed"] for result in again.results.values())
    assert {file: file.stat().st_mtime_ns for file in api.folder.glob("*.json")} == before


def test_a_refusal_is_no_failed_attempt(api: Api) -> None:
    """Where somebody else has used the quota up, the session ends until `Retry-After`."""
    while api.allowed.take()[0]:
        pass

    first = run_session(api.agent, budget=A_DAY, clock=api.clock)

    item = first.items["page-1"]
    assert (first.state, item.failures, item.next_action) == ("Wrapped", 0, "ask again when the quota resets")
    resume_at = first.reason.resume_at
    assert resume_at is not None
    assert 0 < resume_at - api.clock.now() <= quota.WINDOW_SECONDS + 1
    assert len(first.go_on().units) == CALLS


def test_an_api_that_is_away_is_waited_for(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors cost no page its attempts; when it is back, the chain goes on."""
    first = run_session(api.agent, budget=A_DAY, clock=api.clock, stop_after=2)
    with monkeypatch.context() as closed:
        closed.setattr(CatalogueHandler, "do_GET", lambda handler: handler.send_error(503))
        second = first.go_on()
    third = second.go_on()

    assert (second.state, second.reason.code, second.units) == ("Wrapped", "outage", ())
    assert second.reason.message.endswith("503 Service Unavailable")
    assert sum(item.attempts for item in second.items.values()) == 1
    assert len(third.units) == CALLS


@pytest.mark.parametrize(
    ("after", "expected"),
    [("120", None), ("Wed, 21 Oct 2026 07:28:00 GMT", datetime(2026, 10, 21, 7, 28, tzinfo=UTC))],
)
def test_retry_after_is_seconds_or_a_date(after: str, expected: datetime | None) -> None:
    """Both forms of RFC 9110."""
    found = quota_worker.retry_at(after)

    assert found == expected if expected else abs(float(found) - time.time() - 120) < 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("", []),
        ('<?page=3>; rel="next"', ["page-3"]),
        ('<?page=3>; rel="next", <?page=5>; rel="last"', ["page-3", "page-4", "page-5"]),
        ('<?page=2>; rel="last"', []),
    ],
)
def test_other_pages(link: str, expected: list[str]) -> None:
    """Those that a page's Link header leads to, relative addresses too."""
    request = httpx.Request("GET", "http://127.0.0.1/items?page=2&q=a")
    answer = httpx.Response(200, headers={"link": link} if link else {}, request=request)

    items = quota_worker.other_pages(answer)

    assert [item.id for item in items] == expected
    assert all(item.payload["url"].startswith("http://127.0.0.1/items?page=") for item in items)


def test_a_page_keeps_what_it_was_asked_with(api: Api) -> None:
    """A file has the page, its address, and its ETag."""
    run_session(api.agent, budget=A_DAY, clock=api.clock, stop_after=1)

    page = json.loads((api.folder / "page-1.json").read_text())
    assert page["url"] == api.agent.url
    assert page["etag"]
    assert page["body"][0] == {"id": 20, "square": 400}
