"""Reading the outcomes that Prefect has persisted."""

from prefect.filesystems import WritableFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

from perpetual_blocks.errors import DamagedDocument, StorageError
from perpetual_blocks.work import Outcome


class StoredOutcomes:
    """Outcomes in a storage block, each in a result record of Prefect's."""

    def __init__(self, storage: WritableFileSystem) -> None:
        self._store = ResultStore(
            result_storage=storage, serializer=JSONSerializer(), cache_result_in_memory=False, lock_manager=None
        )

    def read(self, key: str) -> Outcome:
        """Reads the outcome of a unit.

        Raises:
            DamagedDocument: what lies there is no outcome that this version knows.
            StorageError: it is not there, or is no result record.
        """
        try:
            document = self._store.read(key).result
        except Exception as error:
            raise StorageError(f"results storage: cannot read {key}: {type(error).__name__}: {error}") from error
        try:
            return Outcome.from_document(document)
        except DamagedDocument as error:
            raise DamagedDocument(f"{key}: {error}") from error
