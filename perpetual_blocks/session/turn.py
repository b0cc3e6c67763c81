"""At the fence: a run that was created ahead of the end of the session before waits until its chain is free.

It is up, and owns nothing: it is no session, spends no budget, and commits nothing. It asks the ledger some thirty
times a second whether anything has changed, and tries to open its session when something has. Should the session before
die, it is the nearest rescuer; it takes nothing over by itself, as a person may have cancelled that session's run.
"""

from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

from perpetual_blocks.budget import Budget
from perpetual_blocks.errors import Ahead, Superseded
from perpetual_blocks.faults import reached
from perpetual_blocks.session.account import budget_record
from perpetual_blocks.session.chain import SessionRequest, StopReason
from perpetual_blocks.session.documents import checkpoint_now
from perpetual_blocks.session.ledger import Opened, Turn
from perpetual_blocks.session.restore import restore
from perpetual_blocks.session.stop import StopRequest
from perpetual_blocks.session.supervisor import Supervisor
from perpetual_blocks.session.watch import Watch
from perpetual_blocks.session.world import World
from perpetual_blocks.telemetry import FenceReached

POLL_SECONDS = 0.03
LOOK_SECONDS = 1.0
"""How often the session before is asked whether it lives."""

BEAT_SECONDS, WAITS_SECONDS = 5.0, 30.0
"""How often a run says that it waits, and for how long it counts as waiting without saying so again."""


class SentAway(Superseded):
    """A run that waited at the fence was asked to stop."""

    def __init__(self, reason: StopReason, ordinal: int) -> None:
        super().__init__(f"{reason.message}, while the run waited to be session {ordinal}")
        self.reason = reason


def open_in_turn(world: World, request: SessionRequest, stop: StopRequest) -> tuple[Opened, float]:
    """Opens a session; a run that was created ahead waits at the fence until it may, or is not needed any more.

    Returns:
        The session, and when it was asked for, by the clock's `monotonic`.

    Raises:
        SentAway: it was asked to stop while it waited.
        Superseded: another session works on the chain, or it goes on without this run.
        InvalidInput: the chain is not one of this agent.
    """
    clock = world.clock
    came = began = clock.monotonic()
    try:
        return world.ledger.open_session(request), began
    except Ahead:
        place = _Place(world, request, stop)
    with place:
        while True:
            place.wait_for_news()
            began = clock.monotonic()
            with suppress(Ahead):
                return world.ledger.open_session(replace(request, waited=began - came)), began


def _rehearse(world: World, request: SessionRequest) -> None:
    """Reads once what a session reads when it resumes: what is loaded or made at first use is there when it counts."""
    ledger, now = world.ledger, world.clock.now()
    chain = ledger.chain(request.chain)
    budget_record(ledger, chain, Budget.from_json(request.settings["budget"]), now, before=chain.ordinal + 1)
    checkpoints = ledger.documents(chain.name, "checkpoint")
    stands = checkpoint_now(ledger, chain.name, chain.ordinal + 1, "", now)
    restore(checkpoints, world.documents, stands, graceful=True, signer=world.signer)


class _Place:
    """A run's place at the fence, as long as the `with` block runs."""

    def __init__(self, world: World, request: SessionRequest, stop: StopRequest) -> None:
        self._world = world
        self._ledger = world.ledger
        self._request = request
        self._chain = request.chain
        self._key = request.invitation or ""
        self._stop = stop
        self._before = world.ledger.sessions(request.chain)[-1]
        self._watches = ExitStack()
        self._seen: Turn | None = None
        self._next_look = self._next_beat = 0.0

    def __enter__(self) -> Self:
        for name, look in self._world.watched.items():
            self._watches.enter_context(Watch(look, self._stop, f"{name} {self._chain}"))
        reached("fence.reached")
        self._world.tell(FenceReached(self._chain, self._before.ordinal + 1))
        with suppress(Exception):  # it only saves time
            _rehearse(self._world, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watches.close()

    def wait_for_news(self) -> None:
        """Returns when something has changed since the last time, and at once at the first."""
        while True:
            if self._stop.reason is not None:
                self._leave(self._stop.reason)
            turn = self._ledger.turn(self._chain)
            if turn != self._seen:
                self._seen = turn
                return
            self._look(turn)
            self._stop.wait(self._world.clock, POLL_SECONDS)

    def _look(self, turn: Turn) -> None:
        now = self._world.clock.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            self._ledger.wait_at_fence(self._chain, self._key, WAITS_SECONDS)
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            if turn.lapsed or self._world.alive(self._before) is False:
                with suppress(Exception):  # it is looked at again, by others too
                    self._supervisor().look_at(self._chain)

    def _supervisor(self) -> Supervisor:
        world = self._world
        return Supervisor(world.ledger, world.runs, world.clock, world.alive)

    def _leave(self, reason: StopReason) -> NoReturn:
        """A run that a person has cancelled or paused says so itself; any other gives its invitation back."""
        away = SentAway(reason, self._before.ordinal + 1)
        if reason.code == "signal":
            with suppress(Exception):  # then whoever comes by finds the run over
                found = self._ledger.follow_on(self._chain, self._before.ordinal + 1)
                if found is not None and found[0].idempotency_key == self._key:
                    self._ledger.renew_follow_on(found[0], str(away), None)
                    self._supervisor().look_at(self._chain)
        raise away
