"""Keep what was mined as a folder of JSON records and Markdown pages, with an index of both.

Everything written here follows from the records alone, so writing any of it again gives the same bytes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from doc_mining.facts import ClassFact, FunctionFact, ModuleFacts
from doc_mining.models import counted, split_sentences
from perpetual_blocks import write_whole


class ModuleRecord(BaseModel):
    """What the knowledge base keeps of one module; `path` is relative to the corpus, with forward slashes."""

    name: str
    path: str
    summary: str
    facts: ModuleFacts
    tokens: int
    model: str


def write_record(folder: Path, record: ModuleRecord) -> tuple[Path, Path]:
    """Write a module's record and its page, and return their paths in that order."""
    data, page = (folder / "modules" / f"{record.name}.{suffix}" for suffix in ("json", "md"))
    # The index is made from the records, so the page comes first: what is indexed has its page.
    write_whole(page, _page(record))
    write_whole(data, record.model_dump_json(indent=2) + "\n")
    return data, page


def read_records(folder: Path) -> list[ModuleRecord]:
    """Every record of the knowledge base, sorted by name."""
    texts = [path.read_text(encoding="utf-8") for path in (folder / "modules").glob("*.json")]
    return sorted(map(ModuleRecord.model_validate_json, texts), key=lambda record: record.name)


def write_index(folder: Path) -> Path:
    """Write `index.json` and `index.md` from the records that are there; return the path of the second."""
    records = read_records(folder)
    data, page = folder / "index.json", folder / "index.md"
    write_whole(data, json.dumps([_entry(record) for record in records], indent=2, ensure_ascii=False) + "\n")
    write_whole(page, "\n\n".join(_index(records)) + "\n")
    return page


# The page of a module -------------------------------------------------------------------------------------


def _page(record: ModuleRecord) -> str:
    facts = record.facts
    sections = {
        "Functions": "\n".join(map(_function, facts.functions)),
        "Classes": "\n".join(map(_class, facts.classes)),
        "Constants": _codes(facts.constants),
        "Exported names": _codes(facts.exported or []),
        "Imported modules": _codes(facts.dependencies),
    }
    source = f"{_code(record.path)}, {counted(facts.lines, 'line')}"
    author = f"summary by the {_code(record.model)} model with {counted(record.tokens, 'token')}"
    blocks = [f"# {_code(record.name)}", _escape(record.summary), f"Source: {source}; {author}."]
    blocks += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(blocks) + "\n"


def _function(fact: FunctionFact) -> str:
    call = f"{'async ' if fact.is_async else ''}{fact.name}{fact.signature}"
    return f"- {_code(call)}, line {fact.line}{_described(fact.doc)}"


def _class(fact: ClassFact) -> str:
    bases = f"({', '.join(fact.bases)})" if fact.bases else ""
    methods = f"\n  - {_codes(fact.methods)}" if fact.methods else ""
    return f"- {_code(fact.name + bases)}, line {fact.line}{_described(fact.doc)}{methods}"


def _described(doc: str) -> str:
    return f": {_escape(doc)}" if doc else ""


# The index ------------------------------------------------------------------------------------------------


def _entry(record: ModuleRecord) -> dict[str, str | int]:
    return {
        "name": record.name,
        "path": record.path,
        "summary": _headline(record),
        "functions": len(record.facts.functions),
        "classes": len(record.facts.classes),
        "lines": record.facts.lines,
        "tokens": record.tokens,
        "model": record.model,
        "record": f"modules/{record.name}.json",
        "page": f"modules/{record.name}.md",
    }


def _index(records: list[ModuleRecord]) -> Iterator[str]:
    """The blocks of the index: totals, the modules that stand alone, then a section for every package."""
    yield "# Knowledge base"
    yield _totals(records)
    packages = {record.name.partition(".")[0] for record in records if "." in record.name}
    groups: dict[str, list[ModuleRecord]] = {}
    for record in sorted(records, key=lambda record: _private_last(record.name)):
        top = record.name.partition(".")[0]
        groups.setdefault(top if top in packages else "", []).append(record)
    alone = groups.pop("", [])
    if groups:
        links = [f"[{_code(name)}](#{name.lower()}) ({len(group)})" for name, group in groups.items()]
        yield f"Packages: {', '.join(links)}."
    if alone:
        yield f"## Modules\n\n{_table(alone)}"
    for name, group in groups.items():
        yield f"## {_code(name)}\n\n{_table(group)}"


def _private_last(name: str) -> tuple[bool, str]:
    return name.startswith("_"), name


def _totals(records: list[ModuleRecord]) -> str:
    facts = [record.facts for record in records]
    models = _codes(sorted({record.model for record in records})) or "no model"
    return (
        f"{counted(len(records), 'module')} with {counted(sum(fact.lines for fact in facts), 'line')}, "
        f"{counted(sum(len(fact.functions) for fact in facts), 'public function')} and "
        f"{counted(sum(len(fact.classes) for fact in facts), 'public class')}; "
        f"summarised by {models} with {counted(sum(record.tokens for record in records), 'token')}."
    )


def _table(records: list[ModuleRecord]) -> str:
    rows = [
        "| Module | Summary | Functions | Classes | Lines |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for record in records:
        link = f"[{_code(record.name)}](modules/{record.name}.md)"
        # A pipe ends a cell even inside a code span.
        summary = _escape(_headline(record)).replace("|", "\\|")
        facts = record.facts
        rows.append(f"| {link} | {summary} | {len(facts.functions)} | {len(facts.classes)} | {facts.lines:,} |")
    return "\n".join(rows)


def _headline(record: ModuleRecord) -> str:
    return next(iter(split_sentences(record.summary)), "")


# Markdown -------------------------------------------------------------------------------------------------

_CODE_SPAN_OR_MARKUP = re.compile(r"``[^`\n]+``|`[^`\s]+`|[\\`*_<[]")


def _escape(text: str) -> str:
    """Prose whose characters mean themselves, except that code in backticks stays code."""
    return _CODE_SPAN_OR_MARKUP.sub(lambda match: match[0] if len(match[0]) > 1 else f"\\{match[0]}", text)


def _code(text: str) -> str:
    """A code span around any text: its fence is longer than every run of backticks inside."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _codes(names: list[str]) -> str:
    return ", ".join(map(_code, names))
