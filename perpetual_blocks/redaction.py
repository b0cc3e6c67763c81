"""Redaction: what must not be seen is masked in every text that leaves, and refused in what must stay exact.

Two ways of knowing a secret. Some are known by value: those of the agent's own blocks, of the ledger's address and of
the environment; they are found in any text, also escaped, quoted or in base64. Others are known by their looks: a
password within a URL, a bearer token, a private key. Texts for people (errors, log lines, handoffs) are masked. State
is not: a context with a hole in it is not the agent's context any more. So an outcome that holds a secret is refused.
"""

import json
import re
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from perpetual_blocks.errors import InvalidInput, PerpetualError, text_of
from perpetual_blocks.service_errors import is_of_service, stand_in

MASK = "***"

LEAST = 8
"""A shorter value is found in too many texts that do not speak of it."""

_LEAST_LINE = 16
_NAMES = (
    r"pass[_-]?words?|passwd|pwd|pass[_-]?phrase|secrets?|token|credentials?|"
    r"(?:api|private|secret|access|account)[_-]?keys?"
)
_SECRET_NAME = re.compile(rf"(?i)(?:^|[^a-z])(?:{_NAMES}|authorization|auth[_-]?string)(?:$|[^a-z])")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# A variable that says where a secret is, or how many there are, does not hold one.
_NOT_ITSELF = re.compile(r"(?i)_(?:file|path|dir|home|url|uri|endpoint|host|port|id|name|type|limit|ttl|seconds)$")

_URL_PASSWORD = r"://[^\s:/?#@'\"]{0,256}:"

_SHAPES = re.compile(
    "|".join(
        (
            rf"(?P<url>{_URL_PASSWORD})[^\s/'\"]{{1,512}}(?=@)",
            r"(?P<header>(?i:\bauthorization)[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:[A-Za-z]{1,16}\s+)?)[\w.~+/=:-]{8,}",
            r"(?P<bearer>\bBearer\s+)[\w.~+/=-]{20,}",
            r"(?<![\w-])sk-(?=[a-z_-]*[A-Z0-9])[\w-]{16,}",
            r"(?<![\w-])(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|pn[ub]_\w{20,})",
            r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
            r"\bxox[abeprs]-[\w-]{10,}",
            r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)",
            rf"(?P<named>(?i:(?<![a-z])(?P<name>{_NAMES}))(?:[\"']?\s?=\s?|[\"']\s?:\s?(?=[\"']))[\"']?)"
            # Code is shown in tracebacks, and says where a secret comes from: password=password, token=self.token.
            r"(?!(?P=name)\b|\w+[.(\[]|None\b|True\b|False\b)[^\s,;&'\"()\[\]{}<>*$`]{4,}",
        )
    )
)
_KEPT = ("url", "header", "bearer", "named")


class Masked(Exception):
    """What was raised, under the original's name and without the secrets of its text; a note holds the traceback."""


class Redactor:
    """Masks secrets in texts.

    Args:
        own: The agent's own secrets: masked, and refused in what must stay exact.
        others: More secrets that are masked.
    """

    def __init__(self, own: Iterable[str] = (), others: Iterable[str] = ()) -> None:
        own = {value for value in own if len(value) >= LEAST}
        values = own | {value for value in others if len(value) >= LEAST}
        self._own = _longest_first(form for value in own for form in _forms(value))
        self._known = _longest_first(form for value in values for form in _forms(value))

    def __call__(self, text: str) -> str:
        """The text without secrets; itself if it has none."""
        return _SHAPES.sub(_masked_shape, self.known(text))

    def known(self, text: str) -> str:
        """The text without the secrets that are known by value."""
        for form in self._known:
            if form in text:
                text = text.replace(form, MASK)
        # An error cuts a long value short, and the beginning of a secret is a secret too.
        for dots in ("...", "…"):
            if dots in text:
                for form in self._known:
                    text = _without_beginning(text, form, dots)
        return text

    def shown(self, value: Any) -> Any:
        """A JSON value for people: as texts are, and masked where its name says that it is a secret."""
        return self._shown(value, named=False)

    def _shown(self, value: Any, *, named: bool) -> Any:
        match value:
            case str():
                return MASK if named and value else self(value)
            case dict():
                return {
                    self(name): self._shown(inner, named=named or says_secret(name)) for name, inner in value.items()
                }
            case list():
                return [self._shown(inner, named=named) for inner in value]
            case _:
                return value

    @property
    def refuses(self) -> bool:
        """Whether there is anything that `refuse` would refuse."""
        return bool(self._own)

    def refuse(self, value: Any, field: str) -> None:
        """Refuses a JSON value that must be kept as it is and holds a secret of the agent's.

        Raises:
            InvalidInput: names the field, and not the secret.
        """
        if not self._own:
            return
        for where, text in _texts(value, field):
            if any(form in text for form in self._own):
                raise InvalidInput(
                    f"{self(where)}: got a value of the agent's secret fields; expected none, as it would be saved: "
                    "read it from self where it is needed"
                )

    def clean(self, error: BaseException) -> BaseException:
        """The error if no text of it, or of what caused it, holds a secret; else what can be raised in its place."""
        trace = "".join(traceback.format_exception(error))
        texts = "\n".join(_chain_texts(error))
        if self.known(trace) == trace and self(texts) == texts:
            return error
        text = self(text_of(error))
        if isinstance(error, PerpetualError):  # whose type means something to whoever catches it
            error.args = (text,)
            error.__cause__ = error.__context__ = None
            error.__notes__ = []
            clean: BaseException = error.with_traceback(None)
        else:
            clean = stand_in(Masked, type(error).__name__, text, away=is_of_service(error))
        clean.add_note(self(trace).rstrip())
        return clean


def secret_values(value: Any) -> Iterator[str]:
    """The secrets within a pydantic model: of its secret fields, those of blocks and other models in it included."""
    match value:
        case SecretStr() | SecretBytes() | Secret():
            yield from _leaves(value.get_secret_value())
        case BaseModel():
            for name in type(value).model_fields:
                yield from secret_values(getattr(value, name))
            yield from secret_values(value.model_extra or {})
        case dict():
            yield from secret_values([*value, *value.values()])
        case list() | tuple() | set() | frozenset():
            for inner in value:
                yield from secret_values(inner)


def environment_secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets of environment variables: of those that are named as such, and the passwords within addresses."""
    for name, value in environment.items():
        names_it = says_secret(name) and not _NOT_ITSELF.search(name) and name.upper() != "PWD"  # the current folder
        if names_it and not value.isdigit():
            yield from _leaves(value)
        yield from url_passwords(value)


def url_passwords(text: str) -> Iterator[str]:
    """The passwords within the addresses of a text."""
    for match in re.finditer(rf"{_URL_PASSWORD}([^\s/'\"]{{1,512}})@", text):
        yield match[1]


def says_secret(name: str) -> bool:
    """Whether a field or a variable of this name holds a secret: `password`, `GITHUB_TOKEN`, `apiKey`; not `tokens`."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name)) is not None


def _leaves(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
            if value[:1] in ("{", "["):  # as Prefect's Secret block reads it
                try:
                    inner = json.loads(value)
                except ValueError:
                    return
                yield from _leaves(inner)
        case bytes():
            yield value.decode(errors="replace")
        case dict():
            for inner in value.values():
                yield from _leaves(inner)
        case list() | tuple():
            for inner in value:
                yield from _leaves(inner)


def _forms(value: str) -> Iterator[str]:
    """A secret as it may be written in a text."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    lines = value.splitlines()
    if len(lines) > 1:
        yield " ".join(lines)
        yield from (line for line in lines if len(line) >= _LEAST_LINE)
    data = value.encode(errors="replace")
    for quoted in (quote(data), quote(data, safe=""), quote(data, safe=" +"), quote_plus(data)):
        yield quoted
        yield re.sub(r"%[0-9A-F]{2}", lambda escape: escape[0].lower(), quoted)
    # Within something longer, Base64 has three ways to write it: the characters that its neighbours share are left out.
    for shift in range(3):
        first, end = (0, 2, 3)[shift], (shift + len(data)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(bytes(shift) + data).decode()[first:end]


def _longest_first(forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({form for form in forms if len(form) >= LEAST}, key=lambda form: (-len(form), form)))


def _without_beginning(text: str, form: str, dots: str) -> str:
    head = form[:LEAST] if len(form) > LEAST else ""
    at = text.find(head) if head else -1
    while at >= 0:
        end = text.find(dots, at)
        if end < 0:
            break
        if form.startswith(text[at:end]):
            text = text[:at] + MASK + text[end:]
        at = text.find(head, at + 1)
    return text


def _masked_shape(match: "re.Match[str]") -> str:
    kept = match.lastgroup if match.lastgroup in _KEPT else None
    return f"{match[kept]}{MASK}" if kept else MASK


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """All texts within a JSON value, and where they are."""
    match value:
        case str():
            yield field, value
        case dict():
            for name, inner in value.items():
                yield f"{field} key", name
                yield from _texts(inner, f"{field}.{name}")
        case list() | tuple():
            for index, inner in enumerate(value):
                yield from _texts(inner, f"{field}[{index}]")


def _chain_texts(error: BaseException | None) -> Iterator[str]:
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield text_of(one)
        yield from getattr(one, "__notes__", ())
        todo += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
