"""A bucket that is summarised for so many dollars: against an S3 server, and a model with credit."""

from collections.abc import Iterator

import pytest
from cost_limited import CostLimited, Prices
from support import some_item

from perpetual_blocks import Budget, Limit
from perpetual_blocks.cli.demos import cost
from perpetual_blocks.cli.demos.cost import Cost
from perpetual_blocks.testing import run_chain, run_session
from perpetual_blocks.work import Unit

TEXTS = 6


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cost]:
    """The demo's stage, with a few texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "TEXTS", TEXTS)
        stage = Cost(tmp_path_factory.mktemp("cost"))
        with stage.parts():
            for name, value in stage.environment().items():
                patch.setenv(name, value)
            yield stage


@pytest.fixture
def agent(shared_stage: Cost) -> CostLimited:
    """The agent on that stage."""
    return CostLimited(**shared_stage.parameters())


def of(total: float) -> Budget:
    """So many dollars in all."""
    return Budget(cost=Limit("cost", total, scope="total"))


def test_each_text_is_summarised_and_accounted_for(agent: CostLimited, shared_stage: Cost) -> None:
    """The account by service is what was spent, and the model's part is what the model has billed."""
    billed = shared_stage.service.billed

    [run] = run_chain(agent, budget=of(100))

    assert run.state == "Finished"
    assert len(shared_stage.results()) == TEXTS
    spent = run.context["spent"]
    assert sorted(spent) == ["get", "model", "put", "transfer"]
    assert sum(spent.values()) == pytest.approx(run.usage["cost"])
    assert spent["model"] == pytest.approx(shared_stage.service.billed - billed)
    assert spent["put"] == pytest.approx(TEXTS * agent.prices.put)
    assert f"Spent on model: ${spent['model']:.4f}" in run.handoff


def test_the_total_is_never_overrun(agent: CostLimited) -> None:
    """A chain whose next unit might not fit is exhausted, and says what it needs; with more it goes on."""
    *_, last = run_chain(agent, budget=of(0.9))

    assert last.state == "Exhausted"
    assert 0 < last.usage["cost"] <= 0.9
    assert 0 < len(last.results) < TEXTS
    assert last.go_on(budget=of(100)).state == "Finished"


def test_an_account_that_is_empty_sooner_asks_for_more(agent: CostLimited, shared_stage: Cost) -> None:
    """What others have spent of it: no item is given up, and once somebody has paid, the chain goes on."""
    service = shared_stage.service
    service.pay(service.billed + 0.5 - (service.credit or 0.0))

    *_, last = run_chain(agent, budget=of(50))

    assert (last.state, last.errors) == ("Exhausted", {})
    assert 0 < len(last.results) < TEXTS
    assert last.context["spent"]["unknown"] > 40
    service.pay(100)
    assert last.go_on(budget=of(100)).state == "Finished"


def test_what_a_unit_costs_at_most_is_known_before(agent: CostLimited) -> None:
    """No unit costs more than what its item says."""
    run = run_session(agent, budget=of(100))

    for name, item in run.items.items():
        assert run.results[name]["cost"] <= item.bound["cost"]


def test_what_a_dead_process_has_spent_is_counted(agent: CostLimited) -> None:
    """A unit that comes again counts as much as the one before can have cost."""
    bound = agent._most(100)
    item = some_item(next(iter(agent.plan())).id, payload={"size": 100}, interruptions=1)
    unit = Unit(item, {})

    agent.work_unit(unit)

    assert unit.context["spent"]["lost"] == pytest.approx(sum(bound.values()))


@pytest.mark.parametrize("wrong", [{"get": -1}, {"million_tokens_in": "much"}])
def test_wrong_prices_are_refused(wrong: dict[str, object]) -> None:
    """When the run is made."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Prices(**wrong)  # type: ignore[arg-type]
