"""Programs that spend one pool until it is gone, in many processes and threads at once."""

import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from processes import MANY

from perpetual_blocks.adapters.database import pools
from perpetual_blocks.adapters.database.engine import writing
from perpetual_blocks.adapters.database.pool import Pool
from perpetual_blocks.adapters.database.pools import PoolUnit
from perpetual_blocks.errors import PoolRefused

NAME, RESOURCE = "team", "cost"
MEDIAN, SIGMA = 0.01, 0.6
P95 = round(MEDIAN * math.exp(1.645 * SIGMA), 4)
"""What a unit costs is lognormal; 95 of 100 cost no more than this."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What became of a pool: the sum of what all spenders say they spent, what the pool counted, and how."""

    told: float
    counted: float
    reserved: float
    units: int
    seconds: float

    def overshoot(self, amount: float) -> float:
        """What was spent above the amount, in dollars."""
        return max(0.0, round(max(self.told, self.counted) - amount, 9))


def spend_reserving(pool: Pool, holder: str, amount: float, chance: random.Random, seconds: float) -> list[float]:
    """Reserves the p95, extends where a unit turns out to cost more, settles what it cost."""
    spent: list[float] = []
    while True:
        try:
            with pool.reserve(holder, P95) as reservation:
                cost = _cost(chance)
                time.sleep(seconds * chance.random())
                if cost > reservation.amount:
                    try:
                        reservation.extend(cost - reservation.amount)
                    except PoolRefused:
                        cost = reservation.amount  # the unit is cut off
                reservation.settle(cost)
                spent.append(cost)
        except PoolRefused as refused:
            if not refused.contended:
                return spent
            time.sleep(0.02 * chance.random())


def spend_counting(pool: Pool, holder: str, amount: float, chance: random.Random, seconds: float) -> list[float]:
    """Looks whether something is left, spends, and adds what it cost to the count afterwards."""
    spent: list[float] = []
    while pool.level()[0] < amount:
        cost = _cost(chance)
        time.sleep(seconds * chance.random())
        unit = PoolUnit(pool=NAME, resource=RESOURCE, holder=holder, item=f"{len(spent)}")
        with writing(pool._engine) as connection:
            pools.settle(connection, unit, cost, time.time())
        spent.append(cost)
    return spent


Spender = Callable[[Pool, str, float, random.Random, float], list[float]]


def run_spenders(
    spender: Spender, address: str, *, processes: int, threads: int, amount: float, seconds: float = 0.01
) -> Spent:
    """Runs spenders at the same time until all have stopped.

    Args:
        seconds: How long a unit takes at most.
    """
    barrier, answers = MANY.Barrier(processes + 1), MANY.SimpleQueue()
    children = [
        MANY.Process(
            target=_run_process,
            args=(spender, address, number, threads, amount, seconds, barrier, answers),
            daemon=True,
        )
        for number in range(processes)
    ]
    for child in children:
        child.start()
    barrier.wait(120)
    started = time.monotonic()
    spent = [answers.get() for _ in children]
    took = time.monotonic() - started
    for child in children:
        child.join()
    pool = Pool(address, NAME, resource=RESOURCE, amount=amount)
    counted, reserved = pool.level()
    pool.close()
    costs = [cost for costs in spent for cost in costs]
    return Spent(round(math.fsum(costs), 9), counted, reserved, len(costs), took)


def _run_process(
    spender: Spender,
    address: str,
    number: int,
    threads: int,
    amount: float,
    seconds: float,
    barrier: Any,
    answers: Any,
) -> None:
    pool = Pool(address, NAME, resource=RESOURCE, amount=amount)

    def run(thread: int) -> list[float]:
        holder = f"spender-{number}-{thread}"
        return spender(pool, holder, amount, random.Random(holder), seconds)

    barrier.wait(120)
    with ThreadPoolExecutor(threads) as executor:
        answers.put([cost for costs in executor.map(run, range(threads)) for cost in costs])


def _cost(chance: random.Random) -> float:
    return round(chance.lognormvariate(math.log(MEDIAN), SIGMA), 4)
