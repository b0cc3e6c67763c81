"""Requirements of AWS's durable executions, against our ledger and session loop; `rules.py` says what each demands."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from rig import ONE_UNIT, UNIT_TOKENS, Killed, MakeRig, item, proves, proves_with, window
from support import FakeClock

from perpetual_blocks.session.chain import ChainStatus, SessionState
from perpetual_blocks.telemetry import Moment, SessionEnded, SessionStarted, UnitCompleted, UnitFailed
from perpetual_blocks.work import ItemStatus, Unit, WorkItem

# Results --------------------------------------------------------------------------------------------------------------


@proves_with(
    "results",
    {
        "1-1": ["Hello, World!"],
        "1-4": [{"user": {"name": "Zoë", "tags": ["a", "b"]}, "count": 2, "share": 0.1, "more": [None, True]}],
        "1-5": [None],
        "3-1": ["said"],
        "3-16": [None],
        "8-4": ["hello", 42, {"k": "v"}],
    },
)
def test_a_result_comes_back(make_rig: MakeRig, results: list[Any]) -> None:
    """Each item runs once, is completed, and its row points at the result, with the value and type that it had."""
    rig = make_rig([item(str(n)) for n in range(len(results))], lambda unit: results[int(unit.id)])

    assert rig.run().state is SessionState.FINISHED

    assert [rig.result(str(n)) for n in range(len(results))] == results
    assert rig.ran == [f"{n}/1" for n in range(len(results))]


@proves_with(
    "units",
    {
        "1-2": {"a name of its own": 1},
        "3-2": {"chapter/1": 2},
        "6-3": {"is it there yet?": 3},
        "8-1": {"task-1": 1, "task-2": 1},
        "8-3": {"first": 1, "second": 2},
        "9-1": {"a": 1, "b": 1, "c": 1},
        "9-13": {"user ‹1›": 1, "user ‹2›": 1},
    },
)
def test_work_goes_by_its_name(make_rig: MakeRig, units: dict[str, int]) -> None:
    """Under the id that the user gave it an item is run, told of, and has its result."""
    rig = make_rig(
        [item(id) for id in units],
        lambda unit: unit.advance() if unit.number < units[unit.id] else f"result of {unit.id}",
    )

    rig.run()

    each = [id for id, count in units.items() for _ in range(count)]
    assert [moment.item for moment in rig.told(UnitCompleted)] == each
    assert {id: rig.result(id) for id in units} == {id: f"result of {id}" for id in units}


@proves_with("bytes_each", {"3-11": [300_000], "9-16": [200_000, 200_000]})
def test_large_results(make_rig: MakeRig, bytes_each: list[int]) -> None:
    """They lie in the results storage, whole; the ledger has no more than their keys, and nobody makes them again."""

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        return unit.id * bytes_each[int(unit.id)] if unit.id.isdigit() else None

    ids = [str(n) for n in range(len(bytes_each))]
    rig = make_rig([item(id) for id in (*ids, "last")], work)

    ends = rig.run_chain(ONE_UNIT)

    assert len(ends) == len(ids) + 1
    assert rig.ran == [f"{id}/1" for id in (*ids, "last")]
    assert [len(rig.result(id)) for id in ids] == bytes_each
    assert all(len(repr(rig.found(id))) < 2_000 for id in ids)


# Going on -------------------------------------------------------------------------------------------------------------


@proves_with("units_of_first", {"1-3": 1, "6-12": 3})
def test_items_build_on_each_other(make_rig: MakeRig, units_of_first: int) -> None:
    """An item that depends on another comes after all of its units, in a later session, with what they left."""

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        if unit.id == "second":
            return f"{unit.context['found']}_second"
        unit.context["found"] = f"first{unit.number}"
        return unit.context["found"] if unit.number == units_of_first else unit.advance()

    rig = make_rig([item("second", depends_on=("first",), priority=1), item("first")], work)

    rig.run_chain(ONE_UNIT)

    assert rig.ran == [*(f"first/{n + 1}" for n in range(units_of_first)), "second/1"]
    assert rig.result("second") == f"first{units_of_first}_second"


@proves("3-3")
def test_units_of_an_item_build_on_each_other(make_rig: MakeRig) -> None:
    """The second unit begins with the cursor that the first one left, in another session."""

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        return f"{unit.cursor}_second" if unit.number == 2 else unit.advance(cursor="first")

    rig = make_rig([item("a")], work)

    assert len(rig.run_chain(ONE_UNIT)) == 2

    assert rig.result("a") == "first_second"


@proves_with(
    "units",
    {
        "1-8": {"a": 1, "b": 1},
        "1-9": {"a": 1, "b": 1},
        "2-3": {"a": 1, "b": 1, "c": 1},
        "3-9": {"a": 2, "b": 1},
        "3-10": {"a": 2},
        "3-13": {"a": 2, "b": 1},
        "3-18": {"a": 2, "b": 2, "c": 1},
        "8-14": {"a": 1, "b": 2},
        "9-15": {"a": 1, "b": 2, "c": 1},
        "9-17": {"a": 1, "b": 1, "c": 1},
    },
)
def test_what_is_finished_is_not_done_again(make_rig: MakeRig, units: dict[str, int]) -> None:
    """With an hour between all units, each in a session of its own, each runs once, and its result is the one that it
    had then."""

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        return len(rig.ran) if unit.number == units[unit.id] else unit.advance()

    rig = make_rig([item(id) for id in units], work)

    ends = rig.run_chain(window("1h"))

    ran = [f"{id}/{n}" for id, count in units.items() for n in range(1, count + 1)]
    assert rig.ran == ran
    assert [end.state for end in ends] == [*[SessionState.WRAPPED] * (len(ran) - 1), SessionState.FINISHED]
    assert {id: rig.result(id) for id in units} == {id: ran.index(f"{id}/{count}") + 1 for id, count in units.items()}
    starts = [session.started_at for session in rig.ledger.sessions("mine")]
    assert all(later - earlier >= 3600 for earlier, later in pairwise(starts))


@proves_with("wait", {"2-1": ("5s", 5), "2-4": ("1m", 60), "2-5": ("1h", 3600)})
def test_waits(make_rig: MakeRig, clock: FakeClock, wait: tuple[str, float]) -> None:
    """The session ends and the follow-on is due when the window has room again: not before, and not much later."""

    def work(unit: Unit) -> None:
        unit.spend(tokens=UNIT_TOKENS)

    length, seconds = wait
    rig = make_rig([item("a"), item("b")], work)

    assert rig.run(window(length)).state is SessionState.WRAPPED

    (follow_on,) = rig.runs.created.values()
    assert follow_on.not_before is not None
    assert seconds <= follow_on.not_before - clock.now() <= 1.05 * seconds
    rig.wait_for_follow_on()
    assert rig.run(window(length)).state is SessionState.FINISHED


def grown(state: Any) -> Any:
    """The next state of what is waited for: a number, or a structure with one."""
    return {**state, "n": state["n"] + 1} if isinstance(state, dict) else state + 1


@proves_with(
    "polls",
    {
        "6-1": {"a": [0, 1, 2, 3]},
        "6-2": {"a": [5, 6]},
        "6-4": {"a": [10, 11, 12]},
        "6-9": {"a": [{"n": 0, "seen": ["x"]}, {"n": 1, "seen": ["x"]}, {"n": 2, "seen": ["x"]}]},
        "6-10": {"a": [0, None]},
        "6-13": {"a": [0, 1, 2], "b": [7, 8, 9]},
    },
)
def test_polling(make_rig: MakeRig, polls: dict[str, list[Any]]) -> None:
    """Each look begins with what the one before came to, in a session of its own, up to the one that has the result."""
    seen: dict[str, list[Any]] = {id: [] for id in polls}

    def work(unit: Unit) -> Any:
        unit.spend(tokens=UNIT_TOKENS)
        state = unit.payload["state"] if unit.number == 1 else unit.cursor
        seen[unit.id].append(state)
        last = polls[unit.id][-1]
        if last is None:
            return None
        state = grown(state)
        return state if state == last else unit.advance(cursor=state)

    rig = make_rig([item(id, payload={"state": states[0]}) for id, states in polls.items()], work)

    ends = rig.run_chain(ONE_UNIT)

    assert seen == {id: states[:-1] for id, states in polls.items()}
    assert {id: rig.result(id) for id in polls} == {id: states[-1] for id, states in polls.items()}
    assert len(ends) == sum(len(states) - 1 for states in polls.values())


# What goes wrong ------------------------------------------------------------------------------------------------------


@proves_with(
    "case",
    {  # which unit fails, how often, what the item says, what is run, what becomes of it
        "1-11": (1, 1, {}, ["a/1", "a/1"], ItemStatus.COMPLETED),
        "1-12": (1, 99, {"max_attempts": 4}, ["a/1"] * 4, ItemStatus.DISCARDED),
        "1-13": (1, 2, {}, ["a/1"] * 3, ItemStatus.COMPLETED),
        "1-19": (1, 99, {"max_attempts": 1}, ["a/1"], ItemStatus.DISCARDED),
        "3-7": (2, 1, {}, ["a/1", "a/2", "a/2"], ItemStatus.COMPLETED),
        "3-8": (2, 99, {"max_attempts": 2}, ["a/1", "a/2", "a/2"], ItemStatus.DISCARDED),
        "6-7": (1, 99, {"max_attempts": 1}, ["a/1"], ItemStatus.DISCARDED),
    },
)
def test_attempts(make_rig: MakeRig, case: tuple[int, int, dict[str, int], list[str], ItemStatus]) -> None:
    """A unit that raises is run again as long as it has attempts, and the units before it are not; an item that is
    given up says why."""
    failing, times, said, ran, status = case

    def work(unit: Unit) -> Any:
        if unit.number == failing and unit.attempt <= times:
            raise ValueError(f"attempt {unit.attempt}")
        return "done" if unit.number == 2 else unit.advance()

    rig = make_rig([item("a", **said)], work)

    assert rig.run_chain()[-1].state is SessionState.FINISHED

    found = rig.found("a")
    if status is ItemStatus.COMPLETED:
        ran = [*ran, "a/2"][: len(ran) + (failing == 1)]
        assert (rig.result("a"), found.error) == ("done", None)
    else:
        assert found.error == f"ValueError: attempt {ran.count(f'a/{failing}')}"
    assert (rig.ran, found.status) == (ran, status)


@proves_with("ids", {"1-10": ["bad", "good"], "9-18": ["good", "bad", "last"]})
def test_a_failure_is_remembered(make_rig: MakeRig, ids: list[str]) -> None:
    """An item that was given up in one session is given up in the next one, for the same reason, and is not run."""

    def work(unit: Unit) -> None:
        unit.spend(tokens=UNIT_TOKENS)
        if unit.id == "bad":
            raise ValueError("no such page")

    rig = make_rig([item(id, max_attempts=1) for id in ids], work)

    assert len(rig.run_chain(window("1h"))) == len(ids)

    assert rig.ran == [f"{id}/1" for id in ids]
    found = rig.found("bad")
    assert (found.status, found.error) == (ItemStatus.DISCARDED, "ValueError: no such page")


@proves_with(
    "ids",
    {
        "1-20": ["bad", "fallback"],
        "3-5": ["bad", "recovery"],
        "6-8": ["bad", "fallback"],
        "8-9": ["a", "bad", "c"],
        "8-16": ["bad", "bad too"],
        "8-20": ["a", "bad", "c", "bad too"],
        "9-8": ["a", "bad", "c"],
    },
)
def test_bad_items_do_not_stop_the_others(make_rig: MakeRig, ids: list[str]) -> None:
    """Every item is run; the end says how many were given up, and the ledger which, and why."""

    def work(unit: Unit) -> Any:
        if unit.id.startswith("bad"):
            raise ValueError(f"{unit.id} is bad")
        return unit.id

    rig = make_rig([item(id, max_attempts=1) for id in ids], work)
    bad = [id for id in ids if id.startswith("bad")]

    end = rig.run()

    assert (end.state, end.reason.message) == (
        SessionState.FINISHED,
        f"every item is done but {len(bad)}, which {'were' if len(bad) > 1 else 'was'} discarded",
    )
    assert rig.ran == [f"{id}/1" for id in ids]
    given_up = {one.id: one.error for one in rig.ledger.items("mine", ItemStatus.DISCARDED)}
    assert given_up == {id: f"ValueError: {id} is bad" for id in bad}
    completed = [one.id for one in rig.ledger.items("mine", ItemStatus.COMPLETED)]
    assert {id: rig.result(id) for id in completed} == {id: id for id in ids if id not in bad}


@proves_with("dies_in", {"1-18": 1, "3-12": 2})
def test_an_interrupted_unit_is_run_again(make_rig: MakeRig, dies_in: int) -> None:
    """The unit in which a process died is run again by the next one; no attempt is counted, and those before it are not
    run again."""

    def work(unit: Unit) -> Any:
        if unit.number == dies_in and len(rig.ran) == dies_in:
            raise Killed
        return "done" if unit.number == dies_in else unit.advance()

    rig = make_rig([item("a", max_attempts=1)], work)
    rig.run_killed()

    assert rig.run().state is SessionState.FINISHED

    assert rig.ran == [*(f"a/{n}" for n in range(1, dies_in + 1)), f"a/{dies_in}"]
    found = rig.found("a")
    assert (rig.result("a"), found.failures, found.interruptions) == ("done", 0, 1)


# Observers ------------------------------------------------------------------------------------------------------------


@proves("10-3", "10-5")
def test_observers_are_told_of_each_attempt(make_rig: MakeRig) -> None:
    """The failed attempt with its number and error, and the unit that was finished; every observer is told the same."""
    other: list[Moment] = []

    def work(unit: Unit) -> None:
        if unit.attempt == 1:
            raise ValueError("not at first")

    rig = make_rig([item("a")], work)

    rig.run(observers=[other.append])

    (failed,), (completed,) = rig.told(UnitFailed), rig.told(UnitCompleted)
    assert (failed.item, failed.attempt, failed.error) == ("a", 1, "ValueError: not at first")
    assert (completed.item, completed.number, completed.done) == ("a", 1, True)
    assert rig.moments.index(failed) < rig.moments.index(completed)
    assert other == rig.moments


@proves("10-4")
def test_what_an_observer_raises_changes_nothing(make_rig: MakeRig) -> None:
    """A chain whose observer raises at each moment comes to the end that it has without, and others are still told."""

    def work(unit: Unit) -> Any:
        if unit.id == "a" and unit.attempt == 1:
            raise ValueError("not at first")
        return unit.id

    def broken(moment: Moment) -> None:
        told.append(moment)
        raise RuntimeError("no connection to the dashboard")

    told: list[Moment] = []
    after: list[Moment] = []
    rig = make_rig([item("a"), item("b")], work)

    end = rig.run(observers=[broken, after.append])

    assert (end.state, rig.ledger.chain("mine").status) == (SessionState.FINISHED, ChainStatus.FINISHED)
    assert {id: rig.result(id) for id in "ab"} == {"a": "a", "b": "b"}
    assert told == after == rig.moments


@proves("10-6")
def test_observers_know_the_first_session(make_rig: MakeRig) -> None:
    """The first session is number 1, and the next one is not."""
    rig = make_rig([item("a"), item("b")], lambda unit: unit.spend(tokens=UNIT_TOKENS))

    rig.run_chain(ONE_UNIT)

    assert [moment.ordinal for moment in rig.told(SessionStarted)] == [1, 2]


class Broken:
    """A plan that cannot be made."""

    def __iter__(self) -> Iterable[WorkItem]:
        raise RuntimeError("no such folder")

    def __len__(self) -> int:
        return 0


@proves("10-7")
def test_observers_are_told_of_a_failed_session(make_rig: MakeRig) -> None:
    """A session that cannot go on is told of once, as failed, with its reason."""
    rig = make_rig(Broken(), lambda unit: None)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError):
        rig.run()

    (ended,) = rig.told(SessionEnded)
    assert (ended.state, "no such folder" in ended.reason) == (SessionState.FAILED, True)
