"""The heartbeat: keeps the lease while a unit runs for longer than a lease lasts."""

from threading import Event, Thread
from types import TracebackType
from typing import Self

from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import Fenced, LedgerError
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.ledger import Fence, Ledger
from perpetual_blocks.session.stop import StopRequest

AGAIN_SECONDS = 1.0
"""After a beat that failed the next one comes so soon."""


class Heartbeat:
    """Moves the lease on from a thread of its own, four times a lease, as long as the `with` block runs.

    A chain that was lost stops the session at once. A ledger that cannot be reached does not: the session works on
    until its lease has run out. From then on somebody else may own the chain, so it stops, and commits nothing more.

    Args:
        since: When the session was opened, on the monotonic clock.
    """

    def __init__(self, ledger: Ledger, fence: Fence, stop: StopRequest, clock: Clock, since: float) -> None:
        self._ledger = ledger
        self._fence = fence
        self._stop = stop
        self._clock = clock
        # By this clock, and from the beginning of the call: whatever the wall clocks say, and however long the answer
        # was under way, the lease that the ledger has written down does not end before.
        self._renewed = since
        self._over = Event()
        self._thread = Thread(target=self._run, name=f"heartbeat {fence.chain}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> float | None:
        """Moves the lease on; in how many seconds to do so again, or None when it is of no use any more."""
        lease, began = self._ledger.lease_seconds(), self._clock.monotonic()
        try:
            self._ledger.heartbeat(self._fence)
        except Fenced as lost:
            self._stop.ask(StopReason("fenced", str(lost)))
            return None
        except LedgerError as error:
            left = self._renewed + lease - self._clock.monotonic()
            if left <= 0:
                self._stop.ask(StopReason("unreachable", f"its lease of {lease:g} s ran out; {error}"))
                return None
            return min(AGAIN_SECONDS, left)
        self._renewed = began
        return lease / 4

    def _run(self) -> None:
        pause: float | None = self._ledger.lease_seconds() / 4
        while pause is not None and not self._over.wait(pause):
            pause = self.beat()
