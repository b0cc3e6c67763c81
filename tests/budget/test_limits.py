"""Limits and budgets: what a user may write, and what is made of it."""

from typing import Any

import pytest
from support import one_line

from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES

# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_resource_can_be_limited(resource: str) -> None:
    """A limit has its amount as a float, and wraps from 85 % on unless told otherwise."""
    limit = Limit(resource, 200)

    assert (limit.resource, limit.amount, limit.threshold) == (resource, 200.0, 0.85)


@pytest.mark.parametrize(
    ("amount", "size"),
    [("2GiB", 2**31), ("2 GB", 2 * 10**9), ("512MiB", 2**29), ("1000", 1000.0), (2**31, 2**31), (1.5, 1.5)],
)
def test_memory_is_bytes_or_a_size(amount: float | str, size: float) -> None:
    """An amount of memory is bytes, or text with a unit of size."""
    assert Limit("memory", amount).amount == size


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("token", 1), ("Limit.resource", "'token'", "tokens, cost, calls, seconds, memory")),
        (("", 1), ("Limit.resource", "''", "one of")),
        (("tokens", 0), ("Limit(tokens).amount", "0", "above 0")),
        (("cost", -0.5), ("Limit(cost).amount", "-0.5", "US dollars above 0")),
        (("tokens", NAN), ("Limit(tokens).amount", "nan", "finite")),
        (("seconds", INFINITY), ("Limit(seconds).amount", "inf", "finite number of seconds")),
        (("tokens", True), ("Limit(tokens).amount", "True", "number")),
        (("tokens", "200"), ("Limit(tokens).amount", "'200'", "number of tokens")),
        (("tokens", None), ("Limit(tokens).amount", "None", "number")),
        (("memory", "lots"), ("Limit(memory).amount", "'lots'", "2GiB")),
        (("memory", "-1GiB"), ("Limit(memory).amount", "-1GiB")),
        (("memory", "0"), ("Limit(memory).amount", "0", "above 0")),
    ],
)
def test_wrong_limits_are_refused(arguments: tuple[Any, Any], parts: tuple[str, ...]) -> None:
    """A wrong limit is refused in one line that names the field, the value and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        Limit(*arguments)

    one_line(refused.value, "expected", *parts)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, NAN, True, "0.9", None])
def test_wrong_thresholds_are_refused(threshold: Any) -> None:
    """A threshold is a share above 0 and at most 1."""
    with pytest.raises(InvalidInput) as refused:
        Limit("tokens", 1, threshold=threshold)

    one_line(refused.value, "Limit(tokens).threshold", repr(threshold), "above 0 and at most 1")


def test_threshold_of_the_whole_amount() -> None:
    """A limit may be used up to its last bit."""
    assert Limit("tokens", 1, threshold=1).threshold == 1.0


def test_limits_are_equal_by_value() -> None:
    """Limits that say the same are the same, in sets too."""
    assert Limit("memory", "1KiB") == Limit("memory", 1024)
    assert len({Limit("tokens", 1), Limit("tokens", 1.0), Limit("tokens", 1, threshold=0.9), Limit("calls", 1)}) == 3
    assert Limit("tokens", 1) != "tokens"


def test_limits_read_well() -> None:
    """A limit says itself to people and to programmers."""
    assert str(Limit("tokens", 200_000)) == "200,000 tokens, wrapping from 85% on"
    assert repr(Limit("tokens", 200_000)) == "Limit('tokens', 200000, threshold=0.85)"


# Budgets --------------------------------------------------------------------------------------------------------------


def test_a_budget_can_be_written_in_three_ways() -> None:
    """Amounts by name, limits by name and bare limits make the same budget."""
    by_amount = Budget(tokens=200, memory="1KiB")

    assert by_amount == Budget(tokens=Limit("tokens", 200), memory=1024)
    assert by_amount == Budget(Limit("tokens", 200), Limit("memory", 1024))
    assert hash(by_amount) == hash(Budget(Limit("tokens", 200), Limit("memory", 1024)))
    assert [limit.resource for limit in by_amount] == ["tokens", "memory"]
    assert by_amount != Budget(tokens=200)


def test_a_budget_without_limits_is_empty() -> None:
    """A budget need not limit anything; None is no limit."""
    assert list(Budget()) == list(Budget(tokens=None, seconds=None)) == []


def test_a_budget_is_read_back_from_json() -> None:
    """What the ledger keeps of a budget is the budget."""
    budget = Budget(Limit("tokens", 200, threshold=0.9), cost=1.5, seconds=60, calls=3, memory="2GiB")

    assert Budget.from_json(budget.to_json()) == budget
    assert Budget.from_json([]) == Budget()


@pytest.mark.parametrize(
    ("limits", "named", "parts"),
    [
        ((Limit("tokens", 1),), {"tokens": 2}, ("Budget.tokens", "two")),
        ((Limit("tokens", 1), Limit("tokens", 1)), {}, ("Budget.tokens", "two")),
        ((), {"tokens": Limit("cost", 1)}, ("Budget.tokens", "Limit('cost'", "a limit on tokens")),
        ((5,), {}, ("Budget", "5", "Limit")),
        ((), {"calls": -1}, ("Limit(calls).amount", "-1")),
        ((), {"calls": 0}, ("Limit(calls).amount", "0")),
    ],
)
def test_wrong_budgets_are_refused(limits: tuple[Any, ...], named: dict[str, Any], parts: tuple[str, ...]) -> None:
    """A budget has at most one limit for each resource, under the resource's own name."""
    with pytest.raises(InvalidInput) as refused:
        Budget(*limits, **named)

    one_line(refused.value, "expected", *parts)


def test_estimates_have_to_fit_a_whole_budget() -> None:
    """Work that no session could ever do is refused; what fits exactly, or is not limited, is fine."""
    budget = Budget(tokens=100, cost=0.5)
    budget.check_estimate({"tokens": 100, "cost": 0.5, "calls": 10**9}, "WorkItem('a')")

    with pytest.raises(InvalidInput) as refused:
        budget.check_estimate({"tokens": 50, "cost": 0.51}, "WorkItem('a')")

    one_line(refused.value, "WorkItem('a').estimate.cost", "0.51", "0.5")
