"""Outcomes as Prefect persists them: a record, which is JSON, with the outcome in it as text.

They are read here and not by Prefect: a record names the code that makes a value of it, down to pickle, and what a
damaged or forged one names must not run.
"""

from collections import OrderedDict
from typing import Any

from pydantic_core import from_json

from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.errors import DamagedDocument
from perpetual_blocks.work import Item, Outcome
from perpetual_blocks.work.outcome import BatchedOutcome, batch_from_document

_BATCHES_KEPT = 4  # the outcomes of a batch are asked for one after the other


def read_record(record: str) -> Any:
    """The document in a record.

    Raises:
        DamagedDocument: it is no record.
    """
    try:
        return from_json(from_json(record)["result"], allow_inf_nan=False)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDocument(
            f"outcome: got {type(error).__name__}: {error}; expected a record of JSON in JSON"
        ) from error


class StoredOutcomes:
    """Outcomes in a results storage, each in a record of Prefect's, or with others of its batch in one."""

    def __init__(self, documents: StoredDocuments) -> None:
        self._documents = documents
        self._batches: OrderedDict[str, list[BatchedOutcome]] = OrderedDict()

    def read(self, key: str) -> Outcome:
        """Reads the outcome of a unit.

        Args:
            key: A result's key, as `Finished` says.

        Raises:
            DamagedDocument: what lies there is no outcome that this version knows.
            StorageError: it is not there, or cannot be read.
        """
        document, _, place = key.partition("#")
        try:
            if not place:
                return Outcome.from_document(self.read_document(document))
            return self._batch(document)[int(place)].outcome
        except (DamagedDocument, IndexError, ValueError) as error:
            raise DamagedDocument(f"{key}: {error}") from error

    def find(self, key: str, item: Item) -> tuple[Outcome, str] | None:
        """The outcome of an item's next unit in a document, and its result's key; None if it has none.

        Raises:
            DamagedDocument: the document is none that this version knows.
            StorageError: it is not there, or cannot be read.
        """
        document = None if key in self._batches else self.read_document(key)
        if isinstance(document, dict) and "batch" not in document:
            return Outcome.from_document(document), key
        unit = (item.id, item.units + 1, item.failures)
        for place, one in enumerate(self._batch(key, document)):
            if (one.item, one.unit, one.failures) == unit:
                return one.outcome, f"{key}#{place}"
        return None

    def read_document(self, key: str) -> Any:
        """The document in the record that lies there; errors as of `read`."""
        return read_record(self._documents.read(key))

    def _batch(self, key: str, document: Any = None) -> list[BatchedOutcome]:
        if key not in self._batches:
            self._batches[key] = batch_from_document(self.read_document(key) if document is None else document)
            if len(self._batches) > _BATCHES_KEPT:
                self._batches.popitem(last=False)
        return self._batches[key]
