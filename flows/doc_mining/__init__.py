"""Mine a tree of Python source into a knowledge base: find, read, summarise and write down its modules."""

from doc_mining.corpus import SourceModule, modules, read_source, standard_library
from doc_mining.facts import ClassFact, FunctionFact, ModuleFacts, read_facts
from doc_mining.knowledge import ModuleRecord, read_records, write_index, write_record
from doc_mining.models import (
    ExtractiveModel,
    LanguageModel,
    Summary,
    SummaryModel,
    choose_model,
    estimate_tokens,
)

__all__ = [
    "ClassFact",
    "ExtractiveModel",
    "FunctionFact",
    "LanguageModel",
    "ModuleFacts",
    "ModuleRecord",
    "SourceModule",
    "Summary",
    "SummaryModel",
    "choose_model",
    "estimate_tokens",
    "modules",
    "read_facts",
    "read_records",
    "read_source",
    "standard_library",
    "write_index",
    "write_record",
]
