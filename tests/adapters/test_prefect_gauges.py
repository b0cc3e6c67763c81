"""The mirrors of pools: names and whole numbers, and a real server that has them."""

import pytest
from prefect_server import PrefectServer

from perpetual_blocks import Limit
from perpetual_blocks.adapters.prefect_gauges import MOST_SLOTS, gauge_name, show_pool, slots


def pool(resource: str, amount: float, name: str = "llm", window: str | None = None) -> Limit:
    scope = "total" if window is None else "window"
    return Limit(resource, amount, scope=scope, window=window, pool=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (pool("calls", 500, window="day"), "pool llm: calls a day"),
        (pool("cost", 80), "pool llm: cost in all in cents"),
        (pool("tokens", 5, "a/b %<x>&#?", "5h"), "pool a-b --x----: tokens in 5h"),
        (pool("calls", 5, window="day America/Los_Angeles"), "pool llm: calls a day America-Los_Angeles"),
    ],
)
def test_names(limit: Limit, name: str) -> None:
    """They say the pool, the limit and the unit, and hold no character that Prefect, or an address, does not take."""
    assert gauge_name(limit) == name


def test_whole_numbers() -> None:
    """Cents of dollars; what is more than nothing is seen; and nothing is more than the server can hold."""
    cost = pool("cost", 80)

    assert [slots(cost, amount) for amount in (0, 0.0001, 0.1 + 0.2, 80)] == [0, 1, 30, 8000]
    assert [slots(pool("calls", 5), amount) for amount in (5, 5.2, 1e12)] == [5, 6, MOST_SLOTS]


def test_a_server_shows_it(prefect_server: PrefectServer) -> None:
    """It is made at the first time, follows the level afterwards, over the amount too, and holds nobody up."""
    limit = pool("cost", 2.5, "gauge ü/test")
    with prefect_server.here():
        show_pool(limit, 0.0, 0.0)
        show_pool(limit, 1.0, 0.5)
        first = mirror(prefect_server, gauge_name(limit))
        show_pool(pool("cost", 2.0, "gauge ü/test"), 2.75, 0.0)

    assert first == (250, 150)
    assert mirror(prefect_server, gauge_name(limit)) == (200, 275)


def mirror(server: PrefectServer, name: str) -> tuple[int, int]:
    """The limit and the active slots of the mirror of this name."""
    found = server.get(f"/v2/concurrency_limits/{name}")
    return found["limit"], found["active_slots"]
