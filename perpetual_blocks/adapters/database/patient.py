"""The ledger away for a moment: each transaction is tried again, in this one place.

A connection that is lost while a transaction commits leaves open whether it was committed. So every method of the
ledger may be called again in the same way: what it did the first time it finds done, and does not do again.
"""

from collections.abc import Callable, Collection
from functools import wraps
from inspect import isfunction
from typing import Any, Protocol, TypeVar

from perpetual_blocks.errors import LedgerUnavailable
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.ledger import Fence, Opened

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class Grace(Protocol):
    """What a ledger knows of how long it may try.

    Attributes:
        renewed: When the last transaction that moved a session's lease on began, on the monotonic clock.
    """

    patience: Patience
    renewed: dict[Fence, float]


class DoneBefore(Exception):
    """What a transaction was to do is done: it was tried again after it had been committed. It is rolled back."""


def patient(*, but: Collection[str] = (), once: Collection[str] = ()) -> Callable[[C], C]:
    """Makes every public method of a ledger's class patient.

    Args:
        but: Methods that are no transactions, or see to it themselves.
        once: Methods that are tried once: whoever calls them tries again.
    """

    def decorate(cls: C) -> C:
        for name, method in list(vars(cls).items()):
            if isfunction(method) and not name.startswith("_") and name not in but:
                setattr(cls, name, _renewing(method) if name in once else patiently(method))
        return cls

    return decorate


def patiently(method: F) -> F:
    """Tries a method again while the ledger is away.

    A session's grace is counted from the last time that its lease was moved on: after the lease it may have lost its
    chain, and has nothing to commit any more.
    """
    attempt = _renewing(method)

    @wraps(method)
    def tried(self: Grace, *arguments: Any, **options: Any) -> Any:
        fence = _fence_of(arguments, options)
        since = self.renewed.get(fence) if fence is not None else None
        return self.patience(lambda: attempt(self, *arguments, **options), is_away, since=since)

    return tried  # type: ignore[return-value]


def _renewing(method: F) -> F:
    """Notes when a session's lease was moved on."""

    @wraps(method)
    def noted(self: Grace, *arguments: Any, **options: Any) -> Any:
        began = self.patience.clock.monotonic()
        result = method(self, *arguments, **options)
        fence = result.fence if isinstance(result, Opened) else _fence_of(arguments, options)
        if fence is not None:
            self.renewed[fence] = began
        return result

    return noted  # type: ignore[return-value]


def is_away(error: Exception) -> bool:
    """Whether it says that the ledger cannot be reached now."""
    return isinstance(error, LedgerUnavailable)


def _fence_of(arguments: tuple[Any, ...], options: dict[str, Any]) -> Fence | None:
    return next((one for one in (*arguments, *options.values()) if isinstance(one, Fence)), None)
