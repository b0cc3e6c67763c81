"""Counts primes on machines that end: a container of 90 seconds, a Slurm job, a function with a deadline.

python flows/time_boxed.py           # serves the deployment `count-primes/time-boxed` from this process

On Slurm, each job runs one session, and asks for the next job until there is nothing left to do:

    #SBATCH --time=00:30:00 --requeue
    perpetual run flows/time_boxed.py:count_primes --once --param chain=primes || scontrol requeue $SLURM_JOB_ID
"""

import json
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unit, WorkItem, write_whole

UNIT_SECONDS = 1.0
"""A unit ends after about so long: no more is lost when a machine dies without a word."""

SEGMENT = 100_000


class TimeBoxed(PerpetualAgent):
    """Count the primes and the twin primes below a bound, range by range.

    A range takes longer than a machine may have left, so that an item is many short units: its cursor holds where to go
    on, and the counts so far. When a machine ends is read from its environment, `SLURM_JOB_END_TIME` or
    `PERPETUAL_DEADLINE`.
    """

    cancellable = ("seconds",)  # a unit looks at `should_wrap` a hundred times a second

    upto: int = Field(default=100_000_000, ge=1, description="Primes below this number are counted.")
    width: int = Field(default=10_000_000, ge=SEGMENT, description="How many numbers make one item.")
    out: Path = Field(default=Path("primes"), description="The folder that the counts are written to.")

    def plan(self) -> Iterable[WorkItem]:
        for start in range(0, self.upto, self.width):
            yield WorkItem(id=f"from-{start}", payload={"start": start, "end": min(start + self.width, self.upto)})

    def work_unit(self, unit: Unit) -> object:
        start, end = unit.payload["start"], unit.payload["end"]
        cursor = unit.cursor or {"at": start, "primes": 0, "twins": 0}
        at, counts = cursor["at"], {name: cursor[name] for name in ("primes", "twins")}
        began = time.monotonic()
        while at < end:
            upto = min(at + SEGMENT, end)
            primes, twins = counted(at, upto)
            counts = {"primes": counts["primes"] + primes, "twins": counts["twins"] + twins}
            at = upto
            if time.monotonic() - began >= UNIT_SECONDS or unit.should_wrap():
                break
        if at < end:
            done = (at - start, end - start)
            return unit.advance(cursor={"at": at, **counts}, progress=done, next_action=f"count on from {at:,}")
        write_whole(self.out / f"{unit.id}.json", json.dumps(counts))
        return counts


def counted(start: int, end: int) -> tuple[int, int]:
    """How many primes p there are with start <= p < end, and of how many of them p + 2 is prime too."""
    found = primes_between(start, end + 2)
    return sum(prime < end for prime in found), sum(b - a == 2 and a < end for a, b in pairwise(found))


def primes_between(start: int, end: int) -> list[int]:
    """The primes p with start <= p < end, by a sieve of Eratosthenes of this part alone."""
    is_prime = bytearray([1]) * (end - start)
    for number in range(start, min(2, end)):
        is_prime[number - start] = 0
    for factor in range(2, int(end**0.5) + 1):
        first = max(factor * factor, -(-start // factor) * factor)
        if first < end:
            is_prime[first - start :: factor] = bytes(len(range(first, end, factor)))
    return [number for number, prime in enumerate(is_prime, start) if prime]


count_primes = TimeBoxed.as_flow(
    name="count-primes",
    # Of a machine that does not say when it ends; one that does ends the session earlier, where that is sooner.
    budget=Budget(seconds=Limit("seconds", 90, threshold=0.9)),
)

if __name__ == "__main__":
    count_primes.serve(name="time-boxed", description=TimeBoxed.task())
