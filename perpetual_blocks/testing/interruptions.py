"""What happens to a session at a named point: an exception, SIGTERM, SIGKILL, or a rival that takes its chain over."""

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, get_args

from perpetual_blocks import faults
from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import InvalidInput, UnknownChain
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState, StopReason
from perpetual_blocks.session.ledger import Closing
from perpetual_blocks.session.stop import StopRequest

Mode = Literal["exception", "SIGTERM", "SIGKILL", "lost lease"]
MODES: tuple[Mode, ...] = get_args(Mode)

RIVAL = "rival"
"""The flow run of the session that takes a chain over and gives it back."""


class InjectedFault(Exception):
    """Raised at a point, on purpose."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """What happens, and where.

    Attributes:
        occurrence: The how manieth time that the chain's sessions reach the point, from 1.
    """

    point: str
    occurrence: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.point}:{self.occurrence}:{self.mode}"

    @classmethod
    def parse(cls, text: str) -> "Interruption":
        """Reads what `str` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        point, _, rest = text.partition(":")
        occurrence, _, mode = rest.partition(":")
        if not point or not occurrence.isdecimal() or mode not in MODES:
            raise InvalidInput.of("only", text, f"point:occurrence:mode with a mode of {', '.join(MODES)}")
        return cls(point, int(occurrence), mode)


class Interrupter:
    """A fault handler that counts the points, and interrupts the session at one of them.

    Args:
        seen: How often each point was reached before, in earlier sessions; counted on.
        fired: Called just before it happens.
    """

    def __init__(
        self,
        interruption: Interruption | None,
        seen: Counter[str],
        fired: Callable[[], None],
        stop: StopRequest,
        ledger: SqlLedger,
        database: Path,
    ) -> None:
        self._interruption = interruption
        self._fired = fired
        self._stop = stop
        self._ledger = ledger
        self._database = database
        self._lock = Lock()
        self._rival: Thread | None = None
        self.seen = seen

    def __call__(self, point: str) -> None:
        with self._lock:  # points are reached in threads of their own, too
            self.seen[point] += 1
            wanted = self._interruption
            if wanted is None or (point, self.seen[point]) != (wanted.point, wanted.occurrence):
                return
            faults.install(None)
        self._fired()
        match wanted.mode:
            case "exception":
                raise InjectedFault(f"at {point}, reached {wanted.occurrence} times")
            case "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
                self._stop.wait(SystemClock(), 10)
            case "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            case "lost lease":
                self._let_a_rival_in()

    def join(self) -> None:
        """Waits for the rival, where there is one."""
        if self._rival is not None:
            self._rival.join()

    def _let_a_rival_in(self) -> None:
        within_transaction = _is_locked(self._database)
        self._rival = Thread(target=take_over, args=(self._ledger,), name=RIVAL)
        self._rival.start()
        if not within_transaction:  # else the rival comes when that is over
            self._rival.join()


def _is_locked(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


def take_over(ledger: SqlLedger) -> None:
    """Takes the ledger's one chain over, whether it is at work or waits, and lets it wait for its next session."""
    with suppress(UnknownChain, IndexError):
        chain = ledger.chains()[0]
        latest = ledger.sessions(chain.name)[-1]
        if not ledger.declare_dead(chain.name, latest.ordinal) and chain.status is not ChainStatus.WAITING:
            return
        request = SessionRequest(
            chain=chain.name,
            agent=chain.agent,
            holder=RIVAL,
            host=latest.host,
            pid=latest.pid,
            process_started=latest.process_started,
            flow_run_id=RIVAL,
            settings=chain.settings,
        )
        end = Closing(
            state=SessionState.WRAPPED,
            stop=StopReason("asked", "a rival gives the chain back"),
            graceful=False,
            chain_status=ChainStatus.WAITING,
            limits=[],
            steps=[],
        )
        ledger.close_session(ledger.open_session(request).fence, end)
