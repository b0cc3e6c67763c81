"""Attempts that came to nothing: their story, when the next one is made, and when none is made any more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perpetual_blocks.budget import Budget
from perpetual_blocks.usage import RESOURCES, add, show
from perpetual_blocks.work import Item

FIRST_BACK_OFF_SECONDS = 2.0
BACK_OFF_FACTOR = 4.0
MOST_BACK_OFF_SECONDS = 300.0


def back_off(attempts: int) -> float:
    """Seconds for which an item is left alone after so many failed attempts: 2, 8, 32, 128, then 300.

    What fails because something else is down (a rate limit, a server that restarts, a lock) is better after seconds to
    minutes, and other items go on meanwhile. The factor is 4, and not the usual 2, because there are few attempts: the
    three that an item has by default are then spread over ten seconds, five of them over almost three minutes. Five
    minutes at most, because a chain may have nothing else left to do: longer waits are a person's to decide. There is
    no jitter: a chain has one session, and its items do not fail at the same moment.
    """
    # The power of an attempt that nobody counts to would be no float any more.
    return min(MOST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * BACK_OFF_FACTOR ** min(attempts - 1, 10))


def quarantine(wasted: Mapping[str, float], budget: Budget) -> str | None:
    """Why no more attempts of a unit are made, given what the failed ones have used together; None to go on.

    A unit that has used up more than a whole session in vain costs the chain more than it is worth, whatever attempts
    are left. Only what adds up and is paid for counts: time passes for the others too, and a gauge has no sum.
    """
    for limit in budget:
        name = limit.resource
        if limit.scope != "session" or name == "seconds" or RESOURCES[name].kind != "counter":
            continue
        if (used := wasted.get(name, 0.0)) > limit.amount:
            return (
                f"quarantined: its failed attempts have used {show(name, used)}, "
                f"more than a whole session's {show(name, limit.amount)}"
            )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt that came to nothing.

    Attributes:
        number: Counts the item's, from 1.
        unit: Which of the item's units it was, from 1.
        chain: Whose session it was; several chains may work on one queue.
        cut_off: Whether it had no room to finish; it did not count as a failed one then.
        usage: What it spent in vain.
        at: In seconds since the Unix epoch.
    """

    number: int
    unit: int
    chain: str
    session: int
    error: str
    cut_off: bool
    usage: dict[str, float]
    at: float


@dataclass(frozen=True, slots=True)
class Story:
    """An item with all of its attempts that came to nothing, in order."""

    item: Item
    attempts: Sequence[Attempt]

    @property
    def failed(self) -> int:
        """How many attempts have failed."""
        return sum(not attempt.cut_off for attempt in self.attempts)

    @property
    def cut_off(self) -> int:
        """How many attempts were cut off."""
        return len(self.attempts) - self.failed

    @property
    def sessions(self) -> list[int]:
        """The sessions that made them, each once."""
        return sorted({attempt.session for attempt in self.attempts})

    @property
    def wasted(self) -> dict[str, float]:
        """What they have spent together."""
        total: dict[str, float] = {}
        for attempt in self.attempts:
            total = add(total, attempt.usage)
        return total
