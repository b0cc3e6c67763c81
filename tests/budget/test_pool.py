"""The pool's decision: who may reserve how much."""

from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget.pool import Member, Refusal, refusal


def ask(members: list[Member], holder: str, wanted: float, amount: float = 10.0) -> Refusal | None:
    return refusal("team", "cost", amount, members, holder, wanted)


def test_whatever_is_free_is_granted() -> None:
    """Without guarantees everybody may reserve up to the last cent, and not one more."""
    members = [Member(holder="a", used=4.0), Member(holder="b", used=1.0, reserved=2.0)]

    assert ask(members, "a", 3.0) is None
    assert ask(members, "new", 3.0) is None
    assert ask(members, "a", 3.01) is not None


def test_sums_of_floats_are_not_refused_for_their_last_digit() -> None:
    """0.1 and 0.2 fit into 0.3."""
    assert ask([Member(holder="a", used=0.1)], "a", 0.2, amount=0.3) is None
    assert ask([Member(holder="a", used=0.1)], "a", 0.200001, amount=0.3) is not None


def test_a_refusal_says_why_with_figures() -> None:
    """The reason is one sentence that holds what is needed, free, used, reserved and kept."""
    members = [Member(holder="a", used=4.0, reserved=3.0), Member(holder="b", share=0.2)]

    refused = ask(members, "a", 2.0)

    assert refused is not None
    assert refused.reason == (
        "pool team: needs $2.00, $1.00 of $10.00 is free ($4.00 used, $3.00 reserved, $2.00 kept for other members)"
    )


def test_waiting_helps_where_reservations_are_in_the_way() -> None:
    """A refusal is contended if it would be a grant were nothing reserved; what is used or kept does not come back."""
    busy = ask([Member(holder="a", reserved=8.0)], "b", 3.0)
    gone = ask([Member(holder="a", used=8.0)], "b", 3.0)
    kept = ask([Member(holder="a", share=0.8, reserved=1.0)], "b", 3.0)

    assert [refused.contended for refused in (busy, gone, kept) if refused] == [True, False, False]


def test_a_guarantee_is_kept_free() -> None:
    """What a member has neither used nor reserved of its share is kept for it, from others of its priority."""
    members = [Member(holder="a"), Member(holder="b", share=0.5, used=1.0, reserved=1.0)]

    assert ask(members, "a", 5.0) is None
    assert ask(members, "a", 5.01) is not None
    assert ask(members, "b", 8.0) is None, "its own guarantee is not in its way"


def test_a_higher_priority_borrows() -> None:
    """A member of a higher priority may use what is kept for lower ones, not what is kept for its equals."""
    members = [
        Member(holder="low", share=0.3),
        Member(holder="high", priority=1),
        Member(holder="high too", share=0.2, priority=1),
    ]

    assert ask(members, "high", 8.0) is None
    assert ask(members, "high", 8.01) is not None
    assert ask(members, "low", 8.0) is None
    assert ask(members, "low", 8.01) is not None


AMOUNTS = st.floats(0, 20)
MEMBERS = st.lists(
    st.builds(
        Member,
        holder=st.sampled_from("abcdefgh"),
        share=st.floats(0, 1),
        priority=st.integers(0, 2),
        used=AMOUNTS,
        reserved=AMOUNTS,
    ),
    max_size=8,
    unique_by=lambda member: member.holder,
)


@given(MEMBERS, st.sampled_from("abcdefgh"), AMOUNTS)
def test_a_grant_never_goes_above_the_amount(members: list[Member], holder: str, wanted: float) -> None:
    """Whatever the members hold, what is granted fits beside what is used and reserved."""
    if ask(members, holder, wanted) is None:
        assert sum(member.used + member.reserved for member in members) + wanted <= 10.0 + 1e-9


@given(MEMBERS, st.sampled_from("abcdefgh"), AMOUNTS, st.floats(0, 1))
def test_asking_for_less_is_never_worse(members: list[Member], holder: str, wanted: float, part: float) -> None:
    """Whoever is granted an amount would be granted a part of it."""
    if ask(members, holder, wanted) is None:
        assert ask(members, holder, wanted * part) is None
