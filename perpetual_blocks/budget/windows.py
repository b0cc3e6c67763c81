"""Quota windows: from when on spending counts, and when there is room again.

A *calendar* window is a minute, hour, day, week or month of a time zone: what was spent in it stops counting when the
next one begins. A *rolling* window is a length: each spend stops counting when it is that old. All instants are
seconds since the Unix epoch.
"""

import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from perpetual_blocks.errors import InvalidInput

_HOUR = 3600
_NOMINAL_SECONDS = {"minute": 60, "hour": _HOUR, "day": 86400, "week": 7 * 86400, "month": 31 * 86400}
_LENGTHS = {"d": 86400, "h": _HOUR, "m": 60, "s": 1}
_CALENDAR = re.compile(rf"({'|'.join(_NOMINAL_SECONDS)})(?: (\S+))?")
_LENGTH = re.compile(r"([0-9]{1,9})([smhd])")
_EXPECTED = (
    '"minute", "hour", "day", "week" or "month", alone or with a time zone ("day America/Los_Angeles"), '
    'or a length without one, 1 to 999999999 of s, m, h or d ("30s", "5h")'
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Spend(NamedTuple):
    """An amount, of at least 0, that was spent at an instant."""

    at: float
    amount: float


class Window(ABC):
    """A span of time within which spending is limited. `str(window)` is what `Window.parse` reads.

    A spend after `now`, which another machine's clock may bring, counts.
    """

    __slots__ = ()

    @staticmethod
    def parse(text: str) -> "Window":
        """The window of `"day"`, `"month Europe/Berlin"` (calendar; UTC if no IANA zone is named), `"5h"` (rolling).

        Weeks start on Monday. A rolling day is 24 hours.

        Raises:
            InvalidInput: another text, or a zone that this machine does not know.
        """
        calendar = _CALENDAR.fullmatch(text) if isinstance(text, str) else None
        if calendar:
            zone = calendar[2] or "UTC"
            if zone not in _known_zones():
                raise InvalidInput.of("window", text, f"an IANA time zone; {zone[:40]!r} is not known")
            return _Calendar(calendar[1], zone)
        seconds = _seconds_of(text)
        if seconds is None:
            raise InvalidInput.of("window", text, _EXPECTED)
        return _Rolling(seconds)

    @property
    @abstractmethod
    def seconds(self) -> float:
        """How long it is; nominally, where days and months differ."""

    @abstractmethod
    def since(self, now: float) -> float:
        """The instant from which spending counts; in a rolling window what was spent at that instant does not."""

    @abstractmethod
    def resets_at(self, now: float) -> float | None:
        """When the whole window is new again: a calendar window's end; None for a rolling one."""

    @abstractmethod
    def counts(self, at: float, now: float) -> bool:
        """Whether what was spent at `at` still counts."""

    @abstractmethod
    def forgets(self, at: float) -> float:
        """The first instant at which what was spent at `at` no longer counts."""

    def used(self, spends: Sequence[Spend], now: float) -> float:
        """The sum of the spends that count; they are in the order of their instants."""
        first = bisect_left(spends, True, key=lambda spend: self.counts(spend.at, now))
        return max(_totals(spends[first:]), default=0.0)

    def frees_at(self, needed: float, amount: float, spends: Sequence[Spend], now: float) -> float | None:
        """The first instant from `now` on at which `needed` fits into `amount` if nothing more is spent.

        `spends` are in the order of their instants. None if `needed` is more than `amount`: it never fits.
        """
        if needed > amount:
            return None
        for spend, total in zip(reversed(spends), _totals(spends), strict=True):
            if total + needed > amount:
                return max(now, self.forgets(spend.at))
        return now


def parse_length(text: str, field: str) -> int:
    """The seconds of a length of time: `"5h"`, `"90d"`.

    Args:
        field: What it is of, for the error.

    Raises:
        InvalidInput: another text.
    """
    seconds = _seconds_of(text)
    if seconds is None:
        raise InvalidInput.of(field, text, 'a length of time, 1 to 999999999 of s, m, h or d ("12h", "90d")')
    return seconds


def _seconds_of(text: object) -> int | None:
    found = _LENGTH.fullmatch(text) if isinstance(text, str) else None
    return int(found[1]) * _LENGTHS[found[2]] or None if found else None


def _totals(spends: Sequence[Spend]) -> Iterator[float]:
    """The growing sums of the amounts, the newest first.

    `used` and `frees_at` both add in this order, so that they never disagree by a rounding.
    """
    return accumulate(spend.amount for spend in reversed(spends))


@cache
def _known_zones() -> frozenset[str]:
    # Not by opening the zone: that takes folders, and in some file systems other spellings, for zones too. UTC is
    # there on a machine without time zone data; "localtime" would be another zone on another machine.
    return frozenset({*available_timezones(), "UTC"} - {"localtime"})


@dataclass(frozen=True, slots=True)
class _Rolling(Window):
    length: int  # in seconds

    def __str__(self) -> str:
        letter, length = next(item for item in _LENGTHS.items() if self.length % item[1] == 0)
        return f"{self.length // length}{letter}"

    @property
    def seconds(self) -> float:
        return float(self.length)

    def since(self, now: float) -> float:
        return now - self.length

    def resets_at(self, now: float) -> None:
        return None

    def counts(self, at: float, now: float) -> bool:
        # Not `at > since(now)`: that may round to the other side of what `frees_at` answers.
        return now < self.forgets(at)

    def forgets(self, at: float) -> float:
        return at + self.length


@dataclass(frozen=True, slots=True)
class _Calendar(Window):
    unit: str
    zone: str

    def __str__(self) -> str:
        return self.unit if self.zone == "UTC" else f"{self.unit} {self.zone}"

    @property
    def seconds(self) -> float:
        return float(_NOMINAL_SECONDS[self.unit])

    def since(self, now: float) -> float:
        begins = _begins(self.unit, self.zone, int(now // _HOUR))
        return begins[bisect_right(begins, now) - 1]

    def resets_at(self, now: float) -> float:
        begins = _begins(self.unit, self.zone, int(now // _HOUR))
        return begins[bisect_right(begins, now)]

    def counts(self, at: float, now: float) -> bool:
        return at >= self.since(now)

    def forgets(self, at: float) -> float:
        return self.resets_at(at)


# Where the periods of a time zone begin -------------------------------------------------------------------------------
#
# A period begins when the zone's clock reaches its first moment, or jumps over it. A clock that is set back reaches
# some moments twice: a minute or an hour then begins twice, and a day, week or month at the first time only. So the
# begins are instants that do not depend on `now`.


@lru_cache(maxsize=256)
def _begins(unit: str, zone_name: str, hour: int) -> tuple[float, ...]:
    """The begins of all periods that have a part in an hour since the epoch, and of the period after them, in order.

    All instants of an hour share one entry of the cache.
    """
    zone = UTC if zone_name == "UTC" else ZoneInfo(zone_name)
    # A clock is set back by less than a period, or by periods that begin again: none is twice as long as usual.
    first = hour * _HOUR - 2 * _NOMINAL_SECONDS[unit]
    last = (hour + 1) * _HOUR + 2 * _NOMINAL_SECONDS[unit]
    # However far a clock is set between two instants, it shows nothing further from what it shows at the two than
    # the time that passes between them.
    span = timedelta(seconds=last - first)
    shown = _local(first, zone), _local(last, zone)
    begins: set[float] = set()
    for moment in _first_moments(unit, min(shown) - span, max(shown) + span):
        begins.update(_instants(moment, zone, again=unit in ("minute", "hour")))
    return tuple(sorted(begins))


def _local(instant: float, zone: tzinfo) -> datetime:
    """What the zone's clock shows."""
    return (_EPOCH + timedelta(seconds=instant)).astimezone(zone).replace(tzinfo=None)


def _first_moments(unit: str, first: datetime, last: datetime) -> Iterator[datetime]:
    """The first moments of the periods from the one that contains `first` to `last`, as the clock shows them."""
    if unit in ("minute", "hour"):
        moment = first.replace(minute=first.minute if unit == "minute" else 0, second=0, microsecond=0)
    else:
        moment = datetime(first.year, first.month, 1 if unit == "month" else first.day)
        moment -= timedelta(days=moment.weekday() if unit == "week" else 0)
    while moment <= last:
        yield moment
        moment += timedelta(seconds=_NOMINAL_SECONDS[unit])
        if unit == "month":  # 31 days later is early in the next month, or its first day.
            moment = moment.replace(day=1)


def _instants(moment: datetime, zone: tzinfo, again: bool) -> tuple[float, ...]:
    """When the zone's clock first shows `moment` or jumps over it; with `again`, also when it shows it once more."""
    early, late = (moment.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if early < late:
        return (early, late) if again else (early,)
    if early == late:
        return (early,)
    # The moment is skipped. Read with the clock as it was before the jump it lies at or after the jump, and read
    # with the clock as it is afterwards, before it.
    seconds = range(int(late), int(early) + 1)
    return (float(seconds[bisect_left(seconds, moment, key=lambda second: _local(second, zone))]),)
