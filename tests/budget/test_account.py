"""Accounts: what counts against a limit at a moment, and when it is free again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpetual_blocks.budget import Account, Limit, Quota, Spend, Window, latest_quota

DAY = 86_400.0
MIDNIGHT = 20_000 * DAY

WINDOWS = st.sampled_from(["10s", "1m", "minute", "minute Asia/Tokyo", "2h", "hour"])
AMOUNTS = st.integers(0, 20).map(float)
MOMENTS = st.integers(0, 800).map(lambda quarters: quarters / 4)
SPENDS = st.lists(st.builds(Spend, MOMENTS, AMOUNTS), max_size=12).map(sorted)


def limit(window: str | None, amount: float = 100.0) -> Limit:
    return Limit("calls", amount, scope="window" if window else "session", window=window)


def account(window: str | None, spends: list[Spend], quota: Quota | None = None) -> Account:
    made = Account(limit(window), spends)
    made.quota = quota
    return made


# Windows --------------------------------------------------------------------------------------------------------------


@given(WINDOWS, SPENDS, SPENDS, st.lists(MOMENTS, min_size=1, max_size=5).map(sorted))
def test_what_counts_is_what_the_window_says(
    text: str, before: list[Spend], during: list[Spend], asked: list[float]
) -> None:
    """Whatever was spent before or is spent meanwhile, at each moment the account says what the window says."""
    window, made = Window.parse(text), Account(limit(text), before)
    last = before[-1].at if before else 0.0
    added: list[Spend] = []

    for moment in asked:
        now = last + moment
        for spend in [spend for spend in during if last + spend.at <= now and len(added) < len(during)][len(added) :]:
            made.add(last + spend.at, spend.amount)
            added.append(Spend(last + spend.at, spend.amount))
        expected = window.used([*before, *added], now)
        assert made.used(now) == made.later(now) == expected


@given(WINDOWS, SPENDS, MOMENTS, MOMENTS)
def test_what_counts_later(text: str, spends: list[Spend], now: float, wait: float) -> None:
    """A look ahead changes nothing, and is what will be so when the time has come."""
    made = account(text, spends)
    made.used(now)

    later = made.later(now + wait)

    assert later == Window.parse(text).used(spends, now + wait)
    assert made.used(now) == Window.parse(text).used(spends, now)
    assert made.used(now + wait) == later


@given(WINDOWS, SPENDS.filter(bool), MOMENTS)
def test_the_moments_of_release(text: str, spends: list[Spend], now: float) -> None:
    """They are in order and in the future; less is used at each than just before, and nothing changes between."""
    made = account(text, spends)
    moments = made.releases(now)

    assert moments == sorted(
        {Window.parse(text).forgets(at) for at, _ in spends if now < Window.parse(text).forgets(at)}
    )
    for moment in moments:
        assert made.later(moment) <= made.later(math.nextafter(moment, 0))
    for before, after in zip([now, *moments], [*moments, now + 10_000], strict=True):
        assert made.later(before) == made.later(math.nextafter(after, 0))
    assert made.later(max([now, *moments])) == 0.0


@given(WINDOWS, SPENDS, AMOUNTS, st.integers(1, 100), MOMENTS)
def test_room_comes_when_the_window_says(
    text: str, spends: list[Spend], needed: float, amount: int, now: float
) -> None:
    """The first release after which something fits is the instant that the window names."""
    made = account(text, spends)
    fitting = [moment for moment in (now, *made.releases(now)) if made.later(moment) + needed <= amount]

    assert (fitting or [None])[0] == Window.parse(text).frees_at(needed, amount, spends, now)


def test_a_machine_whose_clock_is_ahead() -> None:
    """What another machine says to have spent a little after now is forgotten after what is spent now, not with it."""
    made = account("10s", [Spend(105.0, 5.0)])
    made.add(100.0, 3.0)

    assert made.releases(100.0) == [110.0, 115.0]
    assert [made.later(moment) for moment in (100.0, 110.0, 115.0)] == [8.0, 5.0, 0.0]
    assert [made.used(moment) for moment in (100.0, 110.0, 115.0)] == [8.0, 5.0, 0.0]


@pytest.mark.parametrize("scope", ["session", "total"])
def test_what_has_no_window_counts_for_good(scope: str) -> None:
    """What was spent of a session's limit, or of a total, is never free again."""
    made = Account(Limit("calls", 100, scope=scope), [Spend(0.0, 5.0)])  # type: ignore[arg-type]
    made.add(10.0, 2.0)

    assert made.used(10.0) == made.later(1e12) == 7.0
    assert made.releases(10.0) == []


@pytest.mark.parametrize(
    ("before", "said", "expected"),
    [
        (None, (5, 100, 1), (5, 100, 1)),
        ((9, 100, 1), (8, 100, 2), (8, 100, 2)),
        ((8, 100, 1), (9, 100.4, 2), (8, 100, 1)),  # an answer that was overtaken
        ((8, 100, 1), (50, 200, 2), (50, 200, 2)),  # the next window
        ((8, 100, 1), (None, 100, 2), (None, 100, 2)),
        ((None, 100, 1), (8, 100, 2), (8, 100, 2)),
    ],
)
def test_the_latest_word_holds(
    before: tuple[float | None, float, float] | None,
    said: tuple[float | None, float, float],
    expected: tuple[float | None, float, float],
) -> None:
    """Of one window, the one that leaves less: answers of calls that run at once overtake each other."""
    assert latest_quota(Quota(*before) if before else None, Quota(*said)) == Quota(*expected)


def test_roundings_do_not_add_up() -> None:
    """However many small amounts came and went, nothing is left of them."""
    made = account("10s", [])
    for second in range(10_000):
        made.add(float(second), 0.1)
        made.used(float(second))

    assert made.used(9_999.0) == pytest.approx(1.0)
    assert made.used(20_000.0) == 0.0


# What a provider says -------------------------------------------------------------------------------------------------

SPENT = [Spend(MIDNIGHT + 100, 10.0), Spend(MIDNIGHT + 200, 20.0)]
NOW = MIDNIGHT + 300


def test_a_provider_knows_of_others() -> None:
    """What is left by the provider's word is less than what was counted here: others spend too."""
    made = account("day", SPENT, Quota(remaining=25.0, resets_at=MIDNIGHT + DAY, at=NOW))

    assert made.used(NOW) == made.later(NOW) == 75.0
    made.add(NOW + 1, 5.0)
    assert made.used(NOW + 1) == made.later(NOW + 1) == 80.0
    assert made.used(MIDNIGHT + DAY) == made.later(MIDNIGHT + DAY) == 0.0


def test_a_provider_may_count_late() -> None:
    """What was counted here is spent, even where the provider says that more is left."""
    made = account("day", SPENT, Quota(remaining=95.0, resets_at=MIDNIGHT + DAY, at=NOW))

    assert made.used(NOW) == made.later(NOW) == 30.0


@pytest.mark.parametrize("remaining", [None, 60.0])
@pytest.mark.parametrize("resets_at", [NOW + 1000, MIDNIGHT + DAY + 3600])
def test_a_provider_knows_when_it_resets(remaining: float | None, resets_at: float) -> None:
    """What was spent is free when the provider says so, be that before or after the calendar."""
    made = account("day", SPENT, Quota(remaining, resets_at, at=NOW))
    used = 40.0 if remaining else 30.0

    for moment in (NOW, resets_at - 1):
        assert made.later(moment) == used
    assert made.later(resets_at) == 0.0
    assert made.releases(NOW) == [resets_at]
    assert [made.used(moment) for moment in (NOW, resets_at - 1, resets_at)] == [used, used, 0.0]


def test_after_a_providers_reset_the_calendar_counts_again() -> None:
    """What is spent after the reset that a provider named is free at the calendar's next one."""
    made = account("day", SPENT, Quota(None, NOW + 1000, at=NOW))
    made.add(NOW + 2000, 7.0)

    assert made.used(NOW + 2000) == 7.0
    assert made.releases(NOW + 2000) == [MIDNIGHT + DAY]
    assert made.used(MIDNIGHT + DAY) == 0.0


@pytest.mark.parametrize("remaining", [None, 95.0])
def test_a_provider_does_not_bring_back_what_is_long_free(remaining: float | None) -> None:
    """What an earlier period forgot stays forgotten, whichever moment the provider names for this one's end."""
    last_week = [Spend(MIDNIGHT - 5 * DAY, 50.0), Spend(MIDNIGHT - 4 * DAY, 50.0)]
    quota = Quota(remaining, MIDNIGHT + DAY, at=NOW)
    asked_before, fresh = account("day", last_week), account("day", last_week, quota)
    assert asked_before.used(NOW) == 0.0
    asked_before.quota = quota

    used = 5.0 if remaining else 0.0
    assert [asked_before.used(NOW), asked_before.later(NOW), fresh.used(NOW), fresh.later(NOW)] == [used] * 4


QUOTAS = st.builds(
    Quota,
    remaining=st.none() | AMOUNTS,
    resets_at=st.integers(0, 800).map(lambda quarters: 200.0 + quarters / 4),
    at=st.just(200.0),
)


@given(WINDOWS, SPENDS, QUOTAS, MOMENTS, MOMENTS)
def test_a_look_ahead_with_a_quota(text: str, spends: list[Spend], quota: Quota, one: float, other: float) -> None:
    """Later and then agree, what counts only falls, and it falls at the moments of release alone."""
    made = account(text, spends, quota)
    sooner, later = sorted((200.0 + one, 200.0 + other))
    then = [made.later(sooner), made.later(later)]

    assert then[0] >= then[1]
    assert then == [made.used(sooner), made.used(later)]
    if then[0] > then[1]:
        assert any(sooner < moment <= later for moment in account(text, spends, quota).releases(sooner))
