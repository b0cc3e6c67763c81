"""Outcomes as Prefect persists them: a record, which is JSON, with the outcome in it as text.

They are read here and not by Prefect: a record names the code that makes a value of it, down to pickle, and what a
damaged or forged one names must not run.
"""

import json
from typing import Any

from perpetual_blocks.adapters.result_storage import StoredDocuments
from perpetual_blocks.errors import DamagedDocument
from perpetual_blocks.work import Outcome


def read_outcome(record: str) -> Outcome:
    """The outcome in a record.

    Raises:
        DamagedDocument: it is no record, or holds no whole outcome.
    """
    try:
        envelope = json.loads(record)
        document: Any = json.loads(envelope["result"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDocument(
            f"outcome: got {type(error).__name__}: {error}; expected a record of JSON in JSON"
        ) from error
    return Outcome.from_document(document)


class StoredOutcomes:
    """Outcomes in a results storage, each in a record of Prefect's."""

    def __init__(self, documents: StoredDocuments) -> None:
        self._documents = documents

    def read(self, key: str) -> Outcome:
        """Reads the outcome of a unit.

        Raises:
            DamagedDocument: what lies there is no outcome that this version knows.
            StorageError: it is not there, or cannot be read.
        """
        try:
            return read_outcome(self._documents.read(key))
        except DamagedDocument as error:
            raise DamagedDocument(f"{key}: {error}") from error
