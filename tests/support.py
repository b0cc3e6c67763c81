"""What several tests share: a clock that stands still, short ways to common objects, and small real implementations."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import StorageError, Superseded
from perpetual_blocks.faults import reached
from perpetual_blocks.session.batch import Batch
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState, StopReason, invitation
from perpetual_blocks.session.documents import UnitKeys
from perpetual_blocks.session.ledger import Claim, Closing, Fence, Finished, FollowOn, Ledger, Opened
from perpetual_blocks.session.ports import RunFacts, RunState, UnitRunner, Units
from perpetual_blocks.testing import ManualClock
from perpetual_blocks.work import Item, ItemStatus, Outcome, Unit
from perpetual_blocks.work.outcome import BatchedOutcome, batch_from_document, batch_to_document

LEASE = 60.0
KINDS = ("default", "other")

LedgerFactory = Callable[..., SqlLedger]
"""Makes a ledger on the test's clock: of an address, or in a file of the test's folder."""


FakeClock = ManualClock
"""The clock that users are given for their tests, too."""


def wait_for(look: Callable[[], object]) -> None:
    """Waits until another thread has done something."""
    for _ in range(3000):
        if look():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


# Short ways ---------------------------------------------------------------------------------------------------------


def one_line(error: BaseException, *parts: str) -> None:
    """An error's text is one line that holds all of these parts."""
    text = str(error)
    assert "\n" not in text, f"not one line: {text!r}"
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in {text!r}"


def session_request(chain: str = "mine", holder: str = "first", **changes: Any) -> SessionRequest:
    """A request to start a session, of an agent that knows two kinds and has no budget."""
    request = SessionRequest(
        chain=chain,
        agent="Tester",
        holder=holder,
        host="here",
        pid=4711,
        process_started=1.0,
        flow_run_id=f"run-of-{holder}",
        settings={"kinds": list(KINDS), "budget": []},
    )
    return replace(request, **changes)


def open_session(ledger: Ledger, chain: str = "mine", holder: str = "first", **changes: Any) -> Opened:
    """A session that owns its chain."""
    return ledger.open_session(session_request(chain, holder, **changes))


def close(ledger: Ledger, fence: Fence, status: ChainStatus = ChainStatus.WAITING, **changes: Any) -> None:
    """Ends a session in order."""
    closing = Closing(
        state=SessionState.WRAPPED,
        stop=StopReason("budget:tokens", "900 tokens of 1,000 tokens"),
        graceful=True,
        chain_status=status,
        limits=[],
        steps=[],
    )
    ledger.close_session(fence, replace(closing, **changes))


def claim(ledger: Ledger, fence: Fence) -> Item:
    """The next item; there must be one."""
    claimed: Claim = ledger.claim(fence, lambda _estimate: None)
    assert claimed.item is not None, "nothing to claim"
    return claimed.item


def commit_unit(
    ledger: Ledger,
    fence: Fence,
    item: Item,
    outcome: Outcome,
    key: str,
    spent: Mapping[str, float],
    context: dict[str, Any] | None = None,
) -> None:
    """Commits one unit by itself."""
    ledger.commit_units(fence, [Finished(item, outcome, key)], spent, context=context)


def finish_next(ledger: Ledger, fence: Fence, context: dict[str, Any] | None = None, **outcome: Any) -> Item:
    """Claims the next item and commits its last unit."""
    item = claim(ledger, fence)
    outcome = {"done": True, "usage": {"tokens": 10.0}, **outcome}
    key = f"key/{item.id}/{item.units + 1}"
    commit_unit(ledger, fence, item, Outcome(**outcome), key, outcome["usage"], context)
    return item


def status_of(ledger: Ledger, chain: str = "mine") -> dict[str, ItemStatus]:
    """The status of each item by its id."""
    return {item.id: item.status for item in ledger.items(chain, limit=10_000)}


def item_in(ledger: Ledger, item: str, chain: str = "mine") -> Item:
    """One item as the ledger holds it."""
    return next(found for found in ledger.items(chain, limit=10_000) if found.id == item)


def some_item(item: str = "a", **changes: Any) -> Item:
    """An item as a session claims it."""
    fields: dict[str, Any] = {
        "id": item,
        "kind": "default",
        "payload": {},
        "priority": 0,
        "estimate": {},
        "max_attempts": 3,
        "position": 1,
        "status": ItemStatus.CLAIMED,
    }
    return Item(**{**fields, **changes})


# Small real implementations of the core's ports ---------------------------------------------------------------------


class MemoryDocuments:
    """Documents in a dictionary, as bytes, as a storage keeps them."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def write(self, key: str, text: str) -> None:
        self.content[key] = text.encode()

    def read(self, key: str) -> str:
        try:
            return self.content[key].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise StorageError(f"results storage: cannot read {key}: {type(error).__name__}: {error}") from error

    def delete(self, key: str) -> None:
        self.content.pop(key, None)


class MemorySavedWork:
    """Remembers what was backed up, committed and published."""

    def __init__(self) -> None:
        self.backups: dict[str, str] = {}
        self.commits: list[str] = []
        self.published: dict[int, str] = {}

    def backup(self, key: str, text: str) -> None:
        self.backups[key] = text

    def commit(self, paths: Any, message: str) -> str | None:
        self.commits.append(message)
        return f"commit-{len(self.commits)}"

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        self.published[ordinal] = markdown


class MemoryRuns:
    """Flow runs by idempotency key: the same key finds the same run, as with Prefect's API."""

    def __init__(self) -> None:
        self.created: dict[str, FollowOn] = {}
        self.moved: dict[str, float] = {}
        self.cancelled: list[str] = []
        self.crashes: list[str] = []
        self.calls = 0

    def leaves_room(self, deployment_id: str) -> bool:
        return True

    def move(self, flow_run_id: str, at: float) -> None:
        self.moved[flow_run_id] = at

    def facts(self, flow_run_id: str) -> RunFacts:
        return RunFacts(RunState.SCHEDULED, 0.0)

    def cancel(self, flow_run_id: str, why: str) -> None:
        self.cancelled.append(flow_run_id)

    def crashed(self, flow_run_id: str, why: str) -> None:
        self.crashes.append(flow_run_id)

    def create(self, follow_on: FollowOn) -> str:
        self.calls += 1
        self.created.setdefault(follow_on.idempotency_key, follow_on)
        return f"run-{follow_on.chain}-{follow_on.ordinal}"


class Freely:
    """An allowance without limits, for as many units as it is said to admit after the first."""

    def __init__(self, more: int = 1000) -> None:
        self.more = more
        self.counted: list[dict[str, float]] = []

    def admits(self, item: Item) -> bool:
        self.more -= 1
        return self.more >= 0

    def unit(self, item: Item, context: Mapping[str, Any]) -> Unit:
        return Unit(item, context)

    def count(self, usage: Mapping[str, float]) -> None:
        self.counted.append(dict(usage))


class Raised(Exception):
    """A unit raised; the cause is what."""


def batch_of(*items: Item, token: str = "token", allowance: Freely | None = None) -> Batch:
    """A batch of the chain `mine-0123`."""
    return Batch(Claim(items, token), UnitKeys("mine", "0123"), {}, allowance or Freely(), SystemClock())


def run_unit(runner: UnitRunner, item: Item) -> Outcome:
    """What an item's next unit comes to, by itself.

    Raises:
        Raised: it raised.
    """
    batch = batch_of(item)
    runner.run(batch)
    if failed := batch.failed or ([batch.cut_off] if batch.cut_off else []):
        raise Raised from failed[0].error
    return batch.finished[0].outcome


def follow_on_in_memory(uid: str, fence: Fence, not_before: float | None = None) -> FollowOn:
    """The follow-on of a session whose runs are in memory."""
    ordinal = fence.ordinal + 1
    return FollowOn(
        chain=fence.chain,
        ordinal=ordinal,
        idempotency_key=invitation(uid, ordinal),
        deployment_id="deployment",
        parameters={"chain": fence.chain},
        run_name=f"{fence.chain} · {ordinal}",
        tags=("perpetual",),
        not_before=not_before,
    )


class DirectRunner:
    """Runs units in this thread, keeps their outcomes as JSON, and gives a kept outcome back instead of running again.

    Attributes:
        ran: The keys of the units that the agent was asked for, in order; units that raised included.
    """

    def __init__(self, agent: PerpetualAgent, clock: FakeClock, seconds: float = 1.0) -> None:
        self._agent = agent
        self._clock = clock
        self._seconds = seconds
        self.ran: list[str] = []
        self.kept: dict[str, str] = {}

    def run(self, units: Units) -> None:
        for unit in units.units():
            if (kept := self._kept(units)) is not None:
                units.finish(*kept)
                continue
            self.ran.append(units.key if units.single else f"{units.key}: {unit.id}")
            self._clock.advance(self._seconds)
            try:
                outcome = unit.outcome(self._agent.work_unit(unit), self._seconds)
            except Exception as error:  # noqa: BLE001 - the agent's code may raise anything
                units.fail(error)
            else:
                reached("unit.returned")
                units.finish(outcome)
        if made := units.made:
            batch = [BatchedOutcome(one.item.id, one.item.units + 1, one.item.failures, one.outcome) for one in made]
            document = made[0].outcome.to_document() if units.single else batch_to_document(batch)
            self.kept[units.key] = json.dumps(document)
        if units.finished:
            reached("unit.persisted")

    def find(self, units: Units) -> None:
        for _unit in units.units():
            if (kept := self._kept(units)) is not None:
                units.finish(*kept)

    def _kept(self, units: Units) -> tuple[Outcome, str] | None:
        item = units.item
        for key in units.earlier():
            document = json.loads(self.kept.get(key, "{}"))
            if "schema" in document:
                return Outcome.from_document(document), key
            for place, one in enumerate(batch_from_document(document) if document else ()):
                if (one.item, one.unit, one.failures) == (item.id, item.units + 1, item.failures):
                    return one.outcome, f"{key}#{place}"
        return None

    def interrupt(self) -> bool:
        return False


class ScriptedMeter:
    """A meter that reads what the test says."""

    def __init__(self, level: float, capacity: float | None = None) -> None:
        self.now = level
        self._capacity = capacity

    def level(self) -> float:
        return self.now

    def capacity(self) -> float | None:
        return self._capacity


# What runs in other processes ---------------------------------------------------------------------------------------


def start_chains(address: str, holder: str, chains: list[str], barrier: Any, answers: Any) -> None:
    """Starts each of the chains at the same moment as the other processes at the barrier do."""
    ledger = SqlLedger(address)
    for chain in chains:
        barrier.wait()
        try:
            open_session(ledger, chain, holder)
            answers.put((chain, holder, "started"))
        except Superseded:
            answers.put((chain, holder, "superseded"))


def open_ledgers(addresses: list[str], name: str, barrier: Any, answers: Any) -> None:
    """Opens each of the databases at the same moment as the other processes at the barrier do."""
    for address in addresses:
        barrier.wait()
        try:
            SqlLedger(address).close()
            answers.put((address, name, "opened"))
        except Exception as error:  # noqa: BLE001 - the parent wants to see whatever it is
            answers.put((address, name, f"{type(error).__name__}: {error}"))


def work_through(address: str, usage: Mapping[str, float]) -> None:
    """Opens a session of the chain `mine` and finishes item after item until it is killed or the queue is empty."""
    ledger = SqlLedger(address)
    fence = open_session(ledger).fence
    while ledger.counts("mine")[ItemStatus.AVAILABLE]:
        finish_next(ledger, fence, usage=dict(usage))
