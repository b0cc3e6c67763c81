"""The blocks: what people fill in, where Prefect finds them, and what they refuse."""

import subprocess
import sys
import traceback
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from prefect_server import OURS, PrefectServer
from pydantic import ValidationError

from perpetual_blocks import Budget, Limit, PerpetualAgent
from perpetual_blocks.blocks import LimitSettings, ResourceBudget, StatePersistence
from perpetual_blocks.blocks.loading import chosen_blocks, load_budget
from perpetual_blocks.blocks.state_persistence import default_ledger
from perpetual_blocks.cli.check import _blocks
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.flow import make_flow


class Idle(PerpetualAgent):
    """Has nothing to do."""


@pytest.mark.parametrize("block", [ResourceBudget, StatePersistence], ids=lambda block: str(block._block_type_slug))
class TestStandard(BlockStandardTestSuite):
    """What Prefect asks of every block: descriptions, documentation, an example."""

    @pytest.fixture
    def block(self) -> type[Block]:
        raise NotImplementedError  # the class is parametrised

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """The logo is at an https address. Prefect's own test would fetch it, and needs the internet."""
        assert block._logo_url is not None
        assert (block._logo_url.scheme, block._logo_url.host) == ("https", "raw.githubusercontent.com")


# Where Prefect finds them -------------------------------------------------------------------------------------------


def test_prefect_finds_the_blocks_by_itself(prefect_server: PrefectServer) -> None:
    """A process that never imports this package knows the blocks, through the `prefect.collections` entry point."""
    script = """if True:
        import sys
        from prefect.blocks.core import Block
        from prefect.plugins import load_prefect_collections
        from prefect.utilities.dispatch import lookup_type
        assert "perpetual_blocks.blocks" not in sys.modules
        load_prefect_collections()
        print(*(lookup_type(Block, slug).__name__ for slug in ("resource-budget", "state-persistence")))
    """
    said = subprocess.run(
        [sys.executable, "-c", script], env=prefect_server.environment, capture_output=True, text=True, check=False
    )

    assert said.stdout.split() == ["ResourceBudget", "StatePersistence"], said.stderr


def test_a_server_beside_the_package_registers_the_blocks_by_itself(prefect_server: PrefectServer) -> None:
    """Whoever installs the package where the server runs has nothing to do."""
    assert prefect_server.knew == OURS


def test_the_blocks_are_registered_by_prefects_command(
    prefect_server: PrefectServer, registration: "subprocess.CompletedProcess[str]"
) -> None:
    """`prefect block register -m perpetual_blocks` registers both, for a server that is elsewhere."""
    assert registration.returncode == 0, registration.stderr
    assert "2 blocks" in registration.stdout
    for slug in OURS:
        assert prefect_server.get(f"/block_types/slug/{slug}")["description"].startswith(("What", "Where"))


@pytest.mark.parametrize("block", [ResourceBudget, StatePersistence])
def test_the_forms_have_a_required_field_and_say_what_each_field_is_for(block: type[Block]) -> None:
    """A block without a required field cannot be chosen in a run's form; a field without a title reads badly."""
    schema = block.model_json_schema()

    assert schema["required"]
    for name, field in schema["properties"].items():
        assert field["title"] != name, f"{name}: its title is its name"
        assert field["description"], name


# Saving and loading -------------------------------------------------------------------------------------------------


def test_a_budget_comes_back_as_it_was_saved(on_server: PrefectServer) -> None:
    """The limits that are loaded by name make the same budget, memory in bytes."""
    rows = [
        LimitSettings(resource="tokens", amount=800_000, rule="fixed", threshold=0.98),
        LimitSettings(resource="cost", amount=2.5),
        LimitSettings(resource="memory_mib", amount=512),
    ]
    ResourceBudget(limits=rows).save("a-budget", _sync=True)

    loaded = ResourceBudget.load("a-budget", _sync=True)

    assert loaded.limits == rows
    assert loaded.get_budget() == Budget(
        tokens=Limit("tokens", 800_000, threshold=0.98), cost=2.5, memory=Limit("memory", 512 * 2**20)
    )


def test_a_store_comes_back_as_it_was_saved(on_server: PrefectServer, address: str) -> None:
    """The address survives, though it is masked; the block that is loaded opens the ledger it names."""
    StatePersistence(ledger=address, durability="full", keep_checkpoints=7).save("a-store", _sync=True)

    loaded = StatePersistence.load("a-store", _sync=True)

    assert (loaded.durability, loaded.keep_checkpoints, loaded.result_storage) == ("full", 7, "")
    ledger = loaded.get_ledger()
    try:
        assert ledger.shown == f"sqlite:///{address}"
    finally:
        ledger.close()


@pytest.mark.parametrize("variable", [None, "elsewhere.db"])
def test_default_is_the_ledger_that_the_command_line_uses(
    variable: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """`default` stands for $PERPETUAL_LEDGER, and without it for a file in Prefect's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERPETUAL_LEDGER", raising=False)
    if variable:
        monkeypatch.setenv("PERPETUAL_LEDGER", variable)

    assert default_ledger().endswith(variable or "/perpetual.db")
    if variable:
        ledger = StatePersistence(ledger="default").get_ledger()
        ledger.close()
        assert (tmp_path / variable).is_file()


# Secrets ------------------------------------------------------------------------------------------------------------


def test_the_ledgers_address_is_shown_nowhere(address: str) -> None:
    """Neither as text, nor as a dictionary, nor as JSON."""
    store = StatePersistence(ledger=address)

    for shown in (str(store), repr(store), str(store.model_dump()), store.model_dump_json()):
        assert "eyes" not in shown
        assert "**" in shown, "masked, and not left out"


def test_the_server_tells_the_address_only_to_those_who_ask_for_secrets(on_server: PrefectServer, address: str) -> None:
    """What the UI and a plain request get is masked."""
    StatePersistence(ledger=address).save("a-secret", _sync=True)

    with get_client(sync_client=True) as client:
        masked, told = (
            client.read_block_document_by_name("a-secret", "state-persistence", include_secrets=secrets).data["ledger"]
            for secrets in (False, True)
        )

    assert set(masked) == {"*"}
    assert told == address
    assert "eyes" not in str(on_server.get("/block_types/slug/state-persistence/block_documents/name/a-secret"))


@pytest.mark.parametrize(
    "ledger",
    [
        "postgresql+asyncpg://me:hunter2@db/agents",
        "postgresql+psycopg://me:hunter2@db:port/agents",
        "postgres://me:hunter2@db/agents",
        "mysql://me:hunter2@db/agents",
        "http://me:hunter2@[db",
    ],
)
def test_a_password_is_not_told_by_the_error_that_refuses_it(ledger: str) -> None:
    """Neither the error's text nor a traceback of it, which ends up in logs, holds the password."""
    with pytest.raises(ValidationError) as refused:
        StatePersistence(ledger=ledger)

    assert refused.value.errors()[0]["loc"] == ("ledger",)
    assert "SQLite" in str(refused.value), "says what was expected"
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"resource": "gold", "amount": 5}, "resource"),
        ({"resource": "tokens", "amount": 0}, "amount"),
        ({"resource": "tokens", "amount": -1}, "amount"),
        ({"resource": "tokens", "amount": float("nan")}, "amount"),
        ({"resource": "tokens", "amount": float("inf")}, "amount"),
        ({"resource": "tokens", "amount": "lots"}, "amount"),
        ({"resource": "tokens", "amount": 5, "threshold": 0}, "threshold"),
        ({"resource": "tokens", "amount": 5, "threshold": 1.5}, "threshold"),
        ({"resorce": "calls", "amount": 5}, "resorce"),
        ({"resource": "calls", "amount": 5, "scope": "weekly"}, "scope"),
        ({"resource": "calls", "amount": 5, "scope": "window"}, "window"),
        ({"resource": "calls", "amount": 5, "window": "day"}, "window"),
        ({"resource": "calls", "amount": 5, "scope": "window", "window": "fortnight"}, "window"),
        ({"resource": "calls", "amount": 5, "scope": "window", "window": "day Mars/Olympus"}, "window"),
        ({"resource": "memory_mib", "amount": 5, "scope": "total"}, "scope"),
        ({"resource": "memory_mib", "amount": 5, "scope": "window", "window": "day"}, "scope"),
        ({"resource": "calls", "amount": 5, "rule": "guess"}, "rule"),
        ({"resource": "calls", "amount": 5, "pool": "team"}, "pool"),
        ({"resource": "calls", "amount": 5, "scope": "total", "share": 0.5}, "share"),
        ({"resource": "calls", "amount": 5, "scope": "total", "priority": 1}, "priority"),
    ],
)
def test_a_wrong_limit_is_refused_when_the_block_is_built(row: dict[str, Any], field: str) -> None:
    """The error names the row's field."""
    with pytest.raises(ValidationError) as refused:
        ResourceBudget.model_validate({"limits": [row]})

    [error] = refused.value.errors()
    assert field in (*error["loc"], *error["msg"].replace(":", ".").split("."))


def test_two_limits_on_one_resource_are_refused() -> None:
    """The error names the resource."""
    rows = [
        {"resource": "tokens", "amount": 5},
        {"resource": "calls", "amount": 5},
        {"resource": "tokens", "amount": 6},
    ]

    with pytest.raises(ValidationError, match=r"Budget\.tokens: .*there are two"):
        ResourceBudget.model_validate({"limits": rows})


def test_limits_that_contradict_each_other_are_refused() -> None:
    """A session that may use more than there is in all is named, with both amounts."""
    rows = [{"resource": "cost", "amount": 6}, {"resource": "cost", "amount": 5, "scope": "total"}]

    with pytest.raises(ValidationError, match=r"Budget\.cost: got 6\.0; expected at most the \$5\.00 of cost/total"):
        ResourceBudget.model_validate({"limits": rows})


def test_something_else_than_a_list_of_limits_is_refused() -> None:
    """The error names the field."""
    with pytest.raises(ValidationError) as refused:
        ResourceBudget.model_validate({"limits": "tokens"})

    assert refused.value.errors()[0]["loc"] == ("limits",)


@pytest.mark.parametrize("values", [{}, {"limits": None, "max_sessions": None, "unattended_cost": None}])
def test_a_budgets_form_that_nobody_touched_means_what_it_showed(values: dict[str, Any]) -> None:
    """The v1 UI saves nothing of it, and null for numbers that were emptied."""
    shown = ResourceBudget.model_json_schema()["properties"]

    budget = ResourceBudget.model_validate(values)

    assert budget.get_budget() == Budget(tokens=shown["limits"]["default"][0]["amount"])
    assert (budget.max_sessions, budget.unattended_cost) == (0, 0)


@pytest.mark.parametrize("values", [{}, {"keep_checkpoints": None}])
def test_a_stores_form_that_nobody_touched_means_what_it_showed(values: dict[str, Any]) -> None:
    """The default ledger, and all that it shows beside it."""
    shown = StatePersistence.model_json_schema()["properties"]

    store = StatePersistence.model_validate(values)

    assert store.ledger.get_secret_value() == shown["ledger"]["default"]
    assert store.keep_checkpoints == shown["keep_checkpoints"]["default"]


# What the form let through ------------------------------------------------------------------------------------------


def test_a_wrong_block_is_explained_wherever_it_is_used(on_server: PrefectServer) -> None:
    """The server saves what the v1 UI's JSON field lets through. `perpetual check`, a flow that names the block, and a
    run that was given it all say what is wrong, field by field."""
    ResourceBudget.model_construct(limits=[{"resorce": "calls", "window": "soon"}]).save("wrong", _sync=True)
    document = on_server.get("/block_types/slug/resource-budget/block_documents/name/wrong")
    flow = make_flow(Idle, "idle", None, None, None, 1, None, __name__)
    reference = {"$ref": {"block_document_id": document["id"]}}

    [found] = [finding for finding in _blocks() if finding.name == "resource-budget/wrong"]
    with pytest.raises(InvalidInput) as named:
        load_budget("wrong")
    with pytest.raises(ParameterTypeError) as chosen:
        flow.validate_parameters({"chain": None, "budget": reference, "store": None})

    assert found.ok is False
    for said in (found.what, str(named.value), str(chosen.value)):
        assert "limits.0.resorce: Extra inputs are not permitted" in said
        assert "limits.0.window: is not written as the form says" in said
    assert "'wrong'" in str(chosen.value)


def test_the_run_form_shows_the_flows_own_blocks_as_chosen(on_server: PrefectServer, address: str) -> None:
    """A deployment has references to them as parameters; what it is given itself goes before them."""
    ResourceBudget(limits=[]).save("chosen-budget", _sync=True)
    store = StatePersistence(ledger=address)
    store.save("chosen-store", _sync=True)

    assert chosen_blocks("chosen-budget", store).keys() == {"budget", "store"}
    assert chosen_blocks(Budget(tokens=5), StatePersistence(ledger=address)) == {}
    with pytest.raises(InvalidInput, match="nobody-saved-it"):
        chosen_blocks("nobody-saved-it", None)


def test_a_budget_without_limits_is_one() -> None:
    """An empty list lets a session work until the queue is empty."""
    assert ResourceBudget(limits=[]).get_budget() == Budget()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"ledger": ""}, "ledger"),
        ({"ledger": "  "}, "ledger"),
        ({"ledger": "sqlite://"}, "ledger"),
        ({"ledger": "sqlite:///:memory:"}, "ledger"),
        ({"ledger": "nonsense://x"}, "ledger"),
        ({"ledger": "://"}, "ledger"),
        ({"ledger": "x.db", "durability": "some"}, "durability"),
        ({"ledger": "x.db", "keep_checkpoints": 1}, "keep_checkpoints"),
    ],
)
def test_a_wrong_store_is_refused_when_the_block_is_built(values: dict[str, Any], field: str) -> None:
    """The error names the field. A ledger in memory would forget the chain at the end of each process."""
    with pytest.raises(ValidationError) as refused:
        StatePersistence.model_validate(values)

    assert [error["loc"] for error in refused.value.errors()] == [(field,)]
