"""What a person does in Prefect's two UIs: blocks, runs, handoffs, schedules. Real server, real runs, real Chromium."""

from typing import Any

import pytest
from playwright.sync_api import expect
from prefect_ui import PrefectUi
from workbench import Site, wait_until

from perpetual_blocks import ResourceBudget, StatePersistence
from perpetual_blocks.cli.check import _block
from perpetual_blocks.errors import PerpetualError


def test_blocks_runs_and_handoffs(ui: PrefectUi, printing: Site) -> None:
    """Both blocks are made in their forms, which refuse bad values; a run is started with them; its chain is followed
    from handoff to handoff; another one is cancelled."""
    site, which = printing, type(ui).__name__.lower()
    budget, store, chain = f"budget-{which}", f"store-{which}", f"leaflets-{which}"
    make_budget(ui, budget)
    make_store(ui, store, site.environment["PERPETUAL_LEDGER"])

    run = start_run(ui, site, chain, copies="9", budget=budget, store=store)
    parameters = site.run(run)["parameters"]
    assert {name: list(parameters[name]) for name in ("budget", "store")} == {"budget": ["$ref"], "store": ["$ref"]}
    assert (parameters["copies"], parameters["paper"], parameters["numbered"]) == (9, "plain", True)
    assert site.chain_over(chain)["status"] == "finished"
    follow_chain(ui, chain)

    cancel_a_chain(ui, site, f"{chain}-cancelled", budget)


def make_budget(ui: PrefectUi, name: str) -> None:
    """The form shows a first limit, and refuses a number out of range. Neither UI checks how a text is written: a block
    with hours that are none is saved, and `perpetual check` says what is wrong with it."""
    open_block_form(ui, "resource-budget", f"{name}-late")
    ui.field("Most sessions").fill("-1")
    ui.button(ui.save_block).click()
    wait_until(lambda: "greater than or equal to 0" in ui.refusal("Most sessions"), "the refusal of -1", 20)
    ui.field("Most sessions").fill("50")
    ui.field("Quiet hours").fill("late")
    ui.saved_block()
    with pytest.raises(PerpetualError, match="quiet_hours: is not written as the form says"):
        _block(ResourceBudget, f"{name}-late")

    open_block_form(ui, "resource-budget", name)
    ui.limits("45")
    ui.saved_block()
    made = ResourceBudget.load(name, _sync=True)
    assert [(limit.resource, limit.amount, limit.scope) for limit in made.limits] == [("tokens", 45, "session")]
    assert (made.max_sessions, made.quiet_hours) == (0, "")


def make_store(ui: PrefectUi, name: str, ledger: str) -> None:
    """The form refuses to keep a single checkpoint; the ledger's address is seen nowhere afterwards."""
    open_block_form(ui, "state-persistence", name)
    ui.field("Ledger").fill(ledger)
    ui.field("Checkpoints to keep").fill("1")
    ui.button(ui.save_block).click()
    wait_until(lambda: "greater than or equal to 2" in ui.refusal("Checkpoints to keep"), "the refusal of 1", 20)
    ui.field("Checkpoints to keep").fill("7")
    saved = ui.saved_block()
    ui.open(f"/blocks/block/{saved['id']}")
    expect(
        ui.page.get_by_text("Checkpoints to keep").or_(ui.page.get_by_text("keep_checkpoints")).first
    ).to_be_visible()
    assert ledger not in ui.page.content()
    assert set(saved["data"]["ledger"]) == {"*"}
    assert StatePersistence.load(name, _sync=True).ledger.get_secret_value() == ledger


def open_block_form(ui: PrefectUi, slug: str, name: str) -> None:
    """The form for a new block of that kind, with its name."""
    ui.open(f"/blocks/catalog/{slug}/create")
    ui.button(ui.save_block).wait_for()
    ui.field(ui.name_of_block).fill(name)


def start_run(ui: PrefectUi, site: Site, chain: str, copies: str, **blocks: str) -> str:
    """A run from the run form, which refuses more copies than the agent's field allows; returns the run's id."""
    deployment = site.call("GET", "/deployments/name/leaflets/printed")["id"]
    ui.open(f"/deployments/deployment/{deployment}/run")
    ui.button("Submit").wait_for()
    assert ui.field("copies").input_value() == "9", "the default"
    kinds = {"budget": "ResourceBudget", "store": "StatePersistence"}
    for parameter, name in blocks.items():
        ui.choose_block(parameter, kinds[parameter], name)
        wait_until(lambda parameter=parameter, name=name: name in ui.chosen_block(parameter), f"{name} as chosen", 20)
    ui.name_chain(chain)
    ui.field("copies").fill("51")
    assert "50" in ui.refusal_of_run("copies")
    ui.field("copies").fill(copies)
    return str(ui.submitted()["id"])


def follow_chain(ui: PrefectUi, chain: str) -> None:
    """From each handoff to the list of all, and on to the next; at the end all runs, whose states tell the story."""
    ui.open(f"/artifacts/key/handoff-{chain}")
    for ordinal, state in ((1, "Wrapped"), (2, "Wrapped"), (3, "Finished")):
        open_version(ui, ordinal)
        expect(ui.page.get_by_role("heading", name=f"{chain} · session {ordinal} · {state}")).to_be_visible()
        assert ui.page.url.startswith(f"{ui.server}{ui.prefix}/artifacts/"), "it stays in the same UI"
        ui.follow("all handoffs")
    open_version(ui, 3)
    ui.follow("all runs of this chain")
    for ordinal in (1, 2, 3):
        expect(ui.page.get_by_role("link", name=f"{chain} · {ordinal}", exact=True)).to_be_visible()
    expect(ui.page.get_by_text("Wrapped", exact=True)).to_have_count(2)
    expect(ui.page.get_by_text("Finished", exact=True)).to_have_count(1)


def open_version(ui: PrefectUi, ordinal: int) -> None:
    """From the list of three handoffs, the latest of which is the first, to that of one session."""
    versions = ui.page.locator('a[href*="/artifacts/artifact/"]')
    expect(versions).to_have_count(3)
    versions.nth(3 - ordinal).click()


def cancel_a_chain(ui: PrefectUi, site: Site, chain: str, budget: str) -> None:
    """Cancelled on the run's page: the chain is over, and has no follow-on."""
    deployment = site.call("GET", "/deployments/name/leaflets/printed")["id"]
    body = {"parameters": {"chain": chain, "dry_seconds": 600}}
    run = site.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]
    wait_until(lambda: site.status(chain), "the session of the chain that is cancelled")
    ui.open(f"/runs/flow-run/{run}")
    ui.cancel_run()
    assert site.final_run(run)["state_name"] == "Cancelled"
    assert site.chain_over(chain)["status"] == "cancelled"
    assert site.open_runs(chain) == []


def test_more_budget_is_approved(ui: PrefectUi, spending: Site) -> None:
    """The run of a chain whose total is gone waits with a form; what is approved there lets the chain go on."""
    site, chain = spending, f"spent-{type(ui).__name__.lower()}"
    run = site.trigger("spender/served", {"notes": str(site.folder / f"notes-{chain}"), "chain": chain})
    wait_until(lambda: site.run(run)["state_name"] == "Suspended", "the question")

    ui.open(f"/runs/flow-run/{run}")
    form = ui.resume_form()
    expect(form.get_by_role("heading", name=f"{chain} has used up its total of tokens")).to_be_visible()
    ui.decide(form, "more")
    amount = form.locator("input[type=number]")
    expect(amount).to_have_value("35")
    amount.fill("40")
    ui.press(ui.resume, "/resume")

    assert site.final_run(run)["state_name"] == "Wrapped"
    status = wait_until(lambda: (s := site.status(chain))["status"] == "finished" and s, "the rest")
    assert (status["items"]["completed"], status["approvals"][0]["amounts"]) == (8, {"tokens": 40.0})


def test_a_deployment_of_prefect_yaml(ui: PrefectUi, deployed: Site) -> None:
    """It is triggered from its page, scheduled hourly, and the schedule is paused and resumed."""
    site, chain = deployed, f"mined-{type(ui).__name__.lower()}"
    deployment = site.call("GET", "/deployments/name/mine-docs/doc-miner")
    page = f"/deployments/deployment/{deployment['id']}"
    corpus = site.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "alpha.py").write_text('def one(): "Says one."\n')

    ui.open(page)
    ui.run_menu("Custom run")
    ui.field("corpus").fill(str(corpus))
    ui.field("knowledge").fill(str(site.folder / chain))
    ui.name_chain(chain)
    ui.submitted()
    assert site.chain_over(chain)["items"]["completed"] == 1

    ui.open(page)
    ui.button("Run").wait_for()
    ui.add_hourly_schedule()
    for active in (False, True):
        switch_schedule(ui, site, active)
    assert schedule(site)["schedule"]["interval"] == 3600
    made = schedule(site)
    site.call("DELETE", f"/deployments/{deployment['id']}/schedules/{made['id']}")


def switch_schedule(ui: PrefectUi, site: Site, active: bool) -> None:
    """Pauses or resumes it: pressed once more where the server was busy."""
    switch = ui.schedule_switch()

    def look() -> bool:
        if switch.get_attribute("aria-checked") == str(not active).lower():
            switch.click()
        return schedule(site)["active"] is active

    wait_until(look, f"the schedule's active is {active}", 60)
    expect(switch).to_have_attribute("aria-checked", str(active).lower())


def schedule(site: Site) -> dict[str, Any]:
    """The only schedule of the deployment."""
    [only] = site.call("GET", "/deployments/name/mine-docs/doc-miner")["schedules"]
    return dict(only)
