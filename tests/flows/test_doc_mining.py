"""The mining library: what it finds, reads, says and writes, against the real standard library."""

import ast
import asyncio
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from doc_mining import (
    ExtractiveModel,
    LanguageModel,
    ModuleFacts,
    ModuleRecord,
    SourceModule,
    choose_model,
    estimate_tokens,
    modules,
    read_facts,
    read_records,
    read_source,
    standard_library,
    write_index,
    write_record,
)
from doc_mining.knowledge import _code, _escape
from doc_mining.models import count_tokens, split_sentences, tokenise
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

CORPUS = list(modules(standard_library()))
SAMPLE = CORPUS[::12]
MARKDOWN = MarkdownIt("commonmark").enable("table")


@cache
def source_of(module: SourceModule) -> str:
    return read_source(standard_library() / module.path)


@cache
def facts_of(module: SourceModule) -> ModuleFacts:
    return read_facts(module.name, source_of(module), is_package=module.path.name == "__init__.py")


@cache
def record_of(module: SourceModule) -> ModuleRecord:
    facts = facts_of(module)
    model = ExtractiveModel()
    summary = model.summarise(facts, source_of(module))
    return ModuleRecord(
        name=module.name,
        path=module.path.as_posix(),
        summary=summary.text,
        facts=facts,
        tokens=summary.input_tokens + summary.output_tokens,
        model=model.name,
    )


def tree_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def names_in(root: Path) -> list[str]:
    return [module.name for module in modules(root)]


# The corpus -----------------------------------------------------------------------------------------------


def test_the_standard_library_is_found_once_in_order_and_without_its_tests() -> None:
    names = [module.name for module in CORPUS]
    assert names == sorted(set(names))
    assert len({module.path for module in CORPUS}) == len(CORPUS) > 500
    assert {"json", "json.decoder", "asyncio.base_events", "__future__", "os"} <= set(names)
    assert not [name for name in names if {"test", "tests", "idle_test"} & set(name.split("."))]
    assert all((standard_library() / module.path).stat().st_size == module.size for module in CORPUS)


def test_only_files_with_a_dotted_name_are_modules(tmp_path: Path) -> None:
    root = tree_of(
        tmp_path,
        dict.fromkeys(
            [
                "b.py",
                "a/__init__.py",
                "a/deep/er.py",
                "config-3.11/no.py",
                "site-packages/no.py",
                "__pycache__/no.py",
                "a/tests/no.py",
                "test/no.py",
                ".hidden/no.py",
                "ensurepip/_bundled/no.py",
                "not-a-name.py",
                "notes.txt",
            ],
            "",
        ),
    )
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "gone.py").symlink_to(root / "nowhere.py")
    assert names_in(root) == ["a", "a.deep.er", "b"]


def test_a_package_hides_a_module_of_its_name_as_it_does_for_import(tmp_path: Path) -> None:
    root = tree_of(tmp_path, {"x.py": "", "x/__init__.py": "# the package\n"})
    assert [(module.name, module.path.as_posix()) for module in modules(root)] == [("x", "x/__init__.py")]


def test_a_root_that_is_a_package_starts_every_name(tmp_path: Path) -> None:
    assert names_in(tree_of(tmp_path / "shop", {"__init__.py": "", "till.py": ""})) == ["shop", "shop.till"]


def test_a_missing_root_is_an_error_and_not_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(modules(tmp_path / "nowhere"))


def test_source_is_read_in_its_own_encoding(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'café'\n".encode("latin-1"))
    assert "café" in read_source(path)


# Facts ----------------------------------------------------------------------------------------------------


def at_top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """The oracle climbs from each node to the module, where the library descends."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node, above in parents.items():
        block = above
        while isinstance(block, ast.If | ast.Try | ast.TryStar | ast.ExceptHandler):
            block = parents[block]
        if isinstance(block, ast.Module):
            yield node


@pytest.mark.parametrize("module", SAMPLE, ids=lambda module: str(module.name))
def test_facts_agree_with_an_independent_reading(module: SourceModule) -> None:
    source = source_of(module)
    facts = facts_of(module)
    tree = ast.parse(source)
    top = sorted(
        (
            node
            for node in at_top_level(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ),
        key=lambda node: node.lineno,
    )
    last = {(isinstance(node, ast.ClassDef), node.name): node for node in top if node.name[0] != "_"}

    functions = [node for node in top if node in last.values() and not isinstance(node, ast.ClassDef)]
    assert [(fact.name, fact.line) for fact in facts.functions] == [(node.name, node.lineno) for node in functions]
    for fact, node in zip(facts.functions, functions, strict=True):
        again = ast.parse(f"{'async ' if fact.is_async else ''}def {fact.name}{fact.signature}: ...").body[0]
        assert type(again) is type(node)
        assert isinstance(again, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.dump(again.args) == ast.dump(node.args)
        assert fact.doc == (ast.get_docstring(node) or "").split("\n")[0].strip()

    classes = [node for node in top if node in last.values() and isinstance(node, ast.ClassDef)]
    assert [(fact.name, fact.line) for fact in facts.classes] == [(node.name, node.lineno) for node in classes]
    for fact_, class_ in zip(facts.classes, classes, strict=True):
        assert fact_.bases == [ast.unparse(base) for base in class_.bases]
        assert len(set(fact_.methods)) == len(fact_.methods)

    imported = set()
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node_ in ast.walk(tree):
        if isinstance(node_, ast.Import):
            imported |= {alias.name for alias in node_.names}
        elif isinstance(node_, ast.ImportFrom):
            dots = "." * node_.level
            wanted = [node_.module] if node_.module else [alias.name for alias in node_.names]
            imported |= {importlib.util.resolve_name(f"{dots}{name}", package) for name in wanted}
    assert facts.dependencies == sorted(imported - {module.name})
    assert facts.docstring == inspect.cleandoc(ast.get_docstring(tree) or "")
    assert facts.lines == len(source.removesuffix("\n").split("\n")) * bool(source)


def test_every_module_of_the_library_can_be_read_and_stored() -> None:
    tokens = 0
    for module in CORPUS:
        facts = facts_of(module)
        assert ModuleFacts.model_validate_json(facts.model_dump_json()) == facts
        tokens += count_tokens(source_of(module))
    estimate = sum(estimate_tokens(module.size) for module in CORPUS)
    assert estimate == pytest.approx(tokens + 40 * len(CORPUS), rel=0.1)


@pytest.mark.parametrize("name", ["json", "heapq", "queue", "statistics", "csv", "textwrap", "shlex", "email.message"])
def test_static_exports_are_the_ones_import_shows(name: str) -> None:
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    exported = read_facts(name, source).exported
    assert exported is not None
    assert set(exported) == set(module.__all__)


SHOP = '''
"""Sells things.

Slowly."""
from . import till
from .stock.shelf import take
from .. import city
import os.path, json as js

__all__ = ["sell"]
__all__ += ("Shop",)
__all__.extend(["PRICE"])
__all__.append("refund")

PRICE: int = 3
LOW, (HIGH, mid) = 1, (2, 3)
UNBOUND: int
_HIDDEN = later = 4

def sell(thing): "An older one."

try:
    import fast
    async def refund(*things: str, why: str = "a | b") -> None:
        "Give money back."
except ImportError:
    if PRICE:
        def pack(): import box
else:
    LATE = 1

@decorator
def sell(thing, /, *, price=PRICE):
    """
    Sell one thing.

    Or two.
    """
    def inner(): ...

def _private(): ...

class Shop(Base[int], metaclass=Meta):
    "A place."
    @property
    def till(self): ...
    @till.setter
    def till(self, value): ...
    if PRICE:
        async def open(self): ...
    def _count(self): ...

class _Back: ...
'''.lstrip()


def test_facts_of_a_module_with_every_construct() -> None:
    facts = read_facts("town.shop", SHOP, is_package=True)
    assert facts.docstring == "Sells things.\n\nSlowly."
    assert [(fact.name, fact.signature, fact.is_async, fact.doc) for fact in facts.functions] == [
        ("refund", "(*things: str, why: str='a | b') -> None", True, "Give money back."),
        ("pack", "()", False, ""),
        ("sell", "(thing, /, *, price=PRICE)", False, "Sell one thing."),
    ]
    assert [(fact.name, fact.bases, fact.methods, fact.doc) for fact in facts.classes] == [
        ("Shop", ["Base[int]"], ["till", "open"], "A place.")
    ]
    assert facts.constants == ["PRICE", "LOW", "HIGH", "LATE"]
    assert facts.exported == ["sell", "Shop", "PRICE", "refund"]
    assert facts.dependencies == [
        "box",
        "fast",
        "json",
        "os.path",
        "town.city",
        "town.shop.stock.shelf",
        "town.shop.till",
    ]
    assert facts.lines == SHOP.count("\n")
    relative = set(read_facts("town.shop", SHOP).dependencies) - set(facts.dependencies)
    assert relative == {"city", "town.stock.shelf", "town.till"}


@pytest.mark.parametrize(
    "change",
    [
        "__all__ = other.__all__",
        "__all__ += [name]",
        "__all__ += other.__all__",
        "if x: __all__.append('b')",
        "for x in y: __all__ += [x]",
        "del __all__",
        "__all__.remove('a')",
    ],
)
def test_exports_that_only_running_can_tell_are_unknown(change: str) -> None:
    assert read_facts("m", f"__all__ = ['a']\n{change}\n").exported is None


def test_reading_exports_leaves_them_known() -> None:
    source = "__all__ = ['a']\nfor x in __all__: pass\ndef __dir__(): return __all__\n"
    assert read_facts("m", source).exported == ["a"]


def test_a_lone_surrogate_in_a_docstring_can_be_stored() -> None:
    facts = read_facts("m", '"""One \\ud800 half."""\n')
    assert facts.docstring == "One ? half."
    assert facts.model_dump_json()


# Models ---------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.sampled_from([" ", "\n", "\t\n "]))
def test_tokens_of_two_texts_are_the_tokens_of_each(first: str, second: str, space: str) -> None:
    assert tokenise(first + space + second) == tokenise(first) + tokenise(second)


@given(st.text())
def test_tokens_hold_every_character_but_white_space(text: str) -> None:
    tokens = tokenise(text)
    assert "".join(tokens) == "".join(text.split())
    assert all(tokenise(token) == [token] for token in tokens)
    assert count_tokens(text) == len(tokens)


def test_tokens_are_words_numbers_and_marks() -> None:
    assert tokenise("x_1 = café**2  # ====") == ["x", "_", "1", "=", "café", "**", "2", "#", "===="]


@given(st.text())
def test_sentences_hold_the_whole_text(text: str) -> None:
    assert " ".join(split_sentences(text)) == " ".join(text.split())


def test_sentences_end_where_a_reader_would_end_them() -> None:
    text = 'Reads files, e.g. PNG files (v1.2).  "Fast." Writes none!\n`x` is next. and so on.'
    assert split_sentences(text) == [
        "Reads files, e.g. PNG files (v1.2).",
        '"Fast."',
        "Writes none!",
        "`x` is next. and so on.",
    ]


def test_the_extractive_model_keeps_what_the_module_is_about() -> None:
    source = '''
# Copyright (c) 1999. All rights reserved.
"""Queues for parcels

Parcels wait in queues until a courier takes them. Every queue keeps its parcels in order.
Lunch is at noon.

    parcels.wait()

The weather was fine.
"""
'''
    summary = ExtractiveModel().summarise(read_facts("m", source), source)
    assert summary.text == "Queues for parcels. Parcels wait in queues until a courier takes them."
    assert summary.input_tokens == len(tokenise(source))
    assert summary.output_tokens == len(tokenise(summary.text))


def test_a_module_without_prose_is_described_by_its_facts() -> None:
    source = "def a(): ...\nclass B: ...\nclass C: ...\n"
    text = ExtractiveModel().summarise(read_facts("m", source), source).text
    assert text == "`m` defines 1 public function (`a`) and 2 public classes (`B`, `C`)."
    assert ExtractiveModel().summarise(read_facts("m", ""), "").text.startswith("`m` defines no public")


def test_extractive_summaries_are_short_and_the_same_every_time() -> None:
    for module in SAMPLE:
        summary = ExtractiveModel().summarise(facts_of(module), source_of(module))
        assert summary.text == record_of(module).summary
        assert 0 < summary.output_tokens < 300


@pytest.mark.parametrize("name", [None, "", "extractive"])
def test_the_extractive_model_is_the_default(name: str | None) -> None:
    assert isinstance(choose_model(name), ExtractiveModel)


def test_a_language_model_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    with pytest.raises(RuntimeError, match=r"pip install 'perpetual-blocks\[llm\]'"):
        choose_model("openai:gpt-5")


def test_a_language_model_reports_its_own_tokens_from_any_thread() -> None:
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel
    from pydantic_ai.usage import RequestUsage

    prompts: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        prompts.append(str(messages))
        return ModelResponse(parts=[TextPart(" Sells things.\n")], usage=RequestUsage(input_tokens=70, output_tokens=3))

    model = LanguageModel(FunctionModel(answer, model_name="clerk"))
    assert model.name == "function:clerk"
    facts = read_facts("shop", SHOP)
    source = SHOP + "# filler\n" * 50_000

    async def inside_a_running_loop() -> object:
        return await asyncio.to_thread(model.summarise, facts, source)

    with ThreadPoolExecutor(4) as pool:
        summaries = [
            *pool.map(lambda _: model.summarise(facts, source), range(8)),
            asyncio.run(inside_a_running_loop()),
        ]
    assert {repr(summary) for summary in summaries} == {
        "Summary(text='Sells things.', input_tokens=70, output_tokens=3)"
    }
    assert len(prompts) == 9
    assert "def sell(thing" in prompts[0]
    assert '"name":"shop"' in prompts[0]
    assert max(map(len, prompts)) < 100_000


def test_a_language_model_can_be_named() -> None:
    model = choose_model("test")  # pydantic-ai's own name for its stand-in
    summary = model.summarise(read_facts("shop", SHOP), SHOP)
    assert model.name == "test"
    assert summary.text
    assert summary.input_tokens > 0
    assert summary.output_tokens > 0


# The knowledge base ---------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writing_twice_in_any_order_leaves_the_same_bytes(tmp_path: Path) -> None:
    records = [record_of(module) for module in SAMPLE[:10]]
    for record in records:
        write_record(tmp_path, record)
    write_index(tmp_path)
    once = contents(tmp_path)
    for record in reversed(records):
        write_record(tmp_path, record)
    write_index(tmp_path)
    assert contents(tmp_path) == once
    assert len(once) == 2 * len(records) + 2


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [record_of(module) for module in SAMPLE[:5]]
    paths = [write_record(tmp_path, record) for record in records]
    assert paths[0] == (
        tmp_path / "modules" / f"{records[0].name}.json",
        tmp_path / "modules" / f"{records[0].name}.md",
    )
    assert read_records(tmp_path) == records
    assert read_records(tmp_path / "nowhere") == []


def test_the_index_lists_every_module_once_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    for module in SAMPLE:
        write_record(tmp_path, record_of(module))
    index = write_index(tmp_path)
    tokens = [token for block in MARKDOWN.parse(index.read_text("utf-8")) for token in block.children or ()]
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    pages = [link for link in links if not link.startswith("#")]
    assert sorted(pages) == sorted(f"modules/{module.name}.md" for module in SAMPLE)
    assert all((tmp_path / page).is_file() for page in pages)
    titles = {line.removeprefix("## ").strip("`") for line in index.read_text("utf-8").split("\n") if line[:3] == "## "}
    assert titles == {"Modules"} | {link[1:] for link in links if link.startswith("#")}

    entries = json.loads((tmp_path / "index.json").read_text("utf-8"))
    assert [entry["name"] for entry in entries] == [module.name for module in SAMPLE]
    assert all((tmp_path / entry[key]).is_file() for entry in entries for key in ("record", "page"))


def test_an_empty_knowledge_base_has_an_index(tmp_path: Path) -> None:
    assert "0 modules" in write_index(tmp_path).read_text("utf-8")
    assert json.loads((tmp_path / "index.json").read_text("utf-8")) == []


def test_a_page_says_what_the_module_offers(tmp_path: Path) -> None:
    facts = read_facts("town.shop", SHOP, is_package=True)
    record = ModuleRecord(
        name="town.shop",
        path="town/shop/__init__.py",
        summary="Sells `a|b` | *x*. And more.",
        facts=facts,
        tokens=1234,
        model="extractive",
    )
    page = write_record(tmp_path, record)[1].read_text("utf-8")
    for expected in (
        "# `town.shop`\n",
        "Sells `a|b` | \\*x\\*. And more.",
        "1,234 tokens",
        f"- `async refund(*things: str, why: str='a | b') -> None`, line {facts.functions[0].line}: Give money back.",
        f"- `Shop(Base[int])`, line {facts.classes[0].line}: A place.\n  - `till`, `open`",
        "`town.shop.till`",
    ):
        assert expected in page
    row = [line for line in write_index(tmp_path).read_text("utf-8").split("\n") if "town.shop.md" in line]
    assert row == [f"| [`town.shop`](modules/town.shop.md) | Sells `a\\|b` \\| \\*x\\*. | 3 | 1 | {facts.lines} |"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(SAMPLE[0])
    write_record(tmp_path, record)
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_record(tmp_path, record.model_copy(update={"summary": "New."}))
    assert contents(tmp_path) == before


def rendered(markdown: str) -> str:
    inline = MARKDOWN.parseInline(markdown)[0].children or []
    assert {token.type for token in inline} <= {"text", "code_inline", "text_special"}
    return "".join(token.content for token in inline)


PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"], exclude_characters="&`"), min_size=1
)


@given(st.lists(PLAIN, min_size=1).map(" ".join))
def test_escaped_prose_is_rendered_as_it_is_written(text: str) -> None:
    assert rendered(_escape(text)) == text


@given(st.text(st.sampled_from("ab`|*_"), min_size=1))
def test_any_code_fits_in_a_code_span(text: str) -> None:
    assert rendered(_code(text)) == text
