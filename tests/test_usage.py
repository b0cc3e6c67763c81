"""Resources of the user's own, and amounts as people read them."""

from typing import Any

import pytest
from support import one_line

from perpetual_blocks import Budget, Limit, define_resource
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES, reported, show, validated_usage


def test_a_counter_of_your_own_is_reported_and_limited() -> None:
    """It is known everywhere: where units report, in limits of every scope, in a budget's arguments."""
    define_resource("pages", "counter", "pages")

    assert "pages" in reported()
    assert validated_usage({"pages": 3}, "unit.spend") == {"pages": 3.0}
    assert Budget(pages=40) == Budget(Limit("pages", 40))
    assert str(Limit("pages", 40, scope="window", window="day")) == "40 pages a day"


def test_a_gauge_of_your_own_is_metered() -> None:
    """Nobody reports it, it has no windows, and bytes may be given as a size."""
    define_resource("gpu_memory", "gauge", "bytes")

    assert "gpu_memory" not in reported()
    assert Limit("gpu_memory", "2GiB").amount == 2**31
    with pytest.raises(InvalidInput):
        Limit("gpu_memory", 1, scope="total")
    with pytest.raises(InvalidInput) as refused:
        validated_usage({"gpu_memory": 3}, "unit.spend")
    one_line(refused.value, "unit.spend.gpu_memory", "tokens, cost, calls")


def test_amounts_that_no_forecast_could_reckon_with_are_refused() -> None:
    """Nobody spends 1e30 of anything, and less than 1e-15 is nothing: their squares and ratios would be no numbers."""
    assert validated_usage({"tokens": 1e30, "cost": 1e-15, "calls": 5e-324}, "unit.spend") == {
        "tokens": 1e30,
        "cost": 1e-15,
        "calls": 0.0,
    }
    with pytest.raises(InvalidInput) as refused:
        validated_usage({"tokens": 1e31}, "unit.spend")
    one_line(refused.value, "unit.spend.tokens", "1e+31", "at most 1e+30")


def test_the_same_resource_may_be_defined_twice() -> None:
    """A module may be imported under two names."""
    assert define_resource("pages", "counter", "pages") == define_resource("pages", "counter", "pages")
    assert define_resource("tokens", "counter", "tokens") is not None


@pytest.mark.parametrize(
    ("definition", "parts"),
    [
        (("tokens", "gauge", "tokens"), ("define_resource", "'tokens'", "a counter, in tokens")),
        (("seconds", "counter", "seconds"), ("define_resource", "'seconds'", "another name")),
        (("gpu memory", "gauge", "bytes"), ("define_resource(name)", "'gpu memory'", "identifier")),
        (("class", "gauge", "bytes"), ("define_resource(name)", "'class'")),
        (("x" * 65, "gauge", "bytes"), ("define_resource(name)", "64")),
        ((7, "gauge", "bytes"), ("define_resource(name)", "7")),
        (("model", "counter", "models"), ("define_resource(name)", "'model'")),
        (("risk", "counter", "risks"), ("define_resource(name)", "'risk'")),
        (("pages", "level", "pages"), ("define_resource(kind)", "'level'", "counter, gauge")),
        (("pages", "counter", ""), ("define_resource(unit)", "''")),
        (("pages", "counter", "a\nb"), ("define_resource(unit)",)),
        (("pages", "counter", None), ("define_resource(unit)", "None")),
    ],
)
def test_wrong_definitions_are_refused(definition: tuple[Any, ...], parts: tuple[str, ...]) -> None:
    """What is wrong is named, and nothing is defined."""
    before = dict(RESOURCES)

    with pytest.raises(InvalidInput) as refused:
        define_resource(*definition)

    one_line(refused.value, "expected", *parts)
    assert before == RESOURCES


def test_a_saved_budget_brings_its_resources() -> None:
    """A process that has never imported the agent, as the command line, reads its budget all the same."""
    define_resource("pages", "counter", "pages")
    saved = Budget(pages=40, tokens=7).to_json()
    del RESOURCES["pages"]

    assert str(next(iter(Budget.from_json(saved)))) == "7 tokens a session"
    assert RESOURCES["pages"].unit == "pages"
    assert "resources" not in Budget(tokens=7).to_json()


@pytest.mark.parametrize(
    ("name", "unit", "amount", "text"),
    [
        ("tokens", None, 1_203_003.4, "1,203,003 tokens"),
        ("cpu_seconds", None, 725, "12 min 5 s of CPU"),
        ("gpu_memory", "bytes", 3 * 2**29, "1.5 GiB"),
        ("gpu_time", "seconds", 3.14, "3.1 s"),
        ("gpu_time", "seconds", 0.0996, "100 ms"),
        ("gpu_time", "seconds", 0.00149, "1.5 ms"),
        ("bill", "US dollars", 2.5, "$2.50"),
        ("pages", "pages", 1200, "1,200 pages"),
        ("credits", "credits", 0.25, "0.25 credits"),
        ("watts", "W", 99.96, "100 W"),
        ("unknown_here", None, 3, "3 unknown_here"),
    ],
)
def test_amounts_are_shown_in_their_unit(name: str, unit: str | None, amount: float, text: str) -> None:
    """What is counted in bytes, seconds or dollars is shown as such; small amounts keep their digits."""
    if unit:
        define_resource(name, "gauge", unit)

    assert show(name, amount) == text
