"""What becomes of a session and its chain when it stops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.errors import InvalidInput, LedgerError, PerpetualError, RunsUnavailable, StorageError
from perpetual_blocks.session.chain import ChainStatus, SessionState, StopReason
from perpetual_blocks.session.continuation import BACK_OFF_SECONDS, Ending, after_error, ending
from perpetual_blocks.work import ItemStatus

CODES = ["queue-empty", "nothing-fits", "budget:tokens", "budget:seconds", "signal", "asked", "cancelled", "error"]
COUNTS = st.dictionaries(st.sampled_from(ItemStatus), st.integers(0, 3))
REASON = st.builds(StopReason, st.sampled_from(CODES), st.just("because"))


@pytest.mark.parametrize("code", ["budget:tokens", "nothing-fits", "signal", "asked"])
@pytest.mark.parametrize("left", [ItemStatus.AVAILABLE, ItemStatus.CLAIMED])
def test_a_chain_with_work_left_goes_on(code: str, left: ItemStatus) -> None:
    """A session that stopped with work left wraps, for the reason that it had, and a follow-on is to come."""
    reason = StopReason(code, "because")

    assert ending(reason, {left: 1, ItemStatus.DISCARDED: 2}) == Ending(
        SessionState.WRAPPED, ChainStatus.WAITING, reason, goes_on=True
    )


@pytest.mark.parametrize("code", ["queue-empty", "budget:tokens", "signal"])
def test_a_chain_without_work_is_finished(code: str) -> None:
    """Whatever stopped the session: with nothing left the chain is finished, and says so."""
    end = ending(StopReason(code, "because"), {ItemStatus.COMPLETED: 5, ItemStatus.CANCELLED: 1})

    assert end == Ending(
        SessionState.FINISHED, ChainStatus.FINISHED, StopReason("queue-empty", "every item is done"), goes_on=False
    )


def test_dead_letters_are_mentioned() -> None:
    """A chain that finished without some of its items says how many."""
    end = ending(StopReason("queue-empty", "because"), {ItemStatus.COMPLETED: 5, ItemStatus.DISCARDED: 2})

    assert (end.session, end.reason.message) == (
        SessionState.FINISHED,
        "every item is done but 2, which were discarded",
    )


@pytest.mark.parametrize("code", ["queue-empty", "budget:tokens", "signal"])
def test_a_chain_that_waits_for_dead_letters_is_stalled(code: str) -> None:
    """Where all that is left waits for discarded items, the chain stops and says so: a follow-on would find nothing."""
    end = ending(StopReason(code, "because"), {ItemStatus.BLOCKED: 3, ItemStatus.DISCARDED: 1})

    assert (end.session, end.chain, end.goes_on) == (SessionState.STALLED, ChainStatus.STALLED, False)
    assert (end.reason.code, end.reason.message) == ("blocked", "3 items wait for items that were discarded (1)")


@given(COUNTS)
def test_errors_and_cancelling_come_before_what_is_left(counts: dict[ItemStatus, int]) -> None:
    """A failed session stalls its chain and a cancelled one cancels it, whatever is left."""
    error, cancelled = StopReason("error", "because"), StopReason("cancelled", "because")

    assert ending(error, counts) == Ending(SessionState.FAILED, ChainStatus.STALLED, error, goes_on=False)
    assert ending(cancelled, counts) == Ending(SessionState.CANCELLED, ChainStatus.CANCELLED, cancelled, goes_on=False)


@given(REASON, COUNTS)
def test_a_chain_goes_on_only_where_something_can_be_claimed(reason: StopReason, counts: dict[ItemStatus, int]) -> None:
    """There is a follow-on if and only if the chain waits for it, and then there is something for it to do."""
    end = ending(reason, counts)

    assert end.goes_on == (end.chain is ChainStatus.WAITING) == (end.session is SessionState.WRAPPED)
    if end.goes_on:
        assert counts.get(ItemStatus.AVAILABLE, 0) + counts.get(ItemStatus.CLAIMED, 0) > 0
    assert end.reason.code
    assert end.reason.message


@pytest.mark.parametrize("error", [StorageError("full"), LedgerError("refused"), RunsUnavailable("away")])
def test_an_error_of_the_world_is_tried_again_later_and_later(error: PerpetualError) -> None:
    """After 30 s, 2 and 8 minutes, then every half hour; at last it stalls, and says how often it tried."""
    tries = len(BACK_OFF_SECONDS)
    ends = [after_error(error, before, 1000.0) for before in range(tries + 1)]

    assert [end.reason.resume_at for end in ends[:5]] == [1030.0, 1120.0, 1480.0, 2800.0, 2800.0]
    assert [end.goes_on for end in ends] == [True] * tries + [False]
    assert [end.chain for end in ends] == [ChainStatus.WAITING] * tries + [ChainStatus.STALLED]
    assert {(end.session, end.reason.code) for end in ends} == {(SessionState.FAILED, "outage")}
    assert ends[-1].reason.resume_at is None
    assert ends[-1].reason.message.endswith(f"; {tries} sessions before ended in the same way")


@pytest.mark.parametrize("error", [InvalidInput("wrong"), FileNotFoundError("docs"), OSError("a meter")])
def test_an_error_of_the_user_stalls_the_chain_at_once(error: Exception) -> None:
    """What the agent was given, planned or measured would be as wrong a second time."""
    end = after_error(error, 0, 1000.0)

    assert (end.session, end.chain, end.reason.code, end.goes_on) == (
        SessionState.FAILED,
        ChainStatus.STALLED,
        "error",
        False,
    )
