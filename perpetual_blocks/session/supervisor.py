"""The supervisor: goes on with chains that a crash has left half done, and finishes what it left.

It may run at any time, as often as one likes and at several places at once: in a hook of a run that has crashed, from
an automation, on a schedule, from a shell. Whatever it does is decided again under the lock of the chain's row, and a
follow-on has an idempotency key, so that one follow-on comes of it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from perpetual_blocks.clock import Clock
from perpetual_blocks.errors import PerpetualError, described
from perpetual_blocks.faults import reached
from perpetual_blocks.session.asking import close_question
from perpetual_blocks.session.chain import Chain, ChainStatus, SessionRecord, SessionState, StopReason
from perpetual_blocks.session.completion import RECENT, complete
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.follow_on import create_follow_ons, move_follow_ons
from perpetual_blocks.session.ledger import FollowOn, Ledger
from perpetual_blocks.session.manners import after_crash, back_off
from perpetual_blocks.session.ports import Documents, RunFacts, Runs, RunState

LATE_SECONDS = 60.0
"""A follow-on that has not begun its session so long after its time is looked at."""

STUCK_SECONDS = 120.0
"""A run that a worker has taken up, and that has not begun its session after so long, is taken for dead; the one in its
place is given twice the time, and so on, as some machines do take long to start."""

LOOKED_BACK_SECONDS = 3600.0
"""For how long after a chain's last change its latest sessions are looked at for what they have left undone."""

Alive = Callable[[SessionRecord], bool | None]
"""Whether the process of a session lives; None where that cannot be known from here."""


@dataclass(frozen=True, slots=True)
class Deed:
    """What the supervisor did, or found, for the log, the page in the UI and `perpetual supervise`.

    Attributes:
        what: `rescued`, `created`, `renewed`, `moved`, `held`, `completed` (a handoff that was missing), `late` (nobody
            takes the follow-on up), `unanswered` (a question about a total that is gone is closed) or `failed` (the
            supervisor could not look).
        status: How the chain stands after a rescue; "" where nothing has changed that.
    """

    chain: str
    what: Literal["rescued", "created", "renewed", "moved", "held", "completed", "late", "unanswered", "failed"]
    why: str
    status: str = ""


def death(chain: Chain, latest: SessionRecord, now: float, alive: bool | None) -> str | None:
    """Why the session that owns the chain counts as dead; None as long as it does not.

    A process that is known to be gone is dead at once. Of any other, only its lease tells: a process that lives, and
    has not renewed it, hangs or cannot reach the ledger, and may commit nothing any more.
    """
    if latest.state is not SessionState.RUNNING:
        return None
    if alive is False:
        return f"its process ({latest.pid} on {latest.host}) is dead"
    if chain.lease_until <= now:
        return f"its process ({latest.pid} on {latest.host}) has not been heard of for {now - chain.lease_until:.0f} s"
    return None


def ending_of_the_dead(run: RunFacts | None, chain: Chain, sessions: Sequence[SessionRecord], now: float) -> Ending:
    """What becomes of a chain whose session was found dead, given how its flow run stands."""
    if run is not None and run.state is RunState.CANCELLED:
        reason = StopReason("cancelled", "its flow run was cancelled")
        return Ending(SessionState.CRASHED, ChainStatus.CANCELLED, reason, goes_on=False)
    if run is not None and run.state is RunState.PAUSED:
        reason = StopReason("paused", "its flow run was paused")
        return Ending(SessionState.CRASHED, ChainStatus.PAUSED, reason, goes_on=True)
    return after_crash(chain, sessions, now)


Fate = Literal["wait", "late", "renew", "cancelled"]


def fate(run: RunFacts, now: float, renewals: int = 0, *, due: float = 0.0, waits_until: float | None = None) -> Fate:
    """What is to be done about a follow-on that should have begun its session, given how its run stands.

    Args:
        renewals: How many runs in its place came to nothing before.
        due: Since when it could begin; before that it had to wait.
        waits_until: Until when it is known to wait at the fence, if it has come there.
    """
    match run.state:
        case RunState.CANCELLED:
            return "cancelled"
        case RunState.ENDED | RunState.BROKEN | RunState.GONE:
            return "renew"
        case RunState.STARTING | RunState.RUNNING if waits_until is not None:
            return "wait" if now < waits_until else "renew"
        case RunState.STARTING | RunState.RUNNING:
            return "renew" if now - max(run.since, due) >= STUCK_SECONDS * 2**renewals else "wait"
        case RunState.SCHEDULED | RunState.PAUSED:
            return "late"


class Supervisor:
    """Looks after the chains of a ledger.

    Args:
        runs: Prefect's flow runs; None without a server: then follow-ons wait in the outbox.
        documents: The results storage, where what a dead session could not write is written.
    """

    def __init__(
        self, ledger: Ledger, runs: Runs | None, clock: Clock, alive: Alive, documents: Documents | None = None
    ) -> None:
        self._ledger = ledger
        self._documents = documents
        self._runs = runs
        self._clock = clock
        self._alive = alive

    def look(self, queue: str | None = None) -> list[Deed]:
        """Looks at every chain once, or at those of a queue; what is wrong with one keeps nobody from the others."""
        deeds: list[Deed] = []
        for chain in self._ledger.chains(queue):
            if chain.status in (ChainStatus.RUNNING, ChainStatus.WAITING):
                deeds += self._guarded(chain.name, lambda chain=chain: self._look_at(chain))  # type: ignore[misc]
            if chain.asks_until is not None and self._runs is not None:
                deeds += self._guarded(chain.name, lambda chain=chain: self._close_question(chain))  # type: ignore[misc]
            if self._clock.now() - chain.updated_at < LOOKED_BACK_SECONDS:
                deeds += self._guarded(chain.name, lambda name=chain.name: self._tidy(name))  # type: ignore[misc]
        if self._runs is not None:
            runs = self._runs
            deeds += self._guarded("", lambda: self._moved(move_follow_ons(self._ledger, runs, self._clock)))
        return deeds

    def look_at(self, chain: str) -> list[Deed]:
        """Looks at one chain."""
        return self._look_at(self._ledger.chain(chain))

    def look_after(self, chain: str) -> list[Deed]:
        """Looks at a chain whose session has just ended, and whose follow-on, created ahead, may have come to nothing
        meanwhile."""
        return self._look_at(self._ledger.chain(chain), at_once=True)

    def run_is_over(self, flow_run_id: str) -> list[Deed]:
        """Goes on with the chain of a flow run that is known to be over, without waiting for its lease to end."""
        name = self._ledger.chain_of_run(flow_run_id)
        if name is None:
            return []
        chain = self._ledger.chain(name)
        latest = self._latest(name)
        if chain.status is ChainStatus.RUNNING and latest is not None and latest.flow_run_id == flow_run_id:
            if self._alive(latest) is not True:
                self._ledger.declare_dead(name, latest.ordinal)
            chain = self._ledger.chain(name)
        return self._look_at(chain, over=flow_run_id)

    def _latest(self, chain: str) -> SessionRecord | None:
        sessions = self._ledger.sessions(chain)
        return sessions[-1] if sessions else None

    def _guarded(self, chain: str, look: Callable[[], list[Deed]]) -> list[Deed]:
        try:
            return look()
        except Exception as error:  # noqa: BLE001 - one broken chain must not keep the others from being rescued
            return [Deed(chain, "failed", described(error))]

    def _look_at(self, chain: Chain, over: str | None = None, *, at_once: bool = False) -> list[Deed]:
        deeds: list[Deed] = []
        if chain.status is ChainStatus.RUNNING and (deeds := self._rescue(chain)):
            chain, at_once = self._ledger.chain(chain.name), True  # its follow-on may have been created ahead
        if chain.status is ChainStatus.WAITING:
            deeds += self._follow_up(chain, over, at_once=at_once)
        if self._runs is not None and create_follow_ons(self._ledger, self._runs, chain.name):
            deeds.append(Deed(chain.name, "created", "the run that goes on was created"))
        return deeds

    def _rescue(self, chain: Chain) -> list[Deed]:
        latest = self._latest(chain.name)
        if latest is None or latest.ordinal != chain.ordinal:
            return []
        alive = self._alive(latest)
        why = death(chain, latest, self._ledger.now(), alive)
        if why is None:
            return []
        run = self._facts(latest.flow_run_id)
        reached("supervisor.rescuing")
        if alive is False:
            self._ledger.declare_dead(chain.name, latest.ordinal)
        end = self._ledger.rescue(
            chain.name,
            latest.ordinal,
            why,
            lambda chain, sessions: ending_of_the_dead(run, chain, sessions, self._clock.now()),
        )
        reached("supervisor.rescued")
        if end is None:
            return []
        said = f"session {latest.ordinal}: {why}; the chain is {end.chain}"
        return [Deed(chain.name, "rescued", said, end.chain)]

    def _tidy(self, name: str) -> list[Deed]:
        """Writes the handoff of a session that left none, and ends runs that say that they still run."""
        chain, sessions = self._ledger.chain(name), self._ledger.sessions(name)[-RECENT:]
        if self._runs is not None:
            for dead in (session for session in sessions if session.state is SessionState.CRASHED):
                if dead.flow_run_id is not None:
                    self._runs.crashed(dead.flow_run_id, dead.stop_message or "its process died")
        if self._documents is None or not sessions or chain.status is ChainStatus.RUNNING:
            return []
        written = complete(self._ledger, self._documents, chain, self._clock.now())
        return [Deed(name, "completed", f"session {ordinal} had left no handoff") for ordinal in written]

    def _follow_up(self, chain: Chain, over: str | None, *, at_once: bool) -> list[Deed]:
        found = self._ledger.follow_on(chain.name, chain.ordinal + 1)
        if found is None or found[1] is None or found[0].flow_run_id is None or self._runs is None:
            return []
        follow_on, created_at, renewals = found
        latest = self._latest(chain.name)
        ended_at = latest.ended_at if latest is not None else None
        # One that was created ahead waits for the session before.
        due = max(created_at or 0.0, follow_on.not_before or 0.0, ended_at or 0.0)
        if not at_once and follow_on.flow_run_id != over and self._ledger.now() < due + LATE_SECONDS:
            return []
        run = self._runs.facts(follow_on.flow_run_id or "")
        return self._decide(follow_on, run, renewals, due)

    def _decide(self, follow_on: FollowOn, run: RunFacts, renewals: int, due: float) -> list[Deed]:
        assert self._runs is not None
        assert follow_on.flow_run_id is not None
        name, now = follow_on.chain, self._ledger.now()
        match fate(run, now, renewals, due=due, waits_until=follow_on.waits_until):
            case "cancelled":
                why = "the flow run that was to go on was cancelled"
                held = self._ledger.hold(name, follow_on.ordinal - 1, ChainStatus.CANCELLED, why)
                return [Deed(name, "held", why, ChainStatus.CANCELLED)] if held else []
            case "renew":
                why = f"the run that was to be session {follow_on.ordinal} is {run.state} and has not begun it"
                wait = back_off(renewals + 1)
                if not self._ledger.renew_follow_on(follow_on, why, now + wait if wait else None):
                    return []
                with suppress(Exception):
                    self._runs.crashed(follow_on.flow_run_id, why)
                return [Deed(name, "renewed", why)]
            case "late" if now >= due + LATE_SECONDS:
                late = f"{now - due:.0f} s"
                why = f"nobody has taken up the run of session {follow_on.ordinal} for {late}: is a worker alive?"
                return [Deed(name, "late", why)]
            case "late" | "wait":
                return []

    def _close_question(self, chain: Chain) -> list[Deed]:
        assert self._runs is not None
        why = close_question(self._ledger, self._runs, chain, self._ledger.now())
        return [Deed(chain.name, "unanswered", why)] if why is not None else []

    def _facts(self, flow_run_id: str | None) -> RunFacts | None:
        if self._runs is None or flow_run_id is None:
            return None
        try:
            return self._runs.facts(flow_run_id)
        except Exception as error:
            # Without it a chain that a person has cancelled would go on; the next look may be able to ask.
            raise PerpetualError(f"cannot ask Prefect how run {flow_run_id} stands: {described(error)}") from error

    def _moved(self, count: int) -> list[Deed]:
        return [Deed("", "moved", f"{count} follow-ons start earlier: their quota is free")] if count else []
