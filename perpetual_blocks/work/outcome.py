"""What a unit comes back with: the document that Prefect persists and the ledger then applies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perpetual_blocks.budget import Quota
from perpetual_blocks.checkpoint.codec import canonical, digest, to_json
from perpetual_blocks.errors import DamagedDocument, InvalidInput
from perpetual_blocks.work.context import ContextChange
from perpetual_blocks.work.item import WorkItem

SCHEMA = 3
"""Outcomes of schema 1 have no digest, those of schema 2 the whole new context; they are still read."""

BATCH_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished unit.

    Attributes:
        done: Whether the item is completed by it; if not, the unit advanced the item.
        result: What the agent returned, JSON; None for a unit that advanced.
        usage: What the unit spent, with the `seconds` that it took.
        context: What the unit changed of the agent's context; None where it left it as it was.
        added: Items that the unit added to the queue.
        quotas: What the provider said of its quota windows, by the limit's name: remaining when the unit began (or
            None), the reset, and when it said so, in seconds since the Unix epoch.
    """

    done: bool
    result: Any = None
    cursor: Any = None
    progress: tuple[float, float] | None = None
    next_action: str | None = None
    usage: dict[str, float] = field(default_factory=dict)
    context: ContextChange | None = None
    added: tuple[WorkItem, ...] = ()
    quotas: dict[str, Quota] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """The outcome as a JSON object, with a digest of its own: no row holds one until the outcome is applied."""
        document = self.to_json()
        return {**document, "digest": _digest(document)}

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object, without a digest."""
        return {
            "schema": SCHEMA,
            "done": self.done,
            "result": self.result,
            "cursor": self.cursor,
            "progress": list(self.progress) if self.progress else None,
            "next_action": self.next_action,
            "usage": self.usage,
            "context": self.context.to_json() if self.context else None,
            "quotas": {name: list(quota) for name, quota in self.quotas.items()},
            "added": [
                {
                    "id": item.id,
                    "kind": item.kind,
                    "payload": item.payload,
                    "priority": item.priority,
                    "depends_on": list(item.depends_on),
                    "estimate": dict(item.estimate),
                    "bound": dict(item.bound),
                    "complexity": item.complexity,
                    "max_attempts": item.max_attempts,
                }
                for item in self.added
            ],
        }

    @classmethod
    def from_document(cls, document: Any) -> "Outcome":
        """Reads what `to_document` wrote.

        Raises:
            DamagedDocument: it is not an outcome of a schema that this version knows, or its digest is another.
        """
        schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise DamagedDocument(f"outcome.schema: got {schema!r}; expected 1 to {SCHEMA}")
        if schema > 1:
            document = dict(document)
            _check_digest(document.pop("digest", None), document)
        return cls._from_json(document)

    @classmethod
    def _from_json(cls, document: dict[str, Any]) -> "Outcome":
        try:
            checked = _Document.model_validate(document)
            context = _context(checked.schema_, checked.context)
            added = tuple(WorkItem(**{**item, "depends_on": tuple(item["depends_on"])}) for item in checked.added)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(("outcome", *map(str, first["loc"])))
            raise DamagedDocument(f"{where}: {first['msg']}; expected schema {SCHEMA}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedDocument(f"outcome: {type(error).__name__}: {error}; expected schema {SCHEMA}") from error
        return cls(
            done=checked.done,
            result=checked.result,
            cursor=checked.cursor,
            progress=(checked.progress[0], checked.progress[1]) if checked.progress else None,
            next_action=checked.next_action,
            usage=checked.usage,
            context=context,
            added=added,
            quotas={name: Quota(*quota) for name, quota in checked.quotas.items()},
        )


@dataclass(frozen=True, slots=True)
class BatchedOutcome:
    """A finished unit of a batch.

    Attributes:
        item: The item's id.
        unit: The unit's number.
        failures: How many attempts of the item had failed before.
    """

    item: str
    unit: int
    failures: int
    outcome: Outcome


def batch_to_document(batch: Sequence[BatchedOutcome]) -> dict[str, Any]:
    """The outcomes of a batch as one JSON object, with one digest."""
    units = [
        {"item": one.item, "unit": one.unit, "failures": one.failures, "outcome": one.outcome.to_json()}
        for one in batch
    ]
    document = {"batch": BATCH_SCHEMA, "units": units}
    return {**document, "digest": digest(canonical(document))}


def batch_from_document(document: Any) -> list[BatchedOutcome]:
    """Reads what `batch_to_document` wrote.

    Raises:
        DamagedDocument: it is not a batch of a schema that this version knows, or its digest is another.
    """
    schema = document.get("batch") if isinstance(document, dict) else type(document).__name__
    if schema != BATCH_SCHEMA:
        raise DamagedDocument(f"batch.batch: got {schema!r}; expected {BATCH_SCHEMA}")
    document = dict(document)
    _check_digest(document.pop("digest", None), document)
    try:
        return [
            BatchedOutcome(str(one["item"]), int(one["unit"]), int(one["failures"]), Outcome._from_json(one["outcome"]))
            for one in document["units"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDocument(f"batch.units: {error}; expected schema {BATCH_SCHEMA}") from error


def _context(schema: int, context: dict[str, Any] | None) -> ContextChange | None:
    if context is None:
        return None
    if schema < 3:
        return ContextChange(after=context, whole=True)
    return ContextChange(dict(context["before"]), dict(context["after"]))


def _digest(document: dict[str, Any]) -> str:
    return digest(to_json(document, "outcome"))


def _check_digest(expected: object, document: dict[str, Any]) -> None:
    try:
        got = _digest(document)
    except InvalidInput as error:
        raise DamagedDocument(str(error)) from error
    if got != expected:
        raise DamagedDocument(f"outcome.digest: got {expected!r}; expected {got[:12]}…, which is its own")


class _Document(BaseModel):
    """The document's fields, each of exactly its type."""

    model_config = ConfigDict(strict=True, extra="forbid")

    schema_: int = Field(alias="schema")
    done: bool
    result: Any
    cursor: Any
    progress: list[float] | None = Field(min_length=2, max_length=2)
    next_action: str | None
    usage: dict[str, float]
    context: dict[str, Any] | None
    added: list[dict[str, Any]]
    # As a tuple, which JSON does not have, it tells a reset, which must be there, from what is left until then.
    quotas: dict[str, Annotated[tuple[float | None, float, float], Field(strict=False)]] = Field(default_factory=dict)
