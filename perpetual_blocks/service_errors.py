"""What a unit's error says of the services that the unit uses."""

from collections.abc import Iterator

from perpetual_blocks.errors import Unavailable

THROTTLED = frozenset(
    {
        *("RateLimitError", "TooManyRequests", "TooManyRequestsError"),
        # AWS has codes of its own, some of which come with a status of 400.
        *("ThrottlingException", "Throttling", "SlowDown", "RequestLimitExceeded", "TooManyRequestsException"),
        *("ProvisionedThroughputExceededException", "RequestThrottled"),
    }
)
"""What the errors of common clients are called when a service refuses a call because there were too many."""

CLIENTS = frozenset(
    {"anthropic", "botocore", "cohere", "google", "groq", "litellm", "mistralai", "openai", "pydantic_ai"}
)
"""Whose errors speak of one service that all units of an agent use. Those of an HTTP client may be of a single page."""

UNREACHABLE = frozenset(
    {
        *("APIConnectionError", "APITimeoutError", "ServiceUnavailableError", "Timeout"),
        *("HTTPClientError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),  # botocore's
    }
)

NO_ACCESS = frozenset({"NoCredentialsError", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId"})
"""What AWS says of credentials, whatever is asked for; that access to one object is denied says nothing of others."""

TOO_MANY_REQUESTS = 429  # RFC 6585
NOBODYS_FAULT = frozenset({401, 402, TOO_MANY_REQUESTS, *range(500, 600)})
"""An account's key or credit, the load, the service itself: what a service answers whoever asks it for whatever."""


def is_throttled(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there were too many calls."""
    return any(TOO_MANY_REQUESTS in _statuses(one) or bool(_names(one) & THROTTLED) for one in _causes(error))


def is_of_service(error: BaseException) -> bool:
    """Whether an error, or what caused it, speaks of a service and not of what was asked: `Unavailable`, or one
    of a service's own client that says that it cannot be reached, or refuses everybody."""
    return any(isinstance(one, Unavailable) or _is_of_client(one) for one in _causes(error))


def _is_of_client(error: BaseException) -> bool:
    if not any(kind.__module__.partition(".")[0] in CLIENTS for kind in type(error).__mro__):
        return False
    return bool(_statuses(error) & NOBODYS_FAULT) or bool(_names(error) & (UNREACHABLE | THROTTLED | NO_ACCESS))


def _statuses(error: BaseException) -> set[object]:
    """The HTTP statuses that it names, in the ways of common clients."""
    response = getattr(error, "response", None)
    of_response = _within(response, "ResponseMetadata", "HTTPStatusCode") or getattr(response, "status_code", None)
    found = (getattr(error, "status_code", None), getattr(error, "code", None), of_response)
    return {status for status in found if isinstance(status, int)}


def _names(error: BaseException) -> set[str]:
    """What its client calls it: its class, those which that is one of, and the code in an answer of AWS."""
    code = _within(getattr(error, "response", None), "Error", "Code")
    return {kind.__name__ for kind in type(error).__mro__} | ({code} if isinstance(code, str) else set())


def _within(answer: object, *names: str) -> object:
    """What lies in an answer of AWS, which is a dictionary of dictionaries."""
    for name in names:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


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
