"""A session at a glance in Prefect's UI, while it works: its progress, its queue, and the pools that it shares.

An observer with a thread of its own, which reads the ledger and writes to Prefect: no unit waits for it, and nothing
depends on it. Prefect's states are left alone: to say something in the message of a Running state again would use up
the run's retries, and undo a pause.
"""

import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

from perpetual_blocks.adapters.prefect_artifacts import RunArtifacts
from perpetual_blocks.adapters.prefect_gauges import show_pool
from perpetual_blocks.clock import isoformat, show_time
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.progress import Onlooker, Progress
from perpetual_blocks.session.progress_words import in_words
from perpetual_blocks.session.queue_page import summarise, to_markdown
from perpetual_blocks.telemetry import Moment, SessionStarted

FIRST_SECONDS = 1.0
"""The first unit has begun by then, and a session that is over is looked at once only."""

LOOK_SECONDS = 5.0
POOLS_SECONDS = 15.0
SHARE_OF_TIME = 0.02
"""How much of the time is spent looking, at most: where that takes long, it is done less often."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ShownProgress:
    """Shows how a session gets on, from its start until `close`.

    Attributes:
    """

    ledger: Ledger
    flow_run_id: str
    redactor: Redactor
    _over: Event = field(default_factory=Event)
    _thread: Thread | None = None
    _said: tuple[float, str] | None = None
    _pools_at: float | None = None

    def __call__(self, moment: Moment) -> None:
        """Begins with the session. A run that comes to nothing shows nothing."""
        if isinstance(moment, SessionStarted) and self._thread is None:
            run = copy_context().run
            self._thread = Thread(target=run, args=(self._show, moment.chain), name="perpetual progress", daemon=True)
            self._thread.start()

    def close(self, seconds: float) -> None:
        """Lets it look once more, and waits so long for that."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _show(self, chain: str) -> None:
        onlooker, artifacts = Onlooker(self.ledger, chain), RunArtifacts(self.flow_run_id)
        last = self._over.wait(FIRST_SECONDS)
        if not last:
            self._try(partial(self._show_queue, onlooker, artifacts))
        while True:
            began = time.monotonic()
            self._try(partial(self._show_progress, onlooker, artifacts))
            self._try(partial(self._show_pools, onlooker, last=last))
            if last:
                break
            seconds = time.monotonic() - began
            last = self._over.wait(max(LOOK_SECONDS, seconds / SHARE_OF_TIME))
        self._try(partial(self._show_queue, onlooker, artifacts))

    def _show_progress(self, onlooker: Onlooker, artifacts: RunArtifacts) -> None:
        progress = onlooker.look()
        said = (_share(progress), self.redactor(in_words(progress, _utc)))
        if said != self._said:
            artifacts.show_progress(f"progress-{onlooker.name}", *said)
            self._said = said

    def _show_queue(self, onlooker: Onlooker, artifacts: RunArtifacts) -> None:
        queue = self.ledger.chain(onlooker.name).queue
        summary = summarise(self.ledger, queue, onlooker.clock.now(), onlooker.agents)
        artifacts.show_markdown(f"queue-{queue}", self.redactor(to_markdown(summary)), summary.in_short)

    def _show_pools(self, onlooker: Onlooker, *, last: bool) -> None:
        now = time.monotonic()
        if not last and self._pools_at is not None and now - self._pools_at < POOLS_SECONDS:
            return
        self._pools_at = now
        budget = self.ledger.chain(onlooker.name).budget
        for limit in (limit for limit in budget if limit.pool):
            show_pool(limit, *self.ledger.pool_level(limit))

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # noqa: BLE001 - it is for looking at, and the session goes on without
            _log.debug("not shown in Prefect's UI: %s", self.redactor(f"{type(error).__name__}: {error}"))


def _share(progress: Progress) -> float:
    items = progress.status["items"]
    return float(items["completed"] / max(1, items["total"]))


def _utc(at: float) -> str:
    return show_time(isoformat(at) or "")
