"""Accounts: what has been spent of one limit, and when it will be free again."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple

from perpetual_blocks.budget.limits import Limit
from perpetual_blocks.budget.windows import Spend, Window

FORGOTTEN = 1000
"""So many spends that do not count any more are kept at most."""


SAME_SECONDS = 1.0
"""Resets that are told in whole seconds, or as a duration from now, are the same although they differ by so much."""


class Quota(NamedTuple):
    """What a provider says of a quota window of its own: it knows better than any calendar.

    Attributes:
        remaining: What is left until the reset, with what counts from then on and the provider has counted already;
            None if it did not say.
        resets_at: When all of it is free again, in seconds since the Unix epoch.
        at: When it said so.
    """

    remaining: float | None
    resets_at: float
    at: float


def latest_quota(before: Quota | None, said: Quota) -> Quota:
    """What holds of what a provider has said twice: the later word.

    Answers to calls that were made at once overtake each other, so that of one window, which ends when both say, the
    word holds that leaves less.
    """
    if before is None or before.remaining is None or said.remaining is None:
        return said
    same = abs(before.resets_at - said.resets_at) <= SAME_SECONDS
    return before if same and before.remaining < said.remaining else said


class Account:
    """What has been spent of one limit that adds up.

    Args:
        spends: What was spent before, in the order of its instants; for a session, nothing.
    """

    def __init__(self, limit: Limit, spends: Iterable[Spend] = ()) -> None:
        self.limit = limit
        self.quota: Quota | None = None
        before = list(spends)
        self._counted = sum(spend.amount for spend in before)
        # Only a window asks when something was spent: a session of a million units need not remember.
        self._spends = [] if limit.window is None else before
        self._first = 0  # spends before this one do not count any more

    def add(self, at: float, amount: float) -> None:
        """Something was spent."""
        if amount > 0:
            self._counted += amount
            if self.limit.window is not None:
                insort(self._spends, Spend(at, amount), lo=self._first)  # another machine's clock may be ahead

    def used(self, now: float) -> float:
        """What counts against the limit at that moment, which is never before an earlier one that was asked for."""
        window = self.limit.window
        if window is None:
            return self._counted
        while self._first < len(self._spends) and now >= self._forgets(self._spends[self._first].at, window):
            self._counted -= self._spends[self._first].amount
            self._first += 1
        if self._first == len(self._spends):
            self._counted = 0.0  # so that roundings do not add up
        if self._first > FORGOTTEN:
            del self._spends[: self._first]
            self._first = 0
        return self._with_quota(self._counted, now)

    def later(self, now: float) -> float:
        """What will still count at a later moment if nothing more is spent."""
        window = self.limit.window
        if window is None:
            return self._counted
        first = bisect_left(self._spends, True, key=lambda spend: now < self._forgets(spend.at, window))
        return self._with_quota(sum(spend.amount for spend in self._spends[first:]), now)

    def releases(self, now: float) -> list[float]:
        """The moments after `now` at which something becomes free."""
        window = self.limit.window
        if window is None:
            return []
        moments = {self._forgets(spend.at, window) for spend in self._spends[self._first :]}
        if self.quota is not None:
            moments.add(self.quota.resets_at)
        return sorted(moment for moment in moments if moment > now)

    def _forgets(self, at: float, window: Window) -> float:
        forgotten = window.forgets(at)
        quota = self.quota
        # What had been forgotten when the provider spoke is not what it spoke of.
        return quota.resets_at if quota is not None and at <= quota.resets_at and forgotten > quota.at else forgotten

    def _with_quota(self, counted: float, now: float) -> float:
        quota = self.quota
        if quota is None or quota.remaining is None or now >= quota.resets_at:
            return counted
        since = sum(spend.amount for spend in self._spends if spend.at >= quota.at)
        return max(counted, self.limit.amount - quota.remaining + since)
