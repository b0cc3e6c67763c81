"""Mines a corpus of Python source into a knowledge base: one Markdown page and one JSON record for each module.

python flows/doc_miner.py            # serves the deployment `mine-docs/doc-miner` from this process
"""

from collections.abc import Iterable
from pathlib import Path

from doc_mining import (
    ModuleRecord,
    choose_model,
    estimate_tokens,
    modules,
    read_facts,
    read_source,
    standard_library,
    write_index,
    write_record,
)
from pydantic import Field

from perpetual_blocks import Budget, PerpetualAgent, Unit, WorkItem


class DocMiner(PerpetualAgent):
    """Read every module of a corpus of Python source, and write down what it is for, what it offers and what it needs.

    Each module becomes a page of the knowledge base. A unit is one module; its tokens are those of the source that was
    read and of the summary that was written.
    """

    corpus: str = Field(
        default="", description="The folder with the source; empty for this machine's standard library."
    )
    knowledge: Path = Field(default=Path("knowledge"), description="The folder that the knowledge base is written to.")
    model: str = Field(
        default="extractive",
        description="extractive for the local summariser, or a pydantic-ai model's name, as openai:gpt-4o-mini.",
    )
    commit: bool = Field(default=False, description="Commit the knowledge base to its git repository at each wrap.")

    def plan(self) -> Iterable[WorkItem]:
        for module in modules(self._root()):
            yield WorkItem(
                id=module.name,
                payload={"path": module.path.as_posix()},
                estimate={"tokens": estimate_tokens(module.size)},
            )

    def work_unit(self, unit: Unit) -> dict[str, object]:
        path = Path(unit.payload["path"])
        source = read_source(self._root() / path)
        facts = read_facts(unit.id, source, is_package=path.name == "__init__.py")
        model = choose_model(self.model)
        summary = model.summarise(facts, source)
        unit.spend(tokens=summary.input_tokens + summary.output_tokens, calls=1)
        record = ModuleRecord(
            name=unit.id,
            path=path.as_posix(),
            summary=summary.text,
            facts=facts,
            tokens=summary.input_tokens + summary.output_tokens,
            model=model.name,
        )
        _, page = write_record(self.knowledge, record)  # whole files under the same name: safe to do twice
        return {"page": page.as_posix(), "functions": len(facts.functions), "classes": len(facts.classes)}

    def finish_unit(self) -> None:
        write_index(self.knowledge)

    def commit_changes(self) -> Iterable[Path]:
        return [self.knowledge] if self.commit else []

    def _root(self) -> Path:
        return Path(self.corpus) if self.corpus else standard_library()


mine_docs = DocMiner.as_flow(
    name="mine-docs",
    budget=Budget(tokens=800_000),
)

if __name__ == "__main__":
    mine_docs.serve(name="doc-miner", description=DocMiner.task())
