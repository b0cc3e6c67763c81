"""Quota windows: where periods begin and end, what counts, and when there is room again."""

import math
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perpetual_blocks.budget import Spend, Window
from perpetual_blocks.errors import InvalidInput

UNITS = ("minute", "hour", "day", "week", "month")
MINUTE, HOUR, DAY = 60, 3600, 86400


def instant(text: str) -> float:
    """Seconds since the epoch of an ISO 8601 time with an offset."""
    return datetime.fromisoformat(text).timestamp()


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        *((unit, unit) for unit in UNITS),
        ("day America/Los_Angeles", "day America/Los_Angeles"),
        ("month Etc/GMT+5", "month Etc/GMT+5"),
        ("hour UTC", "hour"),
        ("30s", "30s"),
        ("15m", "15m"),
        ("5h", "5h"),
        ("7d", "7d"),
        ("60s", "1m"),
        ("90s", "90s"),
        ("90m", "90m"),
        ("3600s", "1h"),
        ("48h", "2d"),
        ("007d", "7d"),
        ("999999999d", "999999999d"),
    ],
)
def test_texts(text: str, canonical: str) -> None:
    """A text is read, and written in the one way that all texts of the same window share."""
    window = Window.parse(text)

    assert str(window) == canonical
    assert Window.parse(canonical) == window
    assert hash(Window.parse(canonical)) == hash(window)


@given(
    st.builds("{}{}".format, st.integers(1, 999_999_999), st.sampled_from("smhd"))
    | st.builds("{} {}".format, st.sampled_from(UNITS), st.sampled_from(["UTC", "Asia/Tokyo", "Africa/Cairo"]))
)
def test_round_trip(text: str) -> None:
    """What a window is written as reads as the same window, and is written the same again."""
    window = Window.parse(text)

    assert Window.parse(str(window)) == window
    assert str(Window.parse(str(window))) == str(window)


def test_different_windows_are_not_equal() -> None:
    """Windows of another unit, zone or length are others; they are keys of a dictionary."""
    texts = ["day", "week", "day Asia/Tokyo", "day Asia/Seoul", "1d", "7d"]

    assert len({Window.parse(text) for text in texts}) == len(texts)


def test_frozen() -> None:
    """A window does not change."""
    for text, field in (("day", "unit"), ("day", "zone"), ("1d", "length")):
        with pytest.raises(AttributeError):
            setattr(Window.parse(text), field, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "days",
        "Day",
        "year",
        "second",
        "january",
        "daily",
        "day ",
        " day",
        "day  Asia/Tokyo",
        "day Asia/Tokyo x",
        "day\nAsia/Tokyo",
        "day\n",
        "0s",
        "00d",
        "-5h",
        "+5h",
        "1.5h",
        "5",
        "5 h",
        "5H",
        "5w",
        "5h30m",
        "h",
        "٥h",
        "1000000000s",
        "5h UTC",
        "5h Asia/Tokyo",
        "month-1",
        None,
        5,
    ],
)
def test_refused_texts(text: str) -> None:
    """Any other text is refused with its value and what is expected."""
    with pytest.raises(InvalidInput) as caught:
        Window.parse(text)

    assert str(caught.value) == (
        f'window: got {text!r}; expected "minute", "hour", "day", "week" or "month", alone or with a time zone '
        '("day America/Los_Angeles"), or a length without one, 1 to 999999999 of s, m, h or d ("30s", "5h")'
    )


@pytest.mark.parametrize(
    "zone", ["Mars/Phobos", "America", "america/los_angeles", "../UTC", "/etc/localtime", "localtime", "PST", "+02:00"]
)
def test_refused_zones(zone: str) -> None:
    """A zone that is none, though a file or a folder may have its name, is refused by its name."""
    with pytest.raises(InvalidInput) as caught:
        Window.parse(f"day {zone}")

    assert str(caught.value) == f"window: got 'day {zone}'; expected an IANA time zone; {zone!r} is not known"


# Calendar windows: instants written by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "now", "since", "resets_at"),
    [
        ("minute", "2026-03-08T12:34:56.5Z", "2026-03-08T12:34:00Z", "2026-03-08T12:35:00Z"),
        ("hour", "2026-03-08T12:34:56Z", "2026-03-08T12:00:00Z", "2026-03-08T13:00:00Z"),
        ("day", "2026-03-08T12:34:56Z", "2026-03-08T00:00:00Z", "2026-03-09T00:00:00Z"),
        ("week", "2026-03-08T12:34:56Z", "2026-03-02T00:00:00Z", "2026-03-09T00:00:00Z"),
        ("week", "2026-03-09T00:00:00Z", "2026-03-09T00:00:00Z", "2026-03-16T00:00:00Z"),
        ("month", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("day", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"),
        # The offset is no whole number of hours.
        ("hour Asia/Kathmandu", "2026-01-01T12:20:00Z", "2026-01-01T12:15:00Z", "2026-01-01T13:15:00Z"),
        # 23 and 25 hours.
        ("day America/Los_Angeles", "2026-03-08T15:00:00-07:00", "2026-03-08T00:00:00-08:00", "2026-03-09T07:00:00Z"),
        ("day America/Los_Angeles", "2026-11-01T15:00:00-08:00", "2026-11-01T00:00:00-07:00", "2026-11-02T08:00:00Z"),
        # An hour that is skipped has no period; one that is repeated has two.
        ("hour Europe/Berlin", "2026-03-29T00:59:59Z", "2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"),
        ("hour Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"),
        ("hour Europe/Berlin", "2026-10-25T00:59:59Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
        ("hour Europe/Berlin", "2026-10-25T01:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"),
        # A clock set by 30 minutes: from 2:00 to 2:30, where hour 2 begins; and from 2:00 back to 1:30, within hour 1.
        ("hour Australia/Lord_Howe", "2026-10-03T15:40:00Z", "2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z"),
        ("hour Australia/Lord_Howe", "2026-04-04T15:20:00Z", "2026-04-04T14:00:00Z", "2026-04-04T15:30:00Z"),
        # Midnight is skipped: the day begins at 1:00.
        ("day America/Havana", "2026-03-08T12:00:00Z", "2026-03-08T01:00:00-04:00", "2026-03-09T00:00:00-04:00"),
        ("day Asia/Beirut", "2026-03-29T12:00:00Z", "2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"),
        ("week Asia/Tehran", "2021-03-23T00:00:00Z", "2021-03-22T01:00:00+04:30", "2021-03-29T00:00:00+04:30"),
        ("month America/Asuncion", "2023-10-09T00:00:00Z", "2023-10-01T01:00:00-03:00", "2023-11-01T00:00:00-03:00"),
        # Midnight comes twice: the day begins at the first.
        ("day America/Havana", "2026-11-01T04:30:00Z", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"),
        ("day America/Havana", "2026-11-01T05:30:00Z", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"),
        # At midnight the clock is set back into the day that ends: the next one begins an hour later.
        ("day Asia/Beirut", "2026-10-24T21:30:00Z", "2026-10-24T00:00:00+03:00", "2026-10-25T00:00:00+02:00"),
        ("day America/Santiago", "2026-04-05T03:30:00Z", "2026-04-04T00:00:00-03:00", "2026-04-05T00:00:00-04:00"),
        # A minute after midnight the clock is set back into the day that has ended: that does not begin again.
        ("day America/St_Johns", "2005-10-30T02:45:00Z", "2005-10-30T00:00:00-02:30", "2005-10-31T00:00:00-03:30"),
        # 30 December 2011 did not take place.
        ("day Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00"),
        ("day Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-31T00:00:00+14:00", "2012-01-01T00:00:00+14:00"),
        # From 23:30 to 0:30, so that midnight lies inside of what is skipped.
        ("day America/Toronto", "1919-03-31T12:00:00Z", "1919-03-31T00:30:00-04:00", "1919-04-01T00:00:00-04:00"),
    ],
)
def test_calendar(text: str, now: str, since: str, resets_at: str) -> None:
    """The period that contains an instant."""
    window = Window.parse(text)

    assert window.since(instant(now)) == instant(since)
    assert window.resets_at(instant(now)) == instant(resets_at)


# Calendar windows against a walk through local time -------------------------------------------------------------------

ZONES = (
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Asuncion",
    "America/Havana",
    "America/Los_Angeles",
    "America/Nuuk",
    "America/Santiago",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Tehran",
    "Australia/Lord_Howe",
    "Europe/Berlin",
)
HISTORIC = (
    ("America/Toronto", "1919-03-31T04:30:00Z"),
    ("America/St_Johns", "2005-10-30T02:31:00Z"),
    ("Antarctica/Casey", "2010-03-04T15:00:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
)


def offset(at: float, zone: str) -> timedelta | None:
    return datetime.fromtimestamp(at, ZoneInfo(zone)).utcoffset()


@cache
def transitions() -> list[tuple[str, int]]:
    """Every change of a clock in 2020 to 2035, and some of earlier times that are stranger."""
    found = [(zone, int(instant(at))) for zone, at in HISTORIC]
    for zone in ZONES:
        for before in range(int(instant("2020-01-01T00:00:00Z")), int(instant("2036-01-01T00:00:00Z")), DAY):
            if offset(before, zone) != offset(before + DAY, zone):
                minutes = range(before, before + DAY, MINUTE)
                old = offset(before, zone)
                found.append((zone, next(minute for minute in minutes if offset(minute, zone) != old)))
    return found


def period(local: datetime, unit: str) -> datetime:
    """The first moment of the period that a local time is in."""
    day = datetime(local.year, local.month, local.day)
    match unit:
        case "minute":
            return local
        case "hour":
            return local.replace(minute=0)
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
    return day.replace(day=1)


@cache
def walked(zone: str, first: int, last: int, unit: str) -> list[int]:
    """Where periods begin, found by looking at the clock each minute."""
    begins = []
    before = shown = datetime.fromtimestamp(first - MINUTE, ZoneInfo(zone)).replace(tzinfo=None)
    furthest = period(before, unit)
    for at in range(first, last, MINUTE):
        shown = datetime.fromtimestamp(at, ZoneInfo(zone)).replace(tzinfo=None)
        label = period(shown, unit)
        if unit in ("minute", "hour"):
            is_begin = label == shown or (shown > before and label > period(before, unit))
        else:
            is_begin = label > furthest
        if is_begin:
            begins.append(at)
        before, furthest = shown, max(furthest, label)
    return begins


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, int, float]:
    """A zone, the instant of one of its transitions, and an instant near to it: often a few minutes away."""
    zone, transition = draw(st.sampled_from(transitions()))
    near = st.integers(-4, 4).map(lambda quarters: quarters * HOUR / 4)
    far = st.floats(-1.5 * DAY, 1.5 * DAY)
    return zone, transition, transition + draw(near | far | st.floats(-2 * HOUR, 2 * HOUR))


@pytest.mark.parametrize("unit", UNITS)
@given(moments())
@example(("Asia/Tehran", int(instant("2021-03-21T20:30:00Z")), instant("2021-03-21T20:30:00Z")))
@example(("America/Asuncion", int(instant("2023-10-01T04:00:00Z")), instant("2023-10-01T03:59:59Z")))
def test_calendar_against_a_walk(unit: str, moment: tuple[str, int, float]) -> None:
    """Around every change of a clock, periods begin and end where somebody finds them who watches the clock."""
    zone, transition, now = moment
    reach = 2 * DAY if unit not in ("minute", "hour") else 8 * HOUR
    now = min(max(now, transition - reach / 2), transition + reach / 2)
    begins = walked(zone, transition - reach, transition + reach, unit)
    window = Window.parse(f"{unit} {zone}")
    following = bisect_right(begins, now)

    since, resets_at = window.since(now), window.resets_at(now)
    assert resets_at is not None
    if following > 0:
        assert since == begins[following - 1]
    else:
        assert since < transition - reach
    if following < len(begins):
        assert resets_at == begins[following]
    else:
        assert resets_at >= transition + reach


@pytest.mark.parametrize("unit", UNITS)
@given(moments(), st.floats(0, 1, exclude_max=True))
def test_periods_tile_time(unit: str, moment: tuple[str, int, float], share: float) -> None:
    """A period contains its instants, is the same seen from each of them, and the next one begins where it ends."""
    zone, _, now = moment
    window = Window.parse(f"{unit} {zone}")
    since, resets_at = window.since(now), window.resets_at(now)
    assert resets_at is not None
    assert since <= now < resets_at

    within = since + share * (resets_at - since)
    for other in (since, within, math.nextafter(resets_at, -math.inf)):
        if other < resets_at:
            assert (window.since(other), window.resets_at(other)) == (since, resets_at)
    assert window.since(resets_at) == resets_at
    assert window.resets_at(math.nextafter(since, -math.inf)) == since


@pytest.mark.parametrize("unit", UNITS)
@given(now=st.floats(0, 4e9))
def test_any_time(unit: str, now: float) -> None:
    """In UTC, where no clock is set, all periods but months are of one length."""
    window = Window.parse(unit)
    since, resets_at = window.since(now), window.resets_at(now)
    assert resets_at is not None
    assert since <= now < resets_at

    if unit == "month":
        assert [datetime.fromtimestamp(at, UTC).strftime("%d %H:%M:%S.%f") for at in (since, resets_at)] == [
            "01 00:00:00.000000"
        ] * 2
        assert 28 * DAY <= resets_at - since <= 31 * DAY
    else:
        length = {"minute": MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY}[unit]
        monday = instant("1970-01-05T00:00:00Z")
        assert (resets_at - since, (since - monday) % length) == (length, 0)


# What counts ----------------------------------------------------------------------------------------------------------


def test_what_counts_in_a_calendar_window() -> None:
    """A spend counts from the instant on at which the period begins."""
    midnight = instant("2026-05-05T00:00:00Z")
    day = Window.parse("day")

    assert day.counts(midnight, midnight + DAY - 1)
    assert not day.counts(midnight, midnight + DAY)
    assert not day.counts(math.nextafter(midnight, 0), midnight)


def test_what_counts_in_a_rolling_window() -> None:
    """A spend counts until it is as old as the window is long; a rolling window never resets."""
    window = Window.parse("5h")

    assert window.since(100_000.0) == 82_000.0
    assert window.resets_at(100_000.0) is None
    assert window.counts(82_000.25, 100_000.0)
    assert not window.counts(82_000.0, 100_000.0)


@pytest.mark.parametrize("text", ["minute", "10s"])
def test_a_spend_of_a_clock_that_is_ahead_counts(text: str) -> None:
    """What another machine says to have spent a little after now counts."""
    window = Window.parse(text)

    assert window.counts(1000.5, 1000.0)
    assert window.used([Spend(1000.5, 3.0)], 1000.0) == 3.0


def test_used() -> None:
    """The sum of what counts."""
    spends = [Spend(10.0, 1.0), Spend(59.0, 2.0), Spend(60.0, 4.0), Spend(70.0, 8.0)]

    assert Window.parse("minute").used(spends, 75.0) == 12.0
    assert Window.parse("30s").used(spends, 88.0) == 14.0
    assert Window.parse("30s").used(spends, 89.0) == 12.0
    assert Window.parse("30s").used(spends, 100.0) == 0.0
    assert Window.parse("30s").used([], 100.0) == 0.0


WINDOWS = st.sampled_from(["10s", "1m", "minute", "minute Asia/Tokyo"]).map(Window.parse)
AMOUNTS = st.integers(0, 20)
SPENDS = st.lists(st.builds(Spend, st.integers(0, 800).map(lambda n: n / 4), AMOUNTS), max_size=12).map(sorted)


@given(WINDOWS, SPENDS, st.integers(0, 1000).map(lambda n: n / 4))
def test_used_is_the_sum_of_what_counts(window: Window, spends: list[Spend], now: float) -> None:
    """The sum is over the spends from `since` on, in a rolling window without those of that very instant."""
    since = window.since(now)
    rolling = window.resets_at(now) is None
    expected = sum(amount for at, amount in spends if at > since or (at == since and not rolling))

    assert window.used(spends, now) == expected
    assert expected == sum(amount for at, amount in spends if window.counts(at, now))


# When there is room again ---------------------------------------------------------------------------------------------


@given(WINDOWS, SPENDS, AMOUNTS, AMOUNTS, st.integers(0, 1000).map(lambda n: n / 4))
def test_frees_at_against_brute_force(
    window: Window, spends: list[Spend], needed: int, amount: int, now: float
) -> None:
    """The first quarter of a second from now on at which it fits; all instants here are such quarters."""
    free = window.frees_at(needed, amount, spends, now)

    if needed > amount:
        assert free is None
    else:
        quarters = (now + n / 4 for n in range(2000))
        assert free == next(at for at in quarters if window.used(spends, at) + needed <= amount)


@given(
    st.sampled_from(["1s", "5h", "day", "hour America/Havana"]).map(Window.parse),
    st.lists(st.builds(Spend, st.floats(1e9, 1.00001e9), st.floats(0, 1)), max_size=20).map(sorted),
    st.floats(0, 1),
    st.floats(0, 3),
    st.floats(1e9, 1.00001e9),
)
def test_what_frees_at_promises_is_so(
    window: Window, spends: list[Spend], needed: float, amount: float, now: float
) -> None:
    """At that instant it fits, whatever the roundings, and asked then, the answer is the same; before it does not."""
    free = window.frees_at(needed, amount, spends, now)

    if free is None:
        assert needed > amount
    else:
        assert window.used(spends, free) + needed <= amount
        assert window.frees_at(needed, amount, spends, free) == free
        if free > now:
            assert window.used(spends, math.nextafter(free, 0)) + needed > amount


def test_frees_at_by_hand() -> None:
    """A rolling window frees room spend by spend, a calendar window all at once."""
    spends = [Spend(100.0, 5.0), Spend(110.0, 3.0), Spend(118.0, 1.0)]
    rolling, calendar = Window.parse("60s"), Window.parse("minute")

    assert rolling.frees_at(1.0, 10.0, spends, 119.0) == 119.0
    assert rolling.frees_at(2.0, 10.0, spends, 119.0) == 160.0
    assert rolling.frees_at(7.0, 10.0, spends, 119.0) == 170.0
    assert rolling.frees_at(10.0, 10.0, spends, 119.0) == 178.0
    assert rolling.frees_at(10.5, 10.0, spends, 119.0) is None
    assert calendar.frees_at(1.0, 10.0, spends, 119.0) == 119.0
    assert calendar.frees_at(2.0, 10.0, spends, 119.0) == 120.0
    assert calendar.frees_at(10.0, 10.0, spends, 120.0) == 120.0
