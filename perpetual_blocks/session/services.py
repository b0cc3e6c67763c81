"""The services that units use: when so many of their errors say so that they must be away.

A provider of models that is down for an hour fails every unit, and none of them is to blame. Counted against the items,
it would discard a whole queue in a minute.
"""

from perpetual_blocks.service_errors import is_of_service
from perpetual_blocks.work import Item

LEAST_IN_A_ROW = 3


class ServiceWatch:
    """Tells an outage of a service from items that alone are refused: nothing succeeds between its errors.

    The first of them counts against its item, and so do all of an item that has failed before while others succeeded.
    Those that follow the first do not; after three in a row, and one more for each unit that runs at the same time,
    the service is taken to be away.

    Args:
        concurrency: How many units run at once at most.
        was_away: Whether it was when the session before ended: then the first error says that it still is.

    Attributes:
        away: The error that said so; None as long as it is there.
    """

    def __init__(self, concurrency: int, *, was_away: bool) -> None:
        self._most = LEAST_IN_A_ROW + concurrency - 1
        self._doubtful = was_away
        self._in_a_row = 0
        self._items: set[str] = set()
        self.away: BaseException | None = None

    def succeeded(self) -> None:
        """A unit was finished."""
        self._doubtful, self._in_a_row = False, 0
        self._items.clear()

    def is_to_blame(self, item: Item, error: BaseException) -> bool:
        """Whether the service is to blame, and not the item whose unit raised this; counts it."""
        if not is_of_service(error):
            return False
        if self._doubtful:
            self.away = error
            return True
        if item.attempts and item.id not in self._items:
            return False
        self._items.add(item.id)
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            self.away = error
        return self._in_a_row > 1
