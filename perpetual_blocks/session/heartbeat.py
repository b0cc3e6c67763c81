"""The heartbeat: keeps the lease while a unit runs for longer than a lease lasts."""

from threading import Event, Thread
from types import TracebackType
from typing import Self

from perpetual_blocks.errors import Fenced, LedgerError
from perpetual_blocks.session.chain import StopReason
from perpetual_blocks.session.ports import Fence, Ledger
from perpetual_blocks.session.stop import StopRequest


class Heartbeat:
    """Moves the lease on from a thread of its own, four times a lease, as long as the `with` block runs.

    A ledger that cannot be reached is tried again at the next beat: the session goes on, and whatever it commits is
    refused should somebody have taken over. A lost chain stops the session at once.
    """

    def __init__(self, ledger: Ledger, fence: Fence, stop: StopRequest) -> None:
        self._ledger = ledger
        self._fence = fence
        self._stop = stop
        self._over = Event()
        self._thread = Thread(target=self._beat, name=f"heartbeat {fence.chain}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._ledger.lease_seconds() / 4):
            try:
                self._ledger.heartbeat(self._fence)
            except Fenced as lost:
                self._stop.ask(StopReason("fenced", str(lost)))
                return
            except LedgerError:
                continue
