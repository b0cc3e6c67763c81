"""What a unit's error says of the services that the unit uses."""

from collections.abc import Iterator

from perpetual_blocks.errors import Unavailable

THROTTLED = frozenset({"RateLimitError", "TooManyRequests", "TooManyRequestsError", "ThrottlingException"})
"""What the errors of common clients are called when a service refuses a call because there were too many."""

MODEL_CLIENTS = frozenset({"anthropic", "cohere", "google", "groq", "litellm", "mistralai", "openai", "pydantic_ai"})
"""Whose errors speak of one service that all units of an agent use. Those of an HTTP client may be of a single page."""

UNREACHABLE = frozenset({"APIConnectionError", "APITimeoutError", "ServiceUnavailableError", "Timeout"})

TOO_MANY_REQUESTS = 429  # RFC 6585
NOBODYS_FAULT = frozenset({401, 402, TOO_MANY_REQUESTS, *range(500, 600)})
"""An account's key or credit, the load, the service itself: what a service answers whoever asks it for whatever."""


def is_throttled(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there were too many calls."""
    return any(TOO_MANY_REQUESTS in _statuses(one) or type(one).__name__ in THROTTLED for one in _causes(error))


def is_of_service(error: BaseException) -> bool:
    """Whether an error, or what caused it, speaks of a service and not of what was asked: `Unavailable`, or a model
    client's that says that its provider cannot be reached, or refuses everybody."""
    return any(isinstance(one, Unavailable) or _is_of_model_service(one) for one in _causes(error))


def _is_of_model_service(error: BaseException) -> bool:
    kinds = type(error).__mro__
    if not any(kind.__module__.partition(".")[0] in MODEL_CLIENTS for kind in kinds):
        return False
    return bool(_statuses(error) & NOBODYS_FAULT) or any(kind.__name__ in UNREACHABLE | THROTTLED for kind in kinds)


def _statuses(error: BaseException) -> set[object]:
    """The HTTP statuses that it names, in the ways of common clients."""
    of_response = getattr(getattr(error, "response", None), "status_code", None)
    found = (getattr(error, "status_code", None), getattr(error, "code", None), of_response)
    return {status for status in found if isinstance(status, int)}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def stand_in(kind: type[Exception], name: str, text: str, *, away: bool) -> Exception:
    """An error in place of one that cannot be here itself: under its name, and it still says whether a service is away.

    Args:
        kind: Why it is not here.
        away: What `is_of_service` says of the original.
    """
    kinds = (kind, Unavailable) if away else (kind,)
    found: Exception = type(name, kinds, {"__module__": kind.__module__})(text)
    return found
