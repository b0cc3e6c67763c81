"""What several tests share: a clock that stands still, short ways to common objects, and small real implementations."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select

from perpetual_blocks.adapters.database import SqlLedger, schema
from perpetual_blocks.adapters.database.engine import reading
from perpetual_blocks.adapters.database.tallies import counts_of
from perpetual_blocks.clock import SystemClock
from perpetual_blocks.errors import Superseded
from perpetual_blocks.session.batch import Batch
from perpetual_blocks.session.chain import ChainStatus, SessionRequest, SessionState, StopReason, invitation
from perpetual_blocks.session.documents import UnitKeys
from perpetual_blocks.session.ledger import Claim, Closing, Fence, Finished, FollowOn, Ledger, Opened
from perpetual_blocks.session.ports import RunFacts, RunState, UnitRunner
from perpetual_blocks.testing import ManualClock
from perpetual_blocks.work import EVERYTHING, Item, ItemStatus, Outcome, Unit

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


class MemorySavedWork:
    """Remembers what was backed up, committed and published."""

    def __init__(self) -> None:
        self.backups: dict[str, str] = {}
        self.commits: list[str] = []
        self.asides: dict[str, str] = {}
        self.pushes = 0
        self.published: dict[int, str] = {}
        self.told: dict[int, str] = {}

    def backup(self, key: str, text: str) -> None:
        self.backups[key] = text

    def commit(self, paths: Any, message: str, refuse: object) -> str | None:
        self.commits.append(message)
        return f"commit-{len(self.commits)}"

    def set_aside(self, paths: Any, branch: str, message: str, refuse: object) -> str | None:
        self.asides[branch] = message
        return f"aside-{len(self.asides)}"

    def push(self, paths: Any) -> None:
        self.pushes += 1

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        self.published[ordinal], self.told[ordinal] = markdown, description


class MemoryRuns:
    """Flow runs by idempotency key: the same key finds the same run, as with Prefect's API."""

    def __init__(self) -> None:
        self.created: dict[str, FollowOn] = {}
        self.moved: dict[str, float] = {}
        self.cancelled: list[str] = []
        self.crashes: list[str] = []
        self.ended: dict[str, tuple[str, str]] = {}
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

    def end_suspended(self, flow_run_id: str, name: str, why: str) -> None:
        self.ended[flow_run_id] = (name, why)

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

    def count(self, usage: Mapping[str, float], quotas: object) -> None:
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


def miscounted(ledger: SqlLedger) -> dict[str, Any]:
    """The queues whose tally says something else than their items do: what is said, and what is there."""
    with reading(ledger._engine) as connection:
        wrong = {}
        for chain in connection.execute(select(schema.chains.c.name)).scalars().all():
            rows = select(schema.items.c.status, func.count()).where(schema.items.c.chain == chain)
            there = {status: count for status, count in connection.execute(rows.group_by(schema.items.c.status))}
            said = {status: count for status, count in counts_of(connection, chain, EVERYTHING).items() if count}
            if said != there and set(there) <= set(ItemStatus):
                wrong[chain] = (said, there)
        return wrong


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
