"""A pool of dollars on PostgreSQL that many spend at once: how far above the limit it ends, and how much of it is used.

Side by side: the same spenders, units and prices, where each looks whether something is left, spends, and counts
afterwards, as a budget without reservations does.
"""

from collections.abc import Callable
from typing import Any

from harness import Result
from pool_spenders import P95, Spender, Spent, run_spenders, spend_counting, spend_reserving
from postgres_server import PostgresServer, running_server

UNIT_SECONDS = 0.1
"""A unit takes half of this on average; the longer it takes, the more is under way that nobody has counted yet."""


def measure(quick: bool) -> list[Result]:
    """64 spenders, 16 processes with 4 threads each, until nobody is granted anything any more."""
    processes, threads, amount, rounds = (4, 2, 4.0, 1) if quick else (16, 4, 8.0, 2)
    reserving: list[Spent] = []
    counting: list[Spent] = []
    with running_server() as server:
        for number in range(rounds):
            runs: list[Callable[[], None]] = [
                lambda: reserving.append(_run(server, spend_reserving, processes, threads, amount)),
                lambda: counting.append(_run(server, spend_counting, processes, threads, amount)),
            ]
            for run in runs if number % 2 else reversed(runs):
                run()
    overshoot = max(_percent(spent.overshoot(amount), amount) for spent in reserving)
    use = min(_percent(spent.counted, amount) for spent in reserving)
    counted_afterwards = max(_percent(spent.overshoot(amount), amount) for spent in counting)
    detail: dict[str, Any] = {
        "spenders": processes * threads,
        "limit": amount,
        "reserved_a_unit": P95,
        "units": [spent.units for spent in reserving],
        "units_a_second": [round(spent.units / spent.seconds) for spent in reserving],
        "counting_overshoot": [_percent(spent.overshoot(amount), amount) for spent in counting],
        "counting_units_a_second": [round(spent.units / spent.seconds) for spent in counting],
        "rounds": rounds,
    }
    against = f"counting afterwards: up to {counted_afterwards:g} % above the limit"
    return [
        Result("pool_overshoot", overshoot, "% of the limit", against, detail),
        Result("pool_use", use, "% of the limit", against, detail),
    ]


def _run(server: PostgresServer, spender: Spender, processes: int, threads: int, amount: float) -> Spent:
    address = server.make_database()
    return run_spenders(spender, address, processes=processes, threads=threads, amount=amount, seconds=UNIT_SECONDS)


def _percent(part: float, amount: float) -> float:
    return round(100 * part / amount, 3)
