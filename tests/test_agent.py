"""An agent as a flow: its parameters, its form, and the name under which a deployment finds it."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, ClassVar, Literal

import pytest
from prefect.blocks.system import Secret as SecretBlock
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from pydantic import BaseModel, Field, Secret, SecretBytes, SecretStr, create_model
from support import one_line

from perpetual_blocks import Budget, PerpetualAgent, Unit, define_resource
from perpetual_blocks.blocks import ResourceBudget, StatePersistence
from perpetual_blocks.errors import InvalidInput
from perpetual_blocks.flow import PerpetualFlow

OWN = ("chain", "budget", "store")


class Sources(BaseModel):
    """Where to read."""

    folder: Path = Path("docs")
    depth: int = 3


class PaperReader(PerpetualAgent):
    """Read papers.

    One unit is one page.
    """

    pages: int = Field(ge=1, le=900, description="How many pages\n    to read.")
    language: Annotated[str, Field(min_length=2, pattern="^[a-z]+$")] = "en"
    order: Literal["new", "old"] = "new"
    names: list[str] = Field(default_factory=lambda: ["one"], description="Whose papers.")
    sources: Sources = Sources()
    title: str | None = None

    def work_unit(self, unit: Unit) -> str:
        return unit.id


read_papers = PaperReader.as_flow()
read_slowly = PaperReader.as_flow(name="slowly", budget=Budget(tokens=5))


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for modules that a test writes and imports; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_module(folder: Path, name: str, source: str) -> Path:
    """Writes a module."""
    file = folder / f"{name}.py"
    file.write_text(dedent(source))
    return file


def load(entrypoint: str) -> PerpetualFlow:
    """The flow as a worker loads it."""
    flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    assert isinstance(flow, PerpetualFlow)
    return flow


# Parameters ---------------------------------------------------------------------------------------------------------


def test_the_flows_parameters_are_the_agents_fields_and_three_more() -> None:
    """In the order in which the agent names them, so that the form reads as the class does."""
    properties = read_papers.parameters.properties

    assert tuple(properties) == (*PaperReader.model_fields, *OWN)
    assert [field["position"] for field in properties.values()] == list(range(len(properties)))
    assert read_papers.parameters.required == ["pages"], "a field without a default must be filled in"


def test_defaults_reach_the_form() -> None:
    """Also those that a factory makes, and those of nested models; the flow's own parameters are empty."""
    properties = read_papers.parameters.properties

    assert {name: properties[name].get("default") for name in (*PaperReader.model_fields, *OWN)} == {
        "pages": None,
        "language": "en",
        "order": "new",
        "names": ["one"],
        "sources": {"folder": "docs", "depth": 3},
        "title": None,
        **dict.fromkeys(OWN),
    }


def test_constraints_and_descriptions_reach_the_form() -> None:
    """What pydantic checks, the form checks too; the description of a field is one line."""
    properties = read_papers.parameters.properties

    assert {"minimum": 1, "maximum": 900, "description": "How many pages to read."}.items() <= properties[
        "pages"
    ].items()
    assert {"minLength": 2, "pattern": "^[a-z]+$"}.items() <= properties["language"].items()
    assert properties["order"]["enum"] == ["new", "old"]
    assert properties["names"]["description"] == "Whose papers."
    assert all(properties[name]["description"] for name in OWN)


def test_blocks_are_chosen_and_not_typed() -> None:
    """The schema of `budget` and `store` refers to the blocks' types, of which the form makes pickers."""
    schema = read_papers.parameters

    for name, slug in (("budget", "resource-budget"), ("store", "state-persistence")):
        reference, nothing = schema.properties[name]["anyOf"]
        assert schema.definitions[reference["$ref"].rpartition("/")[2]]["block_type_slug"] == slug
        assert nothing == {"type": "null"}


def test_parameters_are_checked_and_cast() -> None:
    """What a form sends as text arrives as the field's type; what does not fit is refused."""
    cast = read_papers.validate_parameters({**_defaults(), "pages": "7", "sources": {"folder": "x"}})

    assert cast["pages"] == 7
    assert cast["sources"] == Sources(folder=Path("x"))
    for wrong in ({"pages": 0}, {"language": "EN"}, {"order": "any"}):
        with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
            read_papers.validate_parameters({**_defaults(), **wrong})


def test_blocks_can_be_given_as_objects() -> None:
    """From a program, `budget` and `store` are the blocks themselves; one is not taken for the other."""
    budget, store = ResourceBudget(limits=[]), StatePersistence(ledger="x.db")

    cast = read_papers.validate_parameters({**_defaults(), "budget": budget, "store": store})

    assert (cast["budget"], cast["store"]) == (budget, store)
    with pytest.raises(ParameterTypeError):
        read_papers.validate_parameters({**_defaults(), "budget": store})


def _defaults() -> dict[str, Any]:
    return {
        "pages": 1,
        "language": "en",
        "order": "new",
        "names": [],
        "sources": {},
        "title": None,
        **dict.fromkeys(OWN),
    }


# What the flow says of itself ---------------------------------------------------------------------------------------


def test_the_flow_is_named_and_described_after_its_agent() -> None:
    """The name is the class's in kebab case unless another is given, the description the class's docstring."""
    assert (read_papers.name, read_slowly.name) == ("paper-reader", "slowly")
    assert read_papers.description == "Read papers.\n\nOne unit is one page."
    assert read_papers.agent is PaperReader


@pytest.mark.parametrize("field", OWN)
def test_a_field_that_the_flow_needs_for_itself_is_refused(field: str) -> None:
    """The error names the class and the field."""
    agent = create_model("Clashing", __base__=PerpetualAgent, **{field: (str, "")})  # type: ignore[call-overload]

    with pytest.raises(InvalidInput) as refused:
        agent.as_flow()

    one_line(refused.value, f"Clashing.{field}", "chain, budget, store")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"budget": 200_000}, "budget"),
        ({"budget": {"tokens": 5}}, "budget"),
        ({"budget": StatePersistence(ledger="x.db")}, "budget"),
        ({"store": Path("x.db")}, "store"),
        ({"store": ResourceBudget(limits=[])}, "store"),
    ],
)
def test_a_wrong_budget_or_store_is_refused_when_the_flow_is_made(options: dict[str, Any], field: str) -> None:
    """Not only when it runs."""
    with pytest.raises(InvalidInput) as refused:
        PaperReader.as_flow(**options)

    one_line(refused.value, f"as_flow({field})", "expected")


@pytest.mark.parametrize(
    "options",
    [
        {"budget": Budget(tokens=5)},
        {"budget": ResourceBudget(limits=[]), "store": StatePersistence(ledger="x.db")},
        {"budget": "small", "store": "production"},
    ],
)
def test_a_budget_and_a_store_may_be_an_object_a_block_or_a_blocks_name(options: dict[str, Any]) -> None:
    """They are the flow's own, for runs that name none."""
    flow = PaperReader.as_flow(**options)

    assert (flow.budget, flow.store) == (options["budget"], options.get("store"))


class Level:
    """A meter that always says the same."""

    def level(self) -> float:
        return 3.0

    def capacity(self) -> float | None:
        return None


class Rendering(PaperReader):
    """Has a meter of its own."""

    meters: ClassVar[dict[str, Any]] = {"gpu_memory": Level()}


@pytest.mark.parametrize("name", ["tokens", "gpu_time"])
def test_a_meter_must_be_of_a_gauge(name: str) -> None:
    """What nobody has defined, or what adds up, cannot be metered."""

    class Wrong(PaperReader):
        meters: ClassVar[dict[str, Any]] = {name: Level()}

    with pytest.raises(InvalidInput) as refused:
        Wrong.as_flow()

    one_line(refused.value, "Wrong.meters", repr(name), "memory, cpu_seconds")


@pytest.mark.parametrize("meter", [Level, None, 3.0])
def test_a_meter_must_be_one(meter: Any) -> None:
    """A class is not a meter yet."""

    class Wrong(PaperReader):
        meters: ClassVar[dict[str, Any]] = {"memory": meter}

    with pytest.raises(InvalidInput) as refused:
        Wrong.as_flow()

    one_line(refused.value, "Wrong.meters['memory']", "level() and capacity()")


def test_a_budget_of_a_gauge_needs_its_meter() -> None:
    """It is found out when the flow is made."""
    define_resource("gpu_memory", "gauge", "bytes")
    budget = Budget(gpu_memory="2GiB", memory="1GiB", cpu_seconds=10)

    assert Rendering.as_flow(budget=budget).budget == budget
    with pytest.raises(InvalidInput) as refused:
        PaperReader.as_flow(budget=budget)

    one_line(refused.value, "Budget.gpu_memory", "a meter for it")


# Deployments --------------------------------------------------------------------------------------------------------


def test_a_deployments_entrypoint_names_the_modules_variable() -> None:
    """And not the function, which is made elsewhere; of two flows of one agent each has its own."""
    entrypoints = [flow.to_deployment("d").entrypoint for flow in (read_papers, read_slowly)]

    assert [str(entrypoint).rpartition("test_agent.py")[2] for entrypoint in entrypoints] == [
        ":read_papers",
        ":read_slowly",
    ]


def test_the_entrypoint_is_the_same_within_an_event_loop() -> None:
    """`serve` and `deploy` ask for it there."""

    async def entrypoint() -> str:
        return str((await read_slowly.ato_deployment("d")).entrypoint)

    assert asyncio.run(entrypoint()).endswith("test_agent.py:read_slowly")


def test_a_flow_in_no_variable_cannot_be_deployed() -> None:
    """No new process could import it; the error says what to do."""
    with pytest.raises(InvalidInput) as refused:
        PaperReader.as_flow(name="nowhere").to_deployment("d")

    one_line(refused.value, "as_flow", "nowhere", "variable of test_agent")


def test_the_entrypoint_loads_the_flow_it_names(module_folder: Path) -> None:
    """What a worker loads from a deployment's entrypoint is that flow, with its own budget."""
    write_module(
        module_folder,
        "reading_agents",
        """
        from perpetual_blocks import Budget, PerpetualAgent

        class Reader(PerpetualAgent):
            pages: int = 3

        few = Reader.as_flow(budget=Budget(calls=1))
        many = Reader.as_flow(name="many", budget=Budget(calls=2))
        """,
    )

    for name, calls in (("few", 1), ("many", 2)):
        entrypoint = str(load(f"reading_agents.py:{name}").to_deployment("d").entrypoint)

        assert entrypoint == f"reading_agents.py:{name}"
        assert load(entrypoint).budget == Budget(calls=calls)


def test_an_agent_of_another_module_can_be_deployed(module_folder: Path) -> None:
    """The flow is in the module that called `as_flow`, wherever the agent's class is."""
    write_module(
        module_folder,
        "library_agents",
        """
        from perpetual_blocks import PerpetualAgent

        class Borrowed(PerpetualAgent):
            pages: int = 3
        """,
    )
    write_module(
        module_folder,
        "borrowing",
        """
        from library_agents import Borrowed

        borrowed = Borrowed.as_flow()
        """,
    )

    entrypoint = str(load("borrowing.py:borrowed").to_deployment("d").entrypoint)

    assert entrypoint == "borrowing.py:borrowed"
    assert load(entrypoint).agent.__name__ == "Borrowed"


def test_annotations_may_be_text(module_folder: Path) -> None:
    """`from __future__ import annotations` makes text of all annotations; the flow knows the types all the same."""
    write_module(
        module_folder,
        "modern_agents",
        """
        from __future__ import annotations

        from pathlib import Path
        from typing import Literal

        from pydantic import BaseModel, Field

        from perpetual_blocks import PerpetualAgent

        class Options(BaseModel):
            deep: bool = False

        class Modern(PerpetualAgent):
            folder: Path = Path("docs")
            pages: int = Field(default=3, ge=1, description="How many.")
            order: Literal["new", "old"] = "new"
            options: Options = Options()

        modern = Modern.as_flow()
        """,
    )

    flow = load("modern_agents.py:modern")
    given = {"folder": "x", "pages": "7", "order": "old", "options": {"deep": "true"}, **dict.fromkeys(OWN)}
    cast = flow.validate_parameters(given)

    assert (cast["folder"], cast["pages"], cast["options"].deep) == (Path("x"), 7, True)
    assert flow.parameters.properties["pages"]["minimum"] == 1
    with pytest.raises(ParameterTypeError, match="order"):
        flow.validate_parameters({**given, "order": "any"})


class LongWinded(PerpetualAgent):
    """Read papers, and write
    down what they say.

    One unit is
    one page:
    - a page that is
      long is read twice
    - another one
    1. is not

    # Notes
    Such as
    these.

        code
        code

    ```
    more
    code

    fenced
    ```
    **Bold** words
    begin no list.
    | a | b |
    | - | - |
    """


def test_a_task_has_one_line_for_each_paragraph() -> None:
    """Line breaks within a paragraph, which split sentences where they are shown, are gone; lists and code are kept."""
    assert LongWinded.task().splitlines() == [
        "Read papers, and write down what they say.",
        "",
        "One unit is one page:",
        "- a page that is long is read twice",
        "- another one",
        "1. is not",
        "",
        "# Notes",
        "Such as these.",
        "",
        "    code",
        "    code",
        "",
        "```",
        "more",
        "code",
        "",
        "fenced",
        "```",
        "**Bold** words begin no list.",
        "| a | b |",
        "| - | - |",
    ]
    assert PaperReader.task() == "Read papers.\n\nOne unit is one page."


def test_what_a_unit_is_cut_off_in() -> None:
    """An async unit, and an isolated one, are cut off when their time is up; what else a unit asks for first, its agent
    names."""

    class Asks(PerpetualAgent):
        cancellable = ("calls",)

        def work_unit(self, unit: Unit) -> None: ...

    class Waits(Asks):
        async def work_unit(self, unit: Unit) -> None: ...

    class Alone(Asks):
        isolated = True

    both = {"calls", "seconds"}
    assert [agent.cut_off_in() for agent in (Asks, Waits, Alone)] == [{"calls"}, both, both]


# Secrets --------------------------------------------------------------------------------------------------------------


class Credentials(BaseModel):
    """A model with a secret in it."""

    user: str
    password: SecretStr


@pytest.mark.parametrize(
    "annotation",
    [
        SecretStr,
        SecretBytes,
        SecretStr | None,
        dict[str, list[SecretStr]],
        Credentials,
        Credentials | None,
        Secret[int],
    ],
)
def test_a_secret_field_is_refused(annotation: Any) -> None:
    """As a parameter it would be seen by everybody who sees the run; the error says what to use instead."""
    agent = create_model("Reader", __base__=PerpetualAgent, api_key=(annotation, ...))

    with pytest.raises(InvalidInput) as refused:
        agent.as_flow()

    one_line(refused.value, "Reader.api_key: got ", "expected a block", "`api_key: Secret` of prefect.blocks.system")


@pytest.mark.parametrize("annotation", [SecretBlock, SecretBlock | None])
def test_a_secret_block_is_chosen_in_the_form(annotation: Any) -> None:
    """Its parameter refers to the block's type, of which the form makes a picker."""
    agent = create_model("Reader", __base__=PerpetualAgent, api_key=(annotation, ...))

    schema = agent.as_flow().parameters

    assert "#/definitions/Secret" in str(schema.properties["api_key"])
    assert any(block.get("block_type_slug") == "secret" for block in schema.definitions.values())
