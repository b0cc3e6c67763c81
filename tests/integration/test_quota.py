"""Quota windows: a real chain against a real HTTP API that counts."""

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import pytest
from workbench import HERE, Site

WINDOW_SECONDS = 15.0
ALLOWED = 8


@dataclass
class Api:
    """An API that allows so many calls in any 15 seconds, and remembers when each came and what it was answered."""

    allowed: int = ALLOWED
    calls: list[tuple[float, int]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._recent: deque[float] = deque()
        self._lock = Lock()

    def answer(self) -> int:
        with self._lock:
            now = time.monotonic()
            while self._recent and self._recent[0] <= now - WINDOW_SECONDS:
                self._recent.popleft()
            status = 200 if len(self._recent) < self.allowed else 429
            if status == 200:
                self._recent.append(now)
            self.calls.append((now, status))
            return status


@pytest.fixture
def api() -> Iterator[Api]:
    """The API on the loopback address."""
    counting = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = counting.answer()
            body = json.dumps({"page": self.path}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    counting.url = f"http://127.0.0.1:{server.server_port}"
    yield counting
    server.shutdown()
    thread.join()


def test_a_chain_waits_for_its_rolling_quota(site: Site, api: Api) -> None:
    """Its follow-ons are scheduled for the moment when there is room again; it uses all
    that it is allowed, never hears 429, and waits no longer than it must."""
    notes: Path = site.folder / "notes"
    site.serve(HERE / "quota_pages.py")

    site.trigger("read-pages/served", {"api": api.url, "notes": str(notes), "n": 14, "chain": "quota"})
    status = site.chain_over("quota")

    assert (status["status"], status["items"]["completed"]) == ("finished", 14)
    assert [answer for _, answer in api.calls] == [200] * 14
    first, *others = status["sessions"]
    assert others, "it waited for its quota"
    assert first["stop_reason"] == "budget:calls"
    assert "calls in 15s" in first["stop_message"]
    assert first["units"] == ALLOWED, "it used all that it was allowed"
    waited = api.calls[first["units"]][0] - api.calls[0][0]
    assert WINDOW_SECONDS <= waited < WINDOW_SECONDS + 15
    run = site.call("GET", f"/flow_runs/{others[0]['flow_run_id']}")
    assert run["expected_start_time"] > first["ended_at"]
