"""Follow-ons that are created ahead, on every database: announced, kept or withdrawn at the end, at the fence."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from postgres_server import address_of
from support import LEASE, FakeClock, LedgerFactory, close, open_session, session_request

from perpetual_blocks.adapters.database import SqlLedger
from perpetual_blocks.errors import Ahead, Fenced, Superseded
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason, Wanted
from perpetual_blocks.session.continuation import Ending
from perpetual_blocks.session.follow_on import RunTemplate
from perpetual_blocks.session.ledger import FollowOn, Opened
from perpetual_blocks.work import Selector, WorkItem

TEMPLATE = RunTemplate(deployment_id="deployment")
DIED = Ending(SessionState.CRASHED, ChainStatus.WAITING, StopReason("crashed", "it died"), goes_on=True)


@pytest.fixture(params=("sqlite-file", "sqlite-memory", "postgres"))
def ledger(request: pytest.FixtureRequest, make_ledger: LedgerFactory) -> SqlLedger:
    """An empty ledger on the fake clock."""
    return make_ledger(address_of(request.param, request))


def at_work(ledger: SqlLedger) -> Opened:
    """A session of a deployment with an item."""
    opened = open_session(ledger, template=TEMPLATE.to_json())
    ledger.add_items("mine", [WorkItem(id="a")])
    return opened


def next_of(opened: Opened, not_before: float | None = None) -> FollowOn:
    return TEMPLATE.follow_on("mine", opened.chain.uid, opened.fence.ordinal + 1, not_before)


def announced(ledger: SqlLedger, opened: Opened) -> FollowOn:
    """A session whose follow-on was announced, and its run created."""
    made = next_of(opened)
    assert ledger.announce(opened.fence, 1_700_000_015.0, made)
    ledger.follow_on_created(made, "run-ahead")
    return replace(made, flow_run_id="run-ahead")


def recorded(ledger: SqlLedger, ordinal: int = 2) -> FollowOn | None:
    found = ledger.follow_on("mine", ordinal)
    return found[0] if found else None


def invited(follow_on: FollowOn) -> Any:
    """The request of the run that was created ahead."""
    return session_request(holder="second", flow_run_id=follow_on.flow_run_id, invitation=follow_on.idempotency_key)


# Announced ------------------------------------------------------------------------------------------------------------


def test_an_announced_follow_on_is_in_the_outbox(ledger: SqlLedger) -> None:
    """With the key that the closing would give it, and once, however often it is announced; nobody else creates it as
    long as the session works."""
    opened = at_work(ledger)

    for _ in range(2):
        assert ledger.announce(opened.fence, 1_700_000_015.0, next_of(opened))

    assert recorded(ledger) == next_of(opened)
    assert ledger.pending_follow_ons() == []
    assert ledger.sessions("mine")[0].ends_at == 1_700_000_015.0


def test_the_end_is_foretold_without_a_deployment_too(ledger: SqlLedger) -> None:
    """For whoever starts the next session: nothing is in the outbox."""
    opened = open_session(ledger)
    assert ledger.announce(opened.fence, 1_700_000_015.0, None)
    assert (ledger.sessions("mine")[0].ends_at, recorded(ledger)) == (1_700_000_015.0, None)


def test_nothing_is_announced_where_a_person_wants_the_chain_to_stop(ledger: SqlLedger) -> None:
    """It would not go on at once."""
    opened = at_work(ledger)
    ledger.want("mine", Wanted.PAUSE, "a look")
    assert not ledger.announce(opened.fence, 1_700_000_015.0, next_of(opened))
    assert recorded(ledger) is None


def test_who_lost_the_chain_announces_nothing(ledger: SqlLedger, clock: FakeClock) -> None:
    """The fence is asked first."""
    opened = at_work(ledger)
    clock.advance(LEASE + 1)
    open_session(ledger, holder="rival")
    with pytest.raises(Fenced):
        ledger.announce(opened.fence, 1_700_000_015.0, next_of(opened))


# At the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("created", [True, False])
def test_the_closing_keeps_what_was_announced(ledger: SqlLedger, created: bool) -> None:
    """The chain goes on at once: one follow-on, whose run is created if it was not yet."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened) if created else next_of(opened)
    ledger.announce(opened.fence, 1_700_000_015.0, next_of(opened))

    close(ledger, opened.fence, follow_on=next_of(opened))

    assert recorded(ledger) == ahead
    assert ledger.pending_follow_ons() == ([] if created else [ahead])


@pytest.mark.parametrize(
    "status", [ChainStatus.FINISHED, ChainStatus.STALLED, ChainStatus.EXHAUSTED, ChainStatus.CANCELLED]
)
def test_a_chain_that_ends_withdraws_it(ledger: SqlLedger, status: ChainStatus) -> None:
    """Nothing is in the outbox, and the run that was created ahead begins nothing, whenever it comes."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)

    close(ledger, opened.fence, status, state=SessionState.STALLED, stop=StopReason("asked", "enough"))

    assert recorded(ledger) is None
    with pytest.raises(Superseded) as refused:
        ledger.open_session(invited(ahead))
    assert not isinstance(refused.value, Ahead)
    assert status in str(refused.value)
    assert len(ledger.sessions("mine")) == 1


def test_a_chain_that_waits_for_its_quota_expects_another_run(ledger: SqlLedger, clock: FakeClock) -> None:
    """The run that was created ahead does not begin; the one that is created for then does."""
    opened = at_work(ledger)
    ahead, later = announced(ledger, opened), clock.now() + 3600

    close(ledger, opened.fence, stop=StopReason("budget:calls", "used up", later), follow_on=next_of(opened, later))

    renewed = recorded(ledger)
    assert renewed is not None
    assert (renewed.not_before, renewed.flow_run_id) == (later, None)
    assert ledger.pending_follow_ons() == [renewed]
    with pytest.raises(Superseded) as refused:
        ledger.open_session(invited(ahead))
    assert "in another flow run" in str(refused.value)
    # That it was created is said too late: it is not the run that is expected.
    ledger.follow_on_created(ahead, "run-ahead")
    assert ledger.pending_follow_ons() == [renewed]
    clock.advance(3601)
    assert ledger.open_session(invited(replace(renewed, flow_run_id="run-later"))).fence.ordinal == 2


def test_a_pause_that_came_last_withdraws_it(ledger: SqlLedger) -> None:
    """The chain is held, and goes on with a run of its own when a person lets it."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    ledger.want("mine", Wanted.PAUSE, "a look")

    close(ledger, opened.fence, follow_on=next_of(opened))

    assert ledger.chain("mine").status is ChainStatus.PAUSED
    with pytest.raises(Superseded):
        ledger.open_session(invited(ahead))
    ledger.resume("mine")
    (renewed,) = ledger.pending_follow_ons()
    assert renewed.idempotency_key != ahead.idempotency_key


def test_work_that_came_while_the_session_ended_keeps_it(ledger: SqlLedger) -> None:
    """The session had found the queue empty, and it is not any more: its follow-on is the one that was announced."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)

    close(
        ledger, opened.fence, ChainStatus.FINISHED, state=SessionState.FINISHED, stop=StopReason("queue-empty", "done")
    )

    assert ledger.chain("mine").status is ChainStatus.WAITING
    assert recorded(ledger) == ahead
    assert ledger.open_session(invited(ahead)).fence.ordinal == 2


@pytest.mark.parametrize("wait", [None, 30.0])
def test_a_rescue_keeps_it_as_a_closing_does(ledger: SqlLedger, clock: FakeClock, wait: float | None) -> None:
    """The session died: its follow-on is the one that it had announced, or another one if the chain backs off."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    clock.advance(LEASE + 1)
    resume_at = clock.now() + wait if wait else None
    end = replace(DIED, reason=replace(DIED.reason, resume_at=resume_at))

    assert ledger.rescue("mine", 1, "why", lambda chain, sessions: end) == end

    found = recorded(ledger)
    assert found is not None
    assert (found == ahead) == (wait is None)
    if wait is None:
        assert not ledger.open_session(invited(ahead)).took_over
    else:
        with pytest.raises(Superseded):
            ledger.open_session(invited(ahead))


def test_a_rescue_that_ends_the_chain_withdraws_it(ledger: SqlLedger, clock: FakeClock) -> None:
    """A person had cancelled the run that died."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    clock.advance(LEASE + 1)
    cancelled = Ending(
        SessionState.CRASHED, ChainStatus.CANCELLED, StopReason("cancelled", "by a person"), goes_on=False
    )
    ledger.rescue("mine", 1, "why", lambda chain, sessions: cancelled)
    assert recorded(ledger) is None
    with pytest.raises(Superseded):
        ledger.open_session(invited(ahead))


# At the fence ---------------------------------------------------------------------------------------------------------


def test_who_was_created_ahead_may_wait(ledger: SqlLedger, clock: FakeClock) -> None:
    """It is told so, also when the lease has ended; anybody else is superseded, or takes over."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    for passed in (0, LEASE + 1):
        clock.advance(passed)
        with pytest.raises(Ahead):
            ledger.open_session(invited(ahead))
    assert len(ledger.sessions("mine")) == 1


def test_what_is_seen_at_the_fence_changes_with_the_answer(ledger: SqlLedger, clock: FakeClock) -> None:
    """Commits and heartbeats change nothing; the end of the session, a wish, and a withdrawn invitation do."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    seen = [ledger.turn("mine")]
    clock.advance(5)
    ledger.heartbeat(opened.fence)
    assert ledger.turn("mine") == seen[0]
    clock.advance(LEASE)
    assert ledger.turn("mine").lapsed
    assert ledger.turn("mine") == seen[0], "the end of a lease is looked at apart"
    for change in (
        lambda: ledger.want("mine", Wanted.PAUSE, "a look"),
        lambda: ledger.resume("mine"),
        lambda: ledger.renew_follow_on(ahead, "it left", None),
        lambda: close(ledger, opened.fence, follow_on=next_of(opened)),
        lambda: open_session(ledger, holder="third"),
    ):
        change()
        seen.append(ledger.turn("mine"))
    assert all(one != after for one, after in pairwise(seen))


def test_who_waits_says_so(ledger: SqlLedger, clock: FakeClock) -> None:
    """Until when, by the ledger's time; a renewed follow-on waits nowhere."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)

    ledger.wait_at_fence("mine", ahead.idempotency_key, 30.0)
    ledger.wait_at_fence("mine", "another", 99.0)

    found = recorded(ledger)
    assert found is not None
    assert found.waits_until == clock.now() + 30
    assert ledger.renew_follow_on(found, "it left", None)
    renewed = recorded(ledger)
    assert renewed is not None
    assert (renewed.waits_until, renewed.flow_run_id) == (None, None)


def test_how_long_it_waited_is_no_time_of_the_session(ledger: SqlLedger, clock: FakeClock) -> None:
    """The session begins when it owns the chain; how long its process had waited, and took to come, is on record."""
    opened = at_work(ledger)
    ahead = announced(ledger, opened)
    clock.advance(12)
    close(ledger, opened.fence, follow_on=next_of(opened))
    ledger.open_session(replace(invited(ahead), waited=9.0))

    session = ledger.sessions("mine")[1]
    assert (session.started_at, session.waited) == (clock.now(), 9.0)
    assert ledger.start_ups("mine") == [3.0]


def test_start_ups_are_those_of_follow_ons(ledger: SqlLedger, clock: FakeClock) -> None:
    """A session that somebody else began, or that was to begin later, says nothing of how long a start takes."""
    opened = at_work(ledger)
    announced(ledger, opened)
    close(ledger, opened.fence, follow_on=next_of(opened))
    clock.advance(500)
    second = open_session(ledger, holder="somebody", template=TEMPLATE.to_json())
    later = next_of(second, clock.now() + 100)
    close(ledger, second.fence, follow_on=later)
    ledger.follow_on_created(later, "run-later")
    clock.advance(101)
    open_session(ledger, holder="third", flow_run_id="run-later", invitation=later.idempotency_key)
    assert ledger.start_ups("mine") == []


def test_more_than_so_many_items_are_open(ledger: SqlLedger) -> None:
    """Available, claimed and blocked ones count, done and discarded ones do not."""
    opened = at_work(ledger)
    ledger.add_items("mine", [WorkItem(id="b", depends_on=("a",)), WorkItem(id="c"), WorkItem(id="d")])
    ledger.discard_items("mine", ["d"], "not wanted")
    assert [ledger.has_more_than("mine", count) for count in range(4)] == [True, True, True, False]
    assert opened.fence.ordinal == 1


# Chains of one queue --------------------------------------------------------------------------------------------------


@pytest.fixture
def second(ledger: SqlLedger) -> Opened:
    """A session of another chain on the queue of `mine`, which goes on beside it."""
    owner = open_session(ledger, template=TEMPLATE.to_json()).fence
    ledger.add_items("mine", [WorkItem(id="a")], planned_by=owner)
    ledger.add_chain("second", queue="mine", template=TEMPLATE.to_json())
    return open_session(ledger, "second", holder="its first", template=TEMPLATE.to_json())


def next_of_second(opened: Opened) -> FollowOn:
    return TEMPLATE.follow_on("second", opened.chain.uid, 2, None)


def announced_of_second(ledger: SqlLedger, opened: Opened) -> FollowOn:
    made = next_of_second(opened)
    assert ledger.announce(opened.fence, 1_700_000_015.0, made)
    ledger.follow_on_created(made, "run-ahead")
    return replace(made, flow_run_id="run-ahead")


def begin(ledger: SqlLedger, follow_on: FollowOn) -> Opened:
    return open_session(
        ledger,
        follow_on.chain,
        holder=follow_on.idempotency_key,
        flow_run_id=follow_on.flow_run_id,
        invitation=follow_on.idempotency_key,
    )


def test_a_chain_that_is_to_rest_goes_on_with_another_run(ledger: SqlLedger, second: Opened) -> None:
    """Whoever waited is sent away at once; when the chain is woken, there is one follow-on, and it is a new one."""
    ahead = announced_of_second(ledger, second)

    ledger.want("second", Wanted.REST, "fewer agents are enough")
    with pytest.raises(Superseded) as refused:
        begin(ledger, ahead)
    assert not isinstance(refused.value, Ahead)
    close(ledger, second.fence, follow_on=next_of_second(second))
    assert ledger.chain("second").status is ChainStatus.PAUSED
    assert ledger.wake("second")

    (pending,) = ledger.pending_follow_ons("second")
    assert pending.idempotency_key != ahead.idempotency_key
    assert (pending.ordinal, pending.flow_run_id) == (2, None)
    assert begin(ledger, replace(pending, flow_run_id="run-anew")).fence.ordinal == 2


def test_a_chain_that_is_woken_keeps_who_waits_for_it(ledger: SqlLedger, second: Opened) -> None:
    """Between the end of a session and the begin of the next, somebody sees a chain that waits: its follow-on is there
    already, and no other is recorded."""
    ahead = announced_of_second(ledger, second)
    close(ledger, second.fence, follow_on=next_of_second(second))

    assert ledger.wake("second")

    assert ledger.pending_follow_ons("second") == []
    assert begin(ledger, ahead).fence.ordinal == 2


def test_a_chain_for_which_nothing_is_left_needs_no_successor(ledger: SqlLedger, second: Opened) -> None:
    """Its chain is finished before the run that waits has begun: it begins nothing."""
    ahead = announced_of_second(ledger, second)
    ledger.discard_items("mine", ["a"], "not worth it")
    close(ledger, second.fence, follow_on=next_of_second(second))

    assert ledger.finish("second")

    assert ledger.follow_on("second", 2) is None
    with pytest.raises(Superseded, match="session 2 of second is not needed: the chain is finished"):
        begin(ledger, ahead)


def test_work_that_comes_while_a_session_ends_is_the_successors(ledger: SqlLedger, second: Opened) -> None:
    """The session found nothing left; then something came. Who waits goes on with it."""
    ahead = announced_of_second(ledger, second)
    nothing_left = StopReason("queue-empty", "every item is done")

    close(ledger, second.fence, ChainStatus.FINISHED, state=SessionState.FINISHED, stop=nothing_left)

    assert ledger.chain("second").status is ChainStatus.WAITING
    assert begin(ledger, ahead).fence.ordinal == 2


def test_only_what_a_chain_takes_is_counted(ledger: SqlLedger) -> None:
    """Of the queue's items: a chain for a part of it ends with that part."""
    at_work(ledger)
    ledger.add_items("mine", [WorkItem(id="part/1"), WorkItem(id="part/2"), WorkItem(id="other")])
    ledger.add_chain("second", queue="mine", selector=Selector(ids=("part/*",)))
    assert [ledger.has_more_than("second", count) for count in range(3)] == [True, True, False]
    assert [ledger.has_more_than("mine", count) for count in range(5)] == [True, True, True, True, False]
