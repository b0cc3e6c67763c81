"""Watching: whether somebody outside wants the session to stop, asked again and again beside its work."""

from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from perpetual_blocks.session.chain import StopReason, Wanted
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.stop import StopRequest

Look = Callable[[], StopReason | None]

LOOK_SECONDS = 2.0


class Watch:
    """Looks every two seconds from a thread of its own, as long as the `with` block runs, and asks the session to stop.

    Who cannot be reached is asked again at the next look: a wish that cannot be heard must not stop anybody.
    """

    def __init__(self, look: Look, stop: StopRequest, name: str) -> None:
        self._look = look
        self._stop = stop
        self._over = Event()
        self._thread = Thread(target=self._watch, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not joined: a look may hang for as long as a server does not answer, and its answer does not matter any more.
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                reason = self._look()
            except Exception:  # noqa: BLE001 - whatever keeps us from hearing it, it is asked again
                continue
            if reason is not None and not self._over.is_set():
                self._stop.ask(reason)
                return


def wishes(ledger: Ledger, chain: str) -> StopReason | None:
    """What a person wants of the chain, as a reason to stop."""
    found = ledger.wanted(chain)
    if found is None:
        return None
    wanted, why = found
    return StopReason("cancelled" if wanted is Wanted.CANCEL else "paused", why)
