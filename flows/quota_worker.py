"""Fetches every page of a paginated HTTP API that allows so many calls a day.

python flows/quota_worker.py         # serves the deployment `fetch-pages/quota-worker` from this process
"""

import json
import time
from collections.abc import Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from pydantic import Field, PrivateAttr

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unavailable, Unit, WorkItem, write_whole

NOT_MODIFIED, TOO_MANY_REQUESTS = 304, 429


class QuotaWorker(PerpetualAgent):
    """Fetch every page of an API, as fast as its quota allows, and go on when the quota resets.

    A page is an item, a call, and a file. What the API says of its quota, in `X-RateLimit-Remaining` and
    `X-RateLimit-Reset` or in `Retry-After`, goes before the budget. A page that was fetched before is asked for with
    its ETag: where it has not changed, that is no call.
    """

    cancellable = ("calls",)  # a call is reserved before it is made, so that the quota is used to its last one

    url: str = Field(description="The first page; its Link header names the next or the last one.")
    out: Path = Field(default=Path("pages"), description="The folder that the pages are written to.")

    _client: httpx.AsyncClient | None = PrivateAttr(default=None)

    def plan(self) -> Iterable[WorkItem]:
        yield WorkItem(id="page-1", payload={"url": self.url}, bound={"calls": 1})

    async def work_unit(self, unit: Unit) -> object:
        unit.reserve(calls=1)
        if self._client is None:  # one for all units of a session: they share its connections
            self._client = httpx.AsyncClient(timeout=30)
        file = self.out / f"{unit.id}.json"
        etag = json.loads(file.read_text())["etag"] if file.exists() else None
        try:
            answer = await self._client.get(unit.payload["url"], headers={"If-None-Match": etag} if etag else {})
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url}: {error}") from error  # it is the same API for all pages
        if answer.status_code != NOT_MODIFIED:
            unit.spend(calls=1)
        heed(unit, answer)
        if answer.status_code == TOO_MANY_REQUESTS:
            return unit.advance(next_action="ask again when the quota resets")
        if answer.is_server_error:
            raise Unavailable(f"{self.url}: {answer.status_code} {answer.reason_phrase}")
        unit.add(*other_pages(answer))
        if answer.status_code == NOT_MODIFIED:
            return {"file": file.name, "changed": False}
        answer.raise_for_status()
        page = {"etag": answer.headers.get("etag"), "url": unit.payload["url"], "body": answer.json()}
        write_whole(file, json.dumps(page, indent=1))
        return {"file": file.name, "changed": True}

    def cleanup(self) -> None:
        self._client = None  # it belongs to the session's event loop, which ends with it


def heed(unit: Unit, answer: httpx.Response) -> None:
    """Passes on what the API says of its quota."""
    remaining, resets_at = answer.headers.get("x-ratelimit-remaining"), answer.headers.get("x-ratelimit-reset")
    if answer.status_code == TOO_MANY_REQUESTS and (after := answer.headers.get("retry-after")):
        unit.report_quota("calls", remaining=0, resets_at=retry_at(after))
    elif remaining is not None and resets_at is not None:
        unit.report_quota("calls", remaining=int(remaining), resets_at=float(resets_at))


def retry_at(after: str) -> float | datetime:
    """When a `Retry-After` ends: it is seconds, or a date (RFC 9110, section 10.2.3)."""
    return time.time() + int(after) if after.isdecimal() else parsedate_to_datetime(after)


def other_pages(answer: httpx.Response) -> list[WorkItem]:
    """The pages that a page's Link header leads to (RFC 8288): all up to the last one, or else the next.

    Pages that are in the queue already stay as they are.
    """
    links = {rel: httpx.URL(answer.url).join(link["url"]) for rel, link in answer.links.items()}
    here = int(answer.url.params.get("page", 1))
    if "last" in links:
        urls = [links["last"].copy_set_param("page", n) for n in range(here + 1, int(links["last"].params["page"]) + 1)]
    else:
        urls = [links["next"]] if "next" in links else []
    return [WorkItem(id=f"page-{url.params['page']}", payload={"url": str(url)}, bound={"calls": 1}) for url in urls]


fetch_pages = QuotaWorker.as_flow(
    name="fetch-pages",
    budget=Budget(Limit("calls", 5000, scope="window", window="day")),
    concurrency=4,
)

if __name__ == "__main__":
    fetch_pages.serve(name="quota-worker", description=QuotaWorker.task())
