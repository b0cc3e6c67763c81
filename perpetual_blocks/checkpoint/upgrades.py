"""Checkpoints of older versions, brought to this version's schema: one function for each step.

| schema | since | what it added |
| ---: | --- | --- |
| 1 | 0.1.0 | |
| 2 | 0.2.0 | `checkpoints`, `context_version`, and an optional `signature` |
"""

from collections.abc import Callable, Mapping
from typing import Any

from perpetual_blocks.errors import DamagedDocument

SCHEMA = 2


def to_2(document: dict[str, Any]) -> dict[str, Any]:
    """Each session wrote one checkpoint, and no agent counted the versions of its context."""
    return {**document, "schema_version": 2, "checkpoints": document.get("ordinal"), "context_version": 1}


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: to_2}
"""What makes the next schema of a document, by the schema that it has."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """The document in this version's schema.

    Raises:
        DamagedDocument: it has no schema version, or a newer one.
    """
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise DamagedDocument(f"checkpoint.schema_version: got {version!r}; expected schema 1 to {SCHEMA}")
    if version > SCHEMA:
        raise DamagedDocument(
            f"checkpoint.schema_version: got {version}; expected at most {SCHEMA}: "
            "it was written by a newer version of perpetual-blocks"
        )
    while version < SCHEMA:
        document, version = UPGRADES[version](document), version + 1
    return document
