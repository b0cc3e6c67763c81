"""The API quota: a catalogue of 105 pages, of which 45 may be read in 12 seconds."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx

from perpetual_blocks.cli.demos.application import Application
from perpetual_blocks.cli.demos.http_server import served

PAGES, CALLS, WINDOW_SECONDS = 105, 45, 12.0


class Quota(Application):
    """Reads the catalogue from a local API, whose quota resets every 12 seconds instead of every day."""

    name = "quota"
    flow = "quota_worker.py:fetch_pages"
    limit = f"{CALLS} calls in {WINDOW_SECONDS:g} s"

    @contextmanager
    def parts(self) -> Iterator[None]:
        """The API."""

        class Handler(CatalogueHandler):
            quota = QuotaOfServer()

        self._quota = Handler.quota
        with served(Handler) as address:
            self._address = address
            yield

    def parameters(self) -> dict[str, Any]:
        return {"url": f"{self._address}/catalogue?page=1", "out": str(self.folder / "pages")}

    def expected(self) -> int:
        return PAGES

    def results(self) -> dict[str, str]:
        bodies = {file.stem: json.loads(file.read_text())["body"] for file in (self.folder / "pages").glob("*.json")}
        return {name: hashlib.sha256(json.dumps(body).encode()).hexdigest() for name, body in bodies.items()}

    def overruns(self) -> int:
        return self._quota.refused

    @staticmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        pages, url = [], parameters["url"]
        with httpx.Client() as client:
            while url is not None:
                answer = client.get(url)
                answer.raise_for_status()
                pages.append(answer.json())
                yield
                url = answer.links["next"]["url"] if "next" in answer.links else None


class QuotaOfServer:
    """What the server allows: so many calls from the first one on, until the window ends.

    Args:
        now: Seconds since the Unix epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = Lock()
        self._used, self._resets_at = 0, 0.0
        self.refused = 0

    def take(self) -> tuple[bool, int, float]:
        """Whether a call is allowed, how many are left, and when all are free again."""
        with self._lock:
            if self._now() >= self._resets_at:
                self._used, self._resets_at = 0, self._now() + WINDOW_SECONDS
            allowed = self._used < CALLS
            self._used += allowed
            self.refused += not allowed
            return allowed, CALLS - self._used, self._resets_at


class CatalogueHandler(BaseHTTPRequestHandler):
    """Answers with a page of the catalogue, or 429; tells of the quota as GitHub does."""

    quota: ClassVar[QuotaOfServer]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = int(parse_qs(urlsplit(self.path).query)["page"][0])
        body = json.dumps([{"id": number, "square": number * number} for number in range(page * 20, page * 20 + 20)])
        etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:16]}"'
        if self.headers.get("if-none-match") == etag:  # costs nothing
            self._answer(304, "", {"etag": etag})
            return
        allowed, left, resets_at = self.quota.take()
        told = {"x-ratelimit-remaining": str(left), "x-ratelimit-reset": f"{resets_at:.3f}"}
        if not allowed:
            after = {"retry-after": str(int(resets_at - time.time()) + 1)}
            self._answer(429, '{"error": "too many requests"}', told | after)
            return
        address = f"http://{self.headers['host']}/catalogue?page="
        links = [f'<{address}{PAGES}>; rel="last"'] + [f'<{address}{page + 1}>; rel="next"'] * (page < PAGES)
        self._answer(200, body, told | {"etag": etag, "link": ", ".join(links)})

    def _answer(self, status: int, body: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        """Says nothing: the demo's screen is for the chain."""
