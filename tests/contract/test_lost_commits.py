"""A commit whose answer is lost: every method of the ledger, tried again, comes to what it would have anyway."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import isfunction
from typing import Any

import pytest
from lost_commits import CuttingProxy, Losing, proxied
from postgres_server import address_of
from support import FakeClock, LedgerFactory, claim, close, commit_unit, finish_next, item_in, open_session, status_of
from test_decisions import MORE, exhausted
from test_ledger import checkpoint_of, everything, follow_on_of, items

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.adapters.database.control import ChainControl
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import Fenced, LedgerError, LedgerUnavailable
from perpetual_blocks.patience import IMPATIENT, Patience
from perpetual_blocks.session.ledger import Claim, Fence, Reserve
from perpetual_blocks.work import Item, ItemStatus, Outcome

POOL = Limit("tokens", 1000.0, pool="shared", scope="window", window="1h")


@dataclass
class Started:
    """A chain in its second session, with items in every state, and another one whose total is gone."""

    ledger: SqlLedger
    fence: Fence
    item: Item

    @classmethod
    def of(cls, ledger: SqlLedger) -> "Started":
        exhausted(ledger, "spent")
        settings = {"kinds": ["default"], "budget": Budget(POOL).to_json()}
        first = open_session(ledger, settings=settings).fence
        ledger.add_items("mine", [*items("a", "b", "c", "given up", "open"), *items("after a", depends_on=("a",))])
        ledger.discard_items("mine", ["given up"], "not wanted")
        ledger.record_document(first, checkpoint_of(first))
        close(ledger, first, follow_on=follow_on_of(first, "uid"))
        fence = open_session(ledger, "mine", "second", settings=settings).fence
        return cls(ledger, fence, ledger.claim(fence, lambda item: None, lambda item: [Reserve(POOL, 10.0)]).item)  # type: ignore[arg-type]

    def beat(self) -> None:
        """Whoever sends heartbeats sends the next one soon."""
        with suppress(LedgerUnavailable):
            self.ledger.heartbeat(self.fence)
        self.ledger.heartbeat(self.fence)

    def claim(self) -> Claim:
        return self.ledger.claim(self.fence, lambda item: None, lambda item: [Reserve(POOL, 20.0)])


USAGE = {"tokens": 5.0}
DONE = Outcome(done=True, usage=USAGE, added=tuple(items("added")))
MIND = {"mind": "changed"}
ADVANCED = Outcome(done=False, usage=USAGE, cursor=3)

METHODS: dict[str, Callable[[Started], Any]] = {
    "open_session": lambda at: open_session(at.ledger, "new").fence,
    "open_session after another": lambda at: (
        close(at.ledger, at.fence),
        replace(open_session(at.ledger, "mine", "third"), chain=None, queue=None),  # type: ignore[arg-type]
    ),
    "heartbeat": lambda at: at.beat(),
    "announce": lambda at: at.ledger.announce(at.fence, 7.0, follow_on_of(at.fence, "uid")),
    "close_session after an announcement": lambda at: (
        at.ledger.announce(at.fence, 7.0, follow_on_of(at.fence, "uid")),
        close(at.ledger, at.fence, follow_on=follow_on_of(at.fence, "uid")),
    )[1],
    "resumed": lambda at: at.ledger.resumed(at.fence, 0.5, (4, 4)),
    "claim": lambda at: at.claim(),
    "claim_begun": lambda at: at.ledger.claim_begun(at.fence),
    "extend": lambda at: at.ledger.extend(at.fence, at.item, [Reserve(POOL, 30.0)]),
    "commit_units": lambda at: commit_unit(at.ledger, at.fence, at.item, DONE, "key/a/1", USAGE, MIND),
    "commit_units that goes on": lambda at: commit_unit(at.ledger, at.fence, at.item, ADVANCED, "key/a/1", USAGE),
    "fail_unit": lambda at: at.ledger.fail_unit(at.fence, at.item, "no", USAGE, USAGE),
    "fail_unit for good": lambda at: at.ledger.fail_unit(at.fence, replace(at.item, attempts=2), "no", USAGE, USAGE),
    "cut_off": lambda at: at.ledger.cut_off(at.fence, at.item, "no room", USAGE, USAGE, fresh=True),
    "release": lambda at: at.ledger.release(at.fence, [at.item], begun=True),
    "record_document": lambda at: at.ledger.record_document(at.fence, checkpoint_of(at.fence)),
    "forget_checkpoints": lambda at: at.ledger.forget_checkpoints(at.fence, 0),
    "close_session": lambda at: close(at.ledger, at.fence, follow_on=follow_on_of(at.fence, "uid")),
    "follow_on_created": lambda at: at.ledger.follow_on_created(follow_on_of(at.fence, "uid", ordinal=2), "run"),
    "follow_on_moved": lambda at: at.ledger.follow_on_moved(follow_on_of(at.fence, "uid", ordinal=2), 7.0),
    "declare_dead": lambda at: at.ledger.declare_dead("mine", 2),
    "upgrade_context": lambda at: at.ledger.upgrade_context(at.fence, {"mind": "new"}, 2),
    "add_chain": lambda at: replace(at.ledger.add_chain("second", queue="mine"), uid=""),
    "wake": lambda at: (at.ledger.add_chain("second", queue="mine").name, at.ledger.wake("second")),
    "ask": lambda at: at.ledger.ask("spent", 1, 7.0),
    "approve": lambda at: replace(at.ledger.approve("spent", MORE), uid=""),
    "pin_checkpoint": lambda at: at.ledger.pin_checkpoint("mine", 1, pinned=True),
}
# These say what they have changed; tried again, what was not changed before.
COUNTING: dict[str, Callable[[Started], Any]] = {
    "add_items": lambda at: at.ledger.add_items("mine", items("new", "newer"), planned_by=at.fence),
    "retry_items": lambda at: at.ledger.retry_items("mine", ["given up"]),
    "discard_items": lambda at: at.ledger.discard_items("mine", ["open"], "not wanted"),
    "finish": lambda at: at.ledger.finish(at.ledger.add_chain("another").name),
    "add_document": lambda at: at.ledger.add_document("mine", checkpoint_of(at.fence)),
}
# These are a person's, at a prompt, whose ledger has no patience: the error is told, and a look shows what was done.
TOLD_AT_ONCE = {"rebuild", "repair_items", "forget_document", "retire", "forget", "tidy_pools"}


@dataclass
class Lossy:
    """A ledger whose commits can be lost, and what loses them."""

    ledger: SqlLedger
    loses: CuttingProxy | Losing


@pytest.fixture(params=["sqlite-file", "postgres"])
def lossy(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> Iterator[Lossy]:
    """A ledger on a database of its own, which waits on a clock that is not the one of its records."""
    direct = address_of(request.param, request)
    if request.param == "postgres":
        with proxied(direct) as proxy:
            ledger = make_ledger(proxy.address(direct))
            ledger.patience = Patience(60.0, FakeClock())
            yield Lossy(ledger, proxy)
            ledger.close()
    else:
        ledger = make_ledger(direct)
        ledger.patience = Patience(60.0, FakeClock())
        yield Lossy(ledger, Losing(ledger))


def told(ledger: SqlLedger) -> list[Any]:
    """All that two ledgers must agree on."""
    chain, *rest = everything(ledger)
    others = [replace(other, uid="") for other in ledger.chains() if other.name != "mine"]
    pooled = ledger.pool_spends(POOL, 0.0)
    return [replace(chain, uid=""), *rest, others, pooled]


@pytest.mark.parametrize("method", METHODS | COUNTING)
def test_a_lost_commit_changes_nothing(lossy: Lossy, make_ledger: LedgerFactory, method: str) -> None:
    """The answer, and all that the ledger says afterwards, are those of a ledger that has lost nothing."""
    act = (METHODS | COUNTING)[method]
    expected = Started.of(make_ledger("sqlite://"))
    answer = act(expected)
    at = Started.of(lossy.ledger)

    lossy.loses.to_lose = 1
    again = act(at)

    assert lossy.loses.lost == 1, "nothing was lost, so nothing was tested"
    if method in METHODS:
        assert again == answer
    assert told(at.ledger) == told(expected.ledger)


def test_every_method_that_writes_is_tested_so() -> None:
    """A new method of the ledger is added to the table above."""
    writing = {
        name
        for part in SqlLedger.__mro__
        if issubclass(part, LedgerWriter) and part is not ChainControl
        for name, method in vars(part).items()
        if isfunction(method) and not name.startswith("_") and name != "lease_seconds"
    }
    # Of ChainControl, what a session's run calls, and the orchestrator's.
    writing |= {"declare_dead", "follow_on_created", "follow_on_moved", "add_chain", "wake", "finish"}

    assert writing - TOLD_AT_ONCE == {name.split()[0] for name in METHODS | COUNTING}


def test_without_patience_a_lost_commit_is_told_at_once(lossy: Lossy) -> None:
    """A command fails at once, with an error that says that the database is away; what it had done stands."""
    at = Started.of(lossy.ledger)
    at.ledger.patience = IMPATIENT
    lossy.loses.to_lose = 1

    with pytest.raises(LedgerUnavailable):
        at.claim()

    assert status_of(at.ledger)["b"] is ItemStatus.CLAIMED


def test_a_repeated_claim_is_told_from_another(lossy: Lossy) -> None:
    """Of several claims of one session each gets its own item, whichever answers are lost."""
    at = Started.of(lossy.ledger)
    claimed = [at.item.id]
    for lost in (1, 0, 2):
        lossy.loses.to_lose = lost
        claimed.append(at.claim().item.id)  # type: ignore[union-attr]

    assert claimed == ["a", "b", "c", "open"]
    assert lossy.loses.lost == 3


def test_a_repetition_does_not_touch_what_came_after(lossy: Lossy) -> None:
    """A unit that was committed, and whose item has been claimed again since, is not committed over the new one."""
    at = Started.of(lossy.ledger)
    commit_unit(at.ledger, at.fence, at.item, ADVANCED, "key/a/1", USAGE)
    again = claim(at.ledger, at.fence)
    assert (again.id, again.units) == ("a", 1)
    before = told(at.ledger)

    commit_unit(at.ledger, at.fence, at.item, ADVANCED, "key/a/1", USAGE)
    at.ledger.release(at.fence, [replace(at.item, interruptions=-1)], begun=True)

    after = told(at.ledger)
    assert after[2:] == before[2:]
    assert item_in(at.ledger, "a").status is ItemStatus.CLAIMED


def test_what_is_not_the_same_is_refused(lossy: Lossy) -> None:
    """Only what was done in the very same way counts as done: other ends, results and documents are refused."""
    at = Started.of(lossy.ledger)
    finish_next(at.ledger, at.fence)
    at.ledger.record_document(at.fence, checkpoint_of(at.fence))
    with pytest.raises(LedgerError):
        at.ledger.record_document(at.fence, checkpoint_of(at.fence, digest="1" * 64))
    commit_unit(at.ledger, at.fence, at.item, DONE, "key/a/1", USAGE, MIND)
    with pytest.raises(LedgerError):
        commit_unit(at.ledger, at.fence, at.item, DONE, "another key", USAGE)
    close(at.ledger, at.fence)

    with pytest.raises(Fenced):
        close(at.ledger, at.fence, follow_on=follow_on_of(at.fence, "uid"))


def test_the_ledger_is_waited_for_no_longer_than_the_lease(lossy: Lossy) -> None:
    """A session's grace is counted from when its lease was moved on the last time; after it there is one try."""
    at = Started.of(lossy.ledger)
    clock = at.ledger.patience.clock
    assert isinstance(clock, FakeClock)
    clock.advance(50)
    lossy.loses.to_lose = 1000

    with pytest.raises(LedgerUnavailable):
        at.ledger.heartbeat(at.fence)
    with pytest.raises(LedgerUnavailable):
        at.claim()

    assert clock.monotonic() == pytest.approx(60.0)
    tries = lossy.loses.lost
    with pytest.raises(LedgerUnavailable):
        at.claim()
    assert lossy.loses.lost == tries + 1
