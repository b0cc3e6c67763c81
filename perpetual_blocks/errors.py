"""What can go wrong, as types.

Every error of this package is a `PerpetualError`; its text is one line that names the field, the value and what was
expected, so that it can be shown to a person as it is.
"""


class PerpetualError(Exception):
    """Base of all errors that this package raises on purpose."""

    def __init__(self, text: str = "") -> None:
        # What a driver, git or a user's key says may have several lines.
        super().__init__(" ".join(text.splitlines()))


class InvalidInput(PerpetualError, ValueError):
    """Something that a user wrote is wrong: a budget, a work item, a chain name, a block's value.

    It is a `ValueError` too, so that pydantic reports it as a field's error when it is raised by a validator.
    """

    @classmethod
    def of(cls, field: str, value: object, expected: str) -> "InvalidInput":
        """`field: got value; expected …`, with a long value cut short."""
        shown = repr(value)
        return cls(f"{field}: got {shown if len(shown) <= 120 else shown[:117] + '...'}; expected {expected}")


class UnknownChain(PerpetualError):
    """A chain, or an item of it, was named that the ledger does not have."""


class LedgerError(PerpetualError):
    """The ledger database cannot be reached, or its schema is not one that this version understands."""


class LedgerUnavailable(LedgerError):
    """The ledger database cannot be reached now, or refused for a reason that may pass.

    Nothing was written, unless the connection was lost at the very end: the same call, repeated, finds out.
    """


class StorageError(PerpetualError):
    """The results storage cannot be written, or gave back something else than was written."""


class DamagedDocument(StorageError):
    """A document's bytes do not have the digest that the ledger holds, or are not of a known schema."""


class RunsUnavailable(PerpetualError):
    """Prefect's API cannot be reached now, or refused for a reason that may pass."""


class Unavailable(PerpetualError):
    """A service that all units use cannot be reached now, or refuses everybody: raised by a unit.

    The first one counts as a failed attempt. Where others follow it and no unit succeeds in between, they do not: the
    session wraps, and the chain tries again later and later. Errors of model clients that say so are understood as
    they are.
    """


class Fenced(PerpetualError):
    """Another session owns the chain now; this one may commit nothing any more."""


class Superseded(PerpetualError):
    """This run may not work on the chain: another session does, or has done what this one was made for."""


class Ahead(Superseded):
    """This run was created ahead to be the chain's next session, and the session before is still at work."""


class PoolRefused(PerpetualError):
    """A pool has no room for a reservation.

    Attributes:
        contended: Whether it may have, once what others have reserved is settled.
    """

    def __init__(self, text: str, *, contended: bool) -> None:
        super().__init__(text)
        self.contended = contended


class GitError(PerpetualError):
    """A git command failed; the text holds the last line that git said."""


MOST_ERROR_TEXT = 2000


def text_of(error: BaseException) -> str:
    """What an error says, cut short: a user's may say nothing at all, or quote a whole web page."""
    try:
        text = str(error)
    except Exception as another:  # noqa: BLE001 - whatever it is, the error that cannot be told is still one
        return f"(its text cannot be had: {type(another).__name__})"
    more = len(text) - MOST_ERROR_TEXT
    return text if more <= 0 else f"{text[:MOST_ERROR_TEXT]}... ({more:,} characters more)"


def described(error: BaseException) -> str:
    """`ValueError: …` as any database can hold it.

    A file name that is not UTF-8 comes back in an error's text as half a surrogate pair, and PostgreSQL has no NUL.
    """
    text = f"{type(error).__name__}: {text_of(error)}"
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")
