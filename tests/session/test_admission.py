"""Who may start a chain's next session: the pure decision."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line, session_request

from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.session.chain import (
    Chain,
    ChainStatus,
    Expected,
    SessionRecord,
    SessionState,
    Wanted,
    check_chain_name,
    invitation,
    is_ahead,
    refusal,
)

NOW = 1_700_000_000.0
UID = "0123456789abcdef"
STOPPED = [ChainStatus.CANCELLED, ChainStatus.PAUSED]
OVER = [ChainStatus.WAITING, ChainStatus.FINISHED]
STUCK = [ChainStatus.STALLED, ChainStatus.EXHAUSTED]


def chain(**changes: Any) -> Chain:
    """A chain of three sessions that waits for its follow-on."""
    return replace(
        Chain(
            name="mine",
            uid=UID,
            agent="Tester",
            status=ChainStatus.WAITING,
            reason="a reason",
            ordinal=3,
            epoch=3,
            holder=None,
            lease_until=0.0,
            planned=True,
            context={},
            settings={},
            created_at=NOW - 100,
            updated_at=NOW - 10,
        ),
        **changes,
    )


def latest(state: SessionState = SessionState.WRAPPED) -> SessionRecord:
    """The chain's third session."""
    return SessionRecord(
        ordinal=3,
        epoch=3,
        state=state,
        flow_run_id="run-3",
        deployment_id=None,
        host="there",
        pid=99,
        process_started=1.0,
        started_at=NOW - 50,
    )


def asked(
    of: Chain, last: SessionRecord | None, *, ran_before: bool = False, invited: str | None = None, now: float = NOW
) -> str | None:
    return refusal(of, last, session_request(invitation=invited), now, ran_before=ran_before)


def test_a_new_chain_is_free() -> None:
    """A chain without sessions is started by whoever comes first."""
    assert asked(chain(ordinal=0), None) is None


@pytest.mark.parametrize("lease_left", [0.001, 60])
def test_a_running_session_keeps_others_out(lease_left: float) -> None:
    """While the lease runs nobody else starts; the refusal says who works, where, and until when."""
    running = chain(status=ChainStatus.RUNNING, lease_until=NOW + lease_left)

    reason = asked(running, latest(SessionState.RUNNING))

    assert reason is not None
    assert "\n" not in reason
    for part in ("session 3 of mine", "flow run run-3", "process 99 on there", "2023-11-14T22:1"):
        assert part in reason


def test_a_running_session_keeps_its_own_flow_run_out_too() -> None:
    """The same flow run, started a second time while the first still works, is a second starter like any other."""
    running = chain(status=ChainStatus.RUNNING, lease_until=NOW + 1)

    assert asked(running, latest(SessionState.RUNNING), ran_before=True) is not None


@pytest.mark.parametrize("late", [0, 0.001, 10**6])
@pytest.mark.parametrize("ran_before", [True, False])
def test_a_lease_that_ran_out_lets_anybody_take_over(late: float, ran_before: bool) -> None:
    """From the moment on at which the lease ends, a new run or the same one takes over."""
    running = chain(status=ChainStatus.RUNNING, lease_until=NOW - late)

    assert asked(running, latest(SessionState.RUNNING), ran_before=ran_before, invited=invitation(UID, 2)) is None


@pytest.mark.parametrize("status", STOPPED)
@pytest.mark.parametrize("ran_before", [True, False])
def test_a_chain_that_a_person_stopped(status: ChainStatus, ran_before: bool) -> None:
    """Nobody starts a cancelled or paused chain; the refusal has the reason."""
    reason = asked(chain(status=status), latest(SessionState.CANCELLED), ran_before=ran_before)

    assert reason == f"chain mine is {status} (a reason); `perpetual resume mine`"


@pytest.mark.parametrize("status", [*OVER, *STUCK])
def test_somebody_new_may_start_what_is_not_stopped(status: ChainStatus) -> None:
    """A run that was never part of the chain may start it, whether it waits, is finished or is stuck."""
    assert asked(chain(status=status), latest()) is None


@pytest.mark.parametrize(("status", "admitted"), [*((s, False) for s in OVER), *((s, True) for s in STUCK)])
def test_a_flow_run_that_was_a_session_already(status: ChainStatus, admitted: bool) -> None:
    """It is over when its session ended in order; where the chain is stuck it may try again."""
    assert (asked(chain(status=status), latest(), ran_before=True) is None) == admitted


@pytest.mark.parametrize("status", [*OVER, *STUCK])
@pytest.mark.parametrize("ordinal", range(1, 7))
def test_invitations(status: ChainStatus, ordinal: int) -> None:
    """A follow-on that was created for a session that somebody else has been is too late, unless the chain is stuck.
    One that was created ahead is not needed once the chain has come to its end."""
    too_late = ordinal <= 3 and status in OVER
    not_needed = ordinal == 4 and status is not ChainStatus.WAITING

    reason = asked(chain(status=status), latest(), invited=invitation(UID, ordinal))

    assert (reason is not None) == (too_late or not_needed)
    if not_needed:
        assert reason == f"session 4 of mine is not needed: the chain is {status} (a reason)"


AT_WORK = {"status": ChainStatus.RUNNING, "lease_until": NOW + 1}


@pytest.mark.parametrize("lease_left", [-10, 0, 60])
def test_who_was_created_ahead_may_wait_and_takes_nothing_over(lease_left: float) -> None:
    """It is refused as long as the session before is recorded as running, even when its lease has ended: how that one
    ended decides whether there is anything to go on with."""
    working, request = (
        chain(**{**AT_WORK, "lease_until": NOW + lease_left}),
        session_request(invitation=invitation(UID, 4)),
    )

    assert refusal(working, latest(SessionState.RUNNING), request, NOW, ran_before=False) is not None
    assert is_ahead(working, latest(SessionState.RUNNING), request, None)
    assert is_ahead(working, latest(SessionState.RUNNING), request, Expected(invitation(UID, 4), None))


@pytest.mark.parametrize(
    ("invited", "expected"),
    [
        (None, None),
        (invitation(UID, 3), None),
        (invitation(UID, 5), None),
        (invitation("f" * 16, 4), None),
        (invitation(UID, 4), Expected(invitation(UID, 4, "0ab1"), None)),
    ],
    ids=["somebody", "too late", "too early", "of another chain", "replaced"],
)
def test_nobody_else_may_wait(invited: str | None, expected: Expected | None) -> None:
    """A person's run, a retry, a follow-on of another session, and one in whose place another run is expected."""
    working, request = chain(**AT_WORK), session_request(invitation=invited)

    assert not is_ahead(working, latest(SessionState.RUNNING), request, expected)
    reason = refusal(working, latest(SessionState.RUNNING), request, NOW, ran_before=False, expected=expected)
    assert reason is not None
    assert "session 3 of mine is at work" in reason


def test_who_waits_is_told_that_the_chain_is_held() -> None:
    """A person wants the chain to stop: whoever was to go on need not wait for the session to end."""
    held, request = (
        chain(**AT_WORK, wanted=Wanted.PAUSE, wanted_why="a look"),
        session_request(invitation=invitation(UID, 4)),
    )

    assert not is_ahead(held, latest(SessionState.RUNNING), request, None)
    reason = refusal(held, latest(SessionState.RUNNING), request, NOW, ran_before=False)
    assert reason == "chain mine is paused (a look); `perpetual resume mine`"


def test_a_run_that_was_replaced_does_not_begin_before_its_successor() -> None:
    """The chain waits for a quota, and for another run: the one that was created ahead does not begin now. Where the
    time has come, whoever is first begins."""
    request = session_request(invitation=invitation(UID, 4))
    for not_before, refused in ((NOW + 5, True), (NOW, False), (None, False)):
        expected = Expected(invitation(UID, 4, "0ab1"), not_before)
        reason = refusal(chain(), latest(), request, NOW, ran_before=False, expected=expected)
        assert (reason is not None) == refused
    assert (
        refusal(chain(), latest(), request, NOW, ran_before=False, expected=Expected(invitation(UID, 4), NOW + 5))
        is None
    )


@given(st.text(), st.sampled_from([*OVER, *STUCK]))
def test_other_keys_are_no_invitations(key: str, status: ChainStatus) -> None:
    """An idempotency key that somebody else has chosen, or of another chain, keeps nobody out."""
    assert asked(chain(status=status), latest(), invited=key) is None
    assert asked(chain(status=status), latest(), invited=invitation("f" * 16, 1)) is None
    assert asked(chain(status=status), latest(), invited=f"perpetual-{UID}-{key}x") is None


@pytest.mark.parametrize("name", ["a", "0", "-", "doc-miner-2023-11-14-1234abcd", "x" * 64])
def test_chain_names(name: str) -> None:
    """A chain's name is of lowercase letters, digits and dashes."""
    assert check_chain_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "Mine", "my chain", "mine\n", "mine/1", "ü", "٣", None, 7, b"mine"])
def test_wrong_chain_names(name: object) -> None:
    """Any other name is refused in one line that shows it."""
    with pytest.raises(InvalidInput) as refused:
        check_chain_name(name)

    one_line(refused.value, "chain", "expected 1 to 64 of a-z, 0-9 and -", repr(name)[:50])
