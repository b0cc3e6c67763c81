"""Limits and budgets: what a user may write, and what is made of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import one_line

from perpetual_blocks.budget import Budget, Limit, Window
from perpetual_blocks.budget.forecast import RISK
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.usage import RESOURCES

NAN, INFINITY = float("nan"), float("inf")


def window(resource: str, amount: float, text: str, **others: Any) -> Limit:
    return Limit(resource, amount, scope="window", window=text, **others)


def total(resource: str, amount: float, **others: Any) -> Limit:
    return Limit(resource, amount, scope="total", **others)


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_resource_can_be_limited(resource: str) -> None:
    """A limit has its amount as a float; it is a session's, and stops by forecast, unless told otherwise."""
    limit = Limit(resource, 200)

    assert (limit.resource, limit.amount, limit.scope, limit.rule) == (resource, 200.0, "session", "predictive")


@pytest.mark.parametrize(
    ("amount", "size"),
    [("2GiB", 2**31), ("2 GB", 2 * 10**9), ("512MiB", 2**29), ("1000", 1000.0), (2**31, 2**31), (1.5, 1.5)],
)
def test_memory_is_bytes_or_a_size(amount: float | str, size: float) -> None:
    """An amount of memory is bytes, or text with a unit of size."""
    assert Limit("memory", amount).amount == size


@pytest.mark.parametrize("resource", ["seconds", "cpu_seconds"])
def test_time_is_seconds_or_a_length(resource: str) -> None:
    """An amount of time is seconds, or text with a unit of time."""
    assert [Limit(resource, amount).amount for amount in ("90s", "15m", "2h", 0.5)] == [90.0, 900.0, 7200.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("token", 1), ("Limit.resource", "'token'", "tokens, cost, calls, seconds, memory, cpu_seconds")),
        (("", 1), ("Limit.resource", "''", "one of")),
        (("tokens", 0), ("Limit(tokens).amount", "0", "above 0")),
        (("cost", -0.5), ("Limit(cost).amount", "-0.5", "US dollars above 0")),
        (("tokens", NAN), ("Limit(tokens).amount", "nan", "finite")),
        (("seconds", INFINITY), ("Limit(seconds).amount", "inf", "finite number of seconds")),
        (("tokens", True), ("Limit(tokens).amount", "True", "number")),
        (("tokens", "200"), ("Limit(tokens).amount", "'200'", "number of tokens")),
        (("tokens", None), ("Limit(tokens).amount", "None", "number")),
        (("seconds", "15"), ("Limit(seconds).amount", "'15'", "12h")),
        (("memory", "lots"), ("Limit(memory).amount", "'lots'", "2GiB")),
        (("memory", "-1GiB"), ("Limit(memory).amount", "-1GiB")),
        (("memory", "0"), ("Limit(memory).amount", "0", "above 0")),
    ],
)
def test_wrong_amounts_are_refused(arguments: tuple[Any, Any], parts: tuple[str, ...]) -> None:
    """A wrong limit is refused in one line that names the field, the value and what was expected."""
    with pytest.raises(InvalidInput) as refused:
        Limit(*arguments)

    one_line(refused.value, "expected", *parts)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01, NAN, True, "0.9"])
def test_wrong_thresholds_are_refused(threshold: Any) -> None:
    """A threshold is a share above 0 and at most 1."""
    with pytest.raises(InvalidInput) as refused:
        Limit("tokens", 1, threshold=threshold)

    one_line(refused.value, "Limit(tokens).threshold", repr(threshold), "above 0 and at most 1")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"scope": "hourly"}, ("Limit(calls).scope", "'hourly'", "session, window, total")),
        ({"scope": None}, ("Limit(calls).scope", "None", "session, window, total")),
        ({"scope": "window"}, ("Limit(calls).window", "None", '"day" or "5h"')),
        ({"window": "day"}, ("Limit(calls).window", "'day'", 'scope="window"')),
        ({"scope": "total", "window": "5h"}, ("Limit(calls).window", "'5h'", 'scope="window"')),
        ({"scope": "window", "window": "fortnight"}, ("Limit(calls).window", "'fortnight'", '"day"', "5h")),
        ({"scope": "window", "window": "0h"}, ("Limit(calls).window", "'0h'")),
        ({"scope": "window", "window": 5}, ("Limit(calls).window", "5")),
        ({"scope": "window", "window": "day Mars/Base"}, ("Limit(calls).window", "Mars/Base", "IANA time zone")),
        ({"rule": "lucky"}, ("Limit(calls).rule", "'lucky'", "predictive, adaptive, fixed")),
        ({"rule": "adaptive", "threshold": 0.9}, ("Limit(calls).threshold", "0.9", "adaptive")),
        ({"rule": "predictive", "threshold": 0.9}, ("Limit(calls).threshold", "0.9", "predictive")),
        ({"pool": "team"}, ("Limit(calls).pool", "'team'", "a window or a total")),
        ({"scope": "total", "pool": ""}, ("Limit(calls).pool", "''", "1 to 64 characters")),
        ({"scope": "total", "pool": "p" * 65}, ("Limit(calls).pool", "ppp", "1 to 64 characters")),
        ({"scope": "total", "pool": 5}, ("Limit(calls).pool", "5", "a name")),
        ({"scope": "total", "share": 0.5}, ("Limit(calls).share", "0.5", "with a pool")),
        *(
            ({"scope": "total", "pool": "team", "share": share}, ("Limit(calls).share", repr(share), "from 0 to 1"))
            for share in (-0.1, 1.1, NAN, True, "0.5", None)
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    """A setting that is wrong, or does not go with another, is refused by its name, with its value."""
    with pytest.raises(InvalidInput) as refused:
        Limit("calls", 1, **settings)

    one_line(refused.value, "expected", *parts)


@pytest.mark.parametrize("settings", [{"scope": "total"}, {"scope": "window", "window": "day"}])
def test_a_level_is_limited_for_a_session_only(settings: dict[str, Any]) -> None:
    """What is metered in a session has no limit for a day or in total."""
    with pytest.raises(InvalidInput) as refused:
        Limit("memory", "1GiB", **settings)

    one_line(refused.value, "Limit(memory).scope", repr(settings["scope"]), 'expected "session"')


def test_a_threshold_makes_a_limit_fixed() -> None:
    """A threshold needs no rule with it, and the rule no threshold: then it is 85 %."""
    given_threshold, given_rule = Limit("tokens", 1, threshold=1), Limit("tokens", 1, rule="fixed")

    assert (given_threshold.rule, given_threshold.threshold) == ("fixed", 1.0)
    assert (given_rule.rule, given_rule.threshold) == ("fixed", 0.85)
    assert Limit("tokens", 1, rule="fixed", threshold=0.85) == given_rule
    assert Limit("tokens", 1, rule="adaptive").rule == "adaptive"


def test_limits_have_names() -> None:
    """A name tells a limit from the budget's others."""
    limits = [Limit("calls", 1), window("calls", 1, "day"), window("calls", 1, "120m"), total("calls", 1)]

    assert [limit.name for limit in limits] == ["calls", "calls/day", "calls/2h", "calls/total"]


def test_limits_are_equal_by_value() -> None:
    """Limits that say the same are the same, in sets too."""
    assert Limit("memory", "1KiB") == Limit("memory", 1024)
    assert window("calls", 1, "60s") == Limit("calls", 1, scope="window", window=Window.parse("1m"))
    different = [Limit("tokens", 1), Limit("tokens", 1, threshold=0.9), Limit("calls", 1), total("tokens", 1)]
    assert len({*different, Limit("tokens", 1.0)}) == 4
    assert Limit("tokens", 1) != "tokens"


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit("tokens", 200_000), "200,000 tokens a session"),
        (window("calls", 500, "day America/Los_Angeles"), "500 calls a day America/Los_Angeles"),
        (window("cost", 5, "5h"), "$5.00 in 5h"),
        (total("seconds", 3600), "1 h 0 min in all"),
    ],
)
def test_limits_read_well(limit: Limit, text: str) -> None:
    """A limit says itself to people: how much, and of what."""
    assert str(limit) == text


def test_limits_show_what_was_set() -> None:
    """A limit says itself to programmers as it is written, without what was not set."""
    assert repr(Limit("tokens", 200_000)) == "Limit('tokens', 200000)"
    assert repr(Limit("tokens", 1, threshold=0.9)) == "Limit('tokens', 1, rule='fixed', threshold=0.9)"
    assert repr(window("cost", 0.5, "day", pool="team", share=0.25)) == (
        "Limit('cost', 0.5, scope='window', window='day', pool='team', share=0.25)"
    )


# Budgets --------------------------------------------------------------------------------------------------------------


def test_a_budget_can_be_written_in_three_ways() -> None:
    """Amounts by name, limits by name and bare limits make the same budget."""
    by_amount = Budget(tokens=200, memory="1KiB")

    assert by_amount == Budget(tokens=Limit("tokens", 200), memory=1024)
    assert by_amount == Budget(Limit("tokens", 200), Limit("memory", 1024))
    assert hash(by_amount) == hash(Budget(Limit("tokens", 200), Limit("memory", 1024)))
    assert [limit.resource for limit in by_amount] == ["tokens", "memory"]
    assert by_amount != Budget(tokens=200)
    assert by_amount != Budget(tokens=200, memory="1KiB", risk=0.1)


def test_a_budget_without_limits_is_empty() -> None:
    """A budget need not limit anything; None is no limit."""
    assert list(Budget()) == list(Budget(tokens=None, seconds=None)) == []


def test_one_resource_may_have_several_limits() -> None:
    """One for a session, one for each of several windows, and one in total."""
    scopes = [Limit("calls", 10), window("calls", 20, "1h"), window("calls", 50, "day"), total("calls", 500)]
    budget = Budget(*scopes, cost=total("cost", 80))

    assert [limit.name for limit in budget] == ["calls", "calls/1h", "calls/day", "calls/total", "cost/total"]


def test_the_old_list_of_limits_is_read() -> None:
    """Version 0.1 wrote a list of limits with their thresholds: they are a session's, and fixed."""
    old = [{"resource": "tokens", "amount": 200.0, "threshold": 0.9}]

    assert Budget.from_json(old) == Budget(Limit("tokens", 200, threshold=0.9))
    assert Budget.from_json([]) == Budget()


@pytest.mark.parametrize(
    ("limits", "named", "parts"),
    [
        ((Limit("tokens", 1),), {"tokens": 2}, ("Budget.tokens", "two")),
        ((Limit("tokens", 1), Limit("tokens", 1)), {}, ("Budget.tokens", "two")),
        ((window("calls", 1, "1m"), window("calls", 2, "60s")), {}, ("Budget.calls/1m", "two")),
        ((total("cost", 1), total("cost", 2)), {}, ("Budget.cost/total", "two")),
        ((), {"tokens": Limit("cost", 1)}, ("Budget.tokens", "Limit('cost'", "a limit on tokens")),
        ((5,), {}, ("Budget", "5", "Limit")),
        ((), {"calls": -1}, ("Limit(calls).amount", "-1")),
        ((), {"calls": 0}, ("Limit(calls).amount", "0")),
        *(((), {"risk": risk}, ("Budget.risk", repr(risk), "at most 0.5")) for risk in (0, -1, 0.51, NAN, True, "1%")),
    ],
)
def test_wrong_budgets_are_refused(limits: tuple[Any, ...], named: dict[str, Any], parts: tuple[str, ...]) -> None:
    """A budget has at most one limit of each name, under the resource's own name, and a risk from 0 to 0.5."""
    with pytest.raises(InvalidInput) as refused:
        Budget(*limits, **named)

    one_line(refused.value, "expected", *parts)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (Limit("calls", 11), total("calls", 10)),
        (window("calls", 11, "1h"), window("calls", 10, "7d")),
        (window("calls", 11, "day"), window("calls", 10, "7d")),
        (window("calls", 11, "hour"), window("calls", 10, "day")),
        (window("calls", 11, "5h"), window("calls", 10, "7d")),
        (window("calls", 11, "month"), total("calls", 10)),
    ],
)
def test_limits_that_contradict_each_other_are_refused(narrow: Limit, wide: Limit) -> None:
    """A limit that a wider one of its resource keeps from being reached is refused; an equal amount is fine."""
    for limits in ((narrow, wide), (wide, narrow)):
        with pytest.raises(InvalidInput) as refused:
            Budget(*limits)
        one_line(refused.value, f"Budget.{narrow.name}", "11", "expected at most", "10", wide.name)

    fields = narrow.to_json() | {"amount": wide.amount}
    assert list(Budget(Limit.from_json(fields), wide)) == [Limit.from_json(fields), wide]


def test_contradictions_are_found_behind_a_window_of_the_same_length() -> None:
    """Whichever order the limits come in, each is compared with all that are wider."""
    rolling, calendar, wide = window("calls", 200, "24h"), window("calls", 10, "day"), window("calls", 100, "7d")

    for limits in ((calendar, rolling, wide), (rolling, calendar, wide)):
        with pytest.raises(InvalidInput) as refused:
            Budget(*limits)
        one_line(refused.value, "Budget.calls/1d", "200", "100", "calls/7d")


@pytest.mark.parametrize("wide", [window("calls", 10, "day"), window("calls", 10, "1m")])
@pytest.mark.parametrize("narrow", [Limit("calls", 11), window("calls", 11, "30s")])
def test_what_may_cross_a_border_does_not_contradict(narrow: Limit, wide: Limit) -> None:
    """A session may go on from one day, or minute, into the next, and so may rolling seconds into the next day."""
    if narrow.window is None or wide.name == "calls/day":
        assert list(Budget(narrow, wide)) == [narrow, wide]


def test_limits_of_two_resources_do_not_contradict_each_other() -> None:
    """Ten calls in total have nothing to do with the tokens of a session."""
    assert len(list(Budget(total("calls", 10), tokens=200_000))) == 2


def test_estimates_have_to_fit_a_whole_budget() -> None:
    """Work that no session could ever do is refused; what fits exactly, or is not limited, is fine."""
    budget = Budget(total("cost", 0.5), tokens=100)
    budget.check_amounts({"tokens": 100, "cost": 0.5, "calls": 10**9}, "WorkItem('a').estimate")

    with pytest.raises(InvalidInput) as refused:
        budget.check_amounts({"tokens": 50, "cost": 0.51}, "WorkItem('a').estimate")

    one_line(refused.value, "WorkItem('a').estimate.cost", "0.51", "0.5", "in all")


# There and back -------------------------------------------------------------------------------------------------------


@st.composite
def limits(draw: st.DrawFn, amounts: st.SearchStrategy[float]) -> Limit:
    """Any limit that a user may write."""
    resource = draw(st.sampled_from(sorted(RESOURCES)))
    scope = "session" if RESOURCES[resource].kind == "gauge" else draw(st.sampled_from(["session", "window", "total"]))
    settings: dict[str, Any] = {"scope": scope}
    if scope == "window":
        settings["window"] = draw(st.sampled_from(["day", "month Europe/Berlin", "5h", "90s"]))
    if draw(st.booleans()):
        settings["threshold"] = draw(st.floats(0, 1, exclude_min=True))
    else:
        settings["rule"] = draw(st.sampled_from([None, "predictive", "adaptive", "fixed"]))
    if scope != "session" and draw(st.booleans()):
        settings |= {"pool": draw(st.text(min_size=1, max_size=64)), "share": draw(st.floats(0, 1))}
    return Limit(resource, draw(amounts), **settings)


@given(limits(st.floats(1e-9, 1e15)))
def test_a_limit_is_read_back_from_json(limit: Limit) -> None:
    """What the ledger keeps of a limit is the limit."""
    back = Limit.from_json(json.loads(json.dumps(limit.to_json())))

    assert back == limit
    assert (back.threshold, hash(back), str(back)) == (limit.threshold, hash(limit), str(limit))


@given(limits(st.integers(1, 999_999)))
def test_a_limit_is_read_back_from_its_repr(limit: Limit) -> None:
    """What a programmer is shown of a limit makes the limit."""
    assert eval(repr(limit), {"Limit": Limit}) == limit


@given(st.lists(limits(st.just(5.0)), max_size=6, unique_by=lambda limit: limit.name), st.floats(1e-6, 0.5))
def test_a_budget_is_read_back(some: list[Limit], risk: float) -> None:
    """What the ledger keeps of a budget is the budget, its risk and the order of its limits included."""
    budget = Budget(*some, risk=risk)
    fields = json.loads(json.dumps(budget.to_json()))

    assert set(fields) == {"risk", "limits"}
    assert Budget.from_json(fields) == budget
    assert list(Budget.from_json(fields)) == some


def test_a_budget_shows_what_was_set() -> None:
    """A budget says itself as it is written; the usual risk is not shown."""
    assert repr(Budget(calls=3, risk=RISK)) == "Budget(Limit('calls', 3))"
    assert repr(Budget(calls=3, risk=0.05)) == "Budget(Limit('calls', 3), risk=0.05)"
