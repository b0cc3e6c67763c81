"""What users write their tests with: sessions in memory, which behave as those of a deployed flow."""

from collections.abc import Iterable

import pytest
from support import one_line

from perpetual_blocks import Budget, Limit, PerpetualAgent, Unit, WorkItem
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.testing import ManualClock, ScriptedMeter, run_chain, run_session


class Squares(PerpetualAgent):
    """Squares numbers."""

    count: int = 4
    bad: int = -1

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=str(n), bound={"tokens": 100}, max_attempts=2) for n in range(self.count)]

    def work_unit(self, unit: Unit) -> int:
        unit.spend(tokens=100)
        unit.context["latest"] = unit.id
        if unit.id == str(self.bad):
            raise ValueError(f"no square of {unit.id}")
        return int(unit.id) ** 2


class AsyncSquares(Squares):
    async def work_unit(self, unit: Unit) -> int:  # type: ignore[override]
        return super().work_unit(unit)


@pytest.mark.parametrize("agent", [Squares(), AsyncSquares()])
def test_a_session_is_stopped_and_another_goes_on(agent: Squares) -> None:
    first = run_session(agent, stop_after=2)

    assert (first.state, first.units, first.context) == ("Wrapped", ("0", "1"), {"latest": "1"})
    assert first.results == {"0": 0, "1": 1}
    assert "**2 of 4 items done.**" in first.handoff
    second = first.go_on()
    assert (second.ordinal, second.state, second.units) == (2, "Finished", ("2", "3"))
    assert second.results == {"0": 0, "1": 1, "2": 4, "3": 9}
    assert first.results == {"0": 0, "1": 1}, "what happened stays as it is"


def test_a_chain_keeps_its_budget() -> None:
    runs = run_chain(Squares(), budget=Budget(Limit("tokens", 300, threshold=1)))

    assert [(run.state, run.reason.code, run.usage["tokens"]) for run in runs] == [
        ("Wrapped", "budget:tokens", 300),
        ("Finished", "queue-empty", 100),
    ]


def test_nobody_waits_for_a_quota() -> None:
    """The clock goes on to when the window frees."""
    clock = ManualClock()
    began = clock.now()

    runs = run_chain(
        Squares(), budget=Budget(Limit("tokens", 200, scope="window", window="day", threshold=1)), clock=clock
    )

    assert [run.units for run in runs] == [("0", "1"), ("2", "3")]
    assert 60 < clock.now() - began < 2 * 86_400


def test_a_meter_says_what_is_in_its_script() -> None:
    """Its first level is the one before the first unit, the next the one after it."""
    meter = ScriptedMeter(100, 300, 850, 100, capacity=2000)

    runs = run_chain(Squares(), budget=Budget(Limit("memory", 1000, threshold=0.8)), meters={"memory": meter})

    assert runs[0].reason.code == "budget:memory"
    assert runs[0].units == ("0", "1")


def test_time_is_what_units_take() -> None:
    run = run_session(Squares(count=2), unit_seconds=90)

    assert run.usage["seconds"] == 180


def test_what_units_raise_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """They are tried again and discarded as everywhere; the traceback is logged, so that pytest shows it."""
    run = run_session(Squares(bad=2))

    assert (run.state, run.errors) == ("Finished", {"2": "ValueError: no square of 2"})
    assert run.items["2"].status == "discarded"
    logged = [record.message for record in caplog.records if record.message.startswith("2 raised")]
    assert [("Traceback" in text, "ValueError: no square of 2" in text) for text in logged] == [(True, True)] * 2
    assert "no square of 2" in repr(run)


def test_small_units_are_found_in_their_batches() -> None:
    run = run_session(Squares(count=60), unit_seconds=0.001)

    assert any("#" in (item.result_key or "") for item in run.items.values())
    assert run.results == {str(n): n**2 for n in range(60)}


def test_a_stop_after_no_unit_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        run_session(Squares(), stop_after=0)
    one_line(refused.value, "stop_after", "0", "at least 1 unit")


def test_a_chain_without_an_end_is_one_that_fails() -> None:
    with pytest.raises(AssertionError, match="had not ended after 2 sessions"):
        run_chain(Squares(), budget=Budget(Limit("tokens", 100, threshold=1)), most=2)
