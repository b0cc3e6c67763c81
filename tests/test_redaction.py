"""Redaction: what is masked, what is refused, and what is left as it is."""

import base64
import json
import time
import traceback
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.blocks.system import Secret as SecretBlock
from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from support import one_line

from perpetual_blocks.errors import InvalidInput, LedgerError
from perpetual_blocks.redaction import MASK, Masked, Redactor, environment_secrets, says_secret, secret_values

KEY = "canary/of \"us\" & 'them' é"
redact = Redactor([KEY])


# Masking by value -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        json.dumps(KEY)[1:-1],
        json.dumps(KEY, ensure_ascii=False)[1:-1],
        repr(KEY)[1:-1],
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").replace("%2F", "%2f").replace("%C3%A9", "%c3%a9"),
        quote_plus(KEY),
    ],
)
def test_a_known_secret_is_masked_however_it_is_written(written: str) -> None:
    """As it is, escaped as in JSON and in Python, and quoted as in an address."""
    assert redact(f"before {written} after") == f"before {MASK} after"


@given(st.text(min_size=8), st.binary(max_size=9), st.binary(max_size=9))
def test_a_known_secret_is_masked_within_base64(secret: str, before: bytes, after: bytes) -> None:
    """Wherever it begins within what was encoded: no eight of its own characters are left."""
    hidden = Redactor([secret])
    data = secret.encode(errors="replace")
    # The characters whose bits are all of the secret.
    first, last = -(-len(before) * 8 // 6), (len(before) + len(data)) * 8 // 6
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + data + after).decode()
        assert text[first:last] not in hidden(text)


@given(st.text(min_size=8))
def test_any_secret_is_masked_and_masking_again_changes_nothing(secret: str) -> None:
    """Whatever its characters, in a text and in a JSON text."""
    hidden = Redactor([secret])
    if secret in f"a {MASK} b":
        return
    for text in (f"a {secret} b", json.dumps({"a": secret}), repr(secret)):
        once = hidden(text)
        assert secret not in once
        assert hidden(once) == once


def test_a_secret_of_several_lines_is_masked_when_they_become_one() -> None:
    """Errors are one line; a line of it alone is masked, too."""
    key = "first line of the key\nsecond line of the key"

    assert Redactor([key])(str(InvalidInput(f"got {key}"))) == f"got {MASK}"
    assert Redactor([key])("only second line of the key") == f"only {MASK}"


def test_the_beginning_of_a_secret_is_masked_where_a_long_value_is_cut_short() -> None:
    """Errors show the first hundred characters of a value."""
    key = "canary" * 30
    error = InvalidInput.of("field", key, "something else")

    assert "canary" in str(error)
    assert "canary" not in Redactor([key])(str(error))


def test_what_is_too_short_is_no_secret() -> None:
    """A password of four letters is a word of other texts."""
    assert Redactor(["test"], ["a"])("this test has a word") == "this test has a word"


# Masking by looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:pw1@host/db", "postgresql://me:***@host/db"),
        ("https://bot:p%40ss@host:8080/x?y", "https://bot:***@host:8080/x?y"),
        ("redis://:p@ss@host", "redis://:***@host"),
        ("Authorization: Bearer abcd.efgh-1234", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwdw=='}", "{'authorization': 'Basic ***'}"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc", "Bearer ***"),
        ("key sk-proj-abcDEF123456789012 used", "key *** used"),
        ("ghp_" + "a1" * 18, "***"),
        ("github_pat_" + "A1" * 20, "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("xoxb-1234567890-abcdef", "***"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb", "a\n***\nb"),
        ("-----BEGIN PRIVATE KEY-----\nMII and no end", "***"),
        ("password=hunter2, user=me", "password=***, user=me"),
        ("DB_PASSWORD='hunter2'", "DB_PASSWORD='***'"),
        ("?api_key=abcdef&page=2", "?api_key=***&page=2"),
        ('{"client_secret": "abcdef", "n": 1}', '{"client_secret": "***", "n": 1}'),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    """Without being known; what stands before it says what it was."""
    assert Redactor()(text) == masked
    assert Redactor()(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "900 tokens of 1,000 tokens; the next unit would use 120",
        "tokens=900 max_tokens=1000 token_count=5",
        "ssh://git@example.org/repo.git, postgresql://me@host/db, http://127.0.0.1:4200/api",
        "sk-learn-examples-and-tutorials, task-1234567890123456",
        "token: got 5; expected a word",
        "connect(password=password, token=self.token, api_key=os.environ['KEY'], secret=None)",
        "the bearer of this message",
        "a@b: c@d",
        "",
    ],
)
def test_a_text_without_secrets_is_left_as_it_is(text: str) -> None:
    """Also where it speaks of them."""
    assert Redactor(["something else entirely"])(text) == text


@given(st.text(alphabet="abc ://@.=-'\"\n", max_size=80))
def test_masking_is_stable(text: str) -> None:
    """What was masked once is not masked again into something else."""
    once = Redactor()(text)
    assert Redactor()(once) == once


@pytest.mark.parametrize("piece", ["a", "://a:", "password", "-----BEGIN PRIVATE KEY-----", "token=", "sk-", '"', "a/"])
def test_a_long_text_does_not_take_long(piece: str) -> None:
    """The time grows with the length only, whatever the text: 200 kB take less than two seconds."""
    text = piece * (200_000 // len(piece))
    started = time.perf_counter()
    redact(text)
    assert time.perf_counter() - started < 2


# JSON for people ------------------------------------------------------------------------------------------------------


def test_a_context_is_masked_by_names_too() -> None:
    """All text below such a name; numbers are none, and counts of tokens are shown."""
    context = {
        "password": "x",
        "apiKey": "y",
        "db": {"DB_PASSWORD": "z", "host": "db"},
        "credentials": ["u", {"v": "w"}],
        "tokens": 500,
        "token": 7,
        "notes": f"it is {KEY}",
        KEY: 1,
    }

    assert redact.shown(context) == {
        "password": MASK,
        "apiKey": MASK,
        "db": {"DB_PASSWORD": MASK, "host": "db"},
        "credentials": [MASK, {"v": MASK}],
        "tokens": 500,
        "token": 7,
        "notes": f"it is {MASK}",
        MASK: 1,
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *(
            (name, True)
            for name in ("password", "GITHUB_TOKEN", "apiKey", "api-key", "AWS_SECRET_ACCESS_KEY", "passwd")
        ),
        *((name, True) for name in ("credentials", "private_key", "OPENAI_API_KEY", "accessToken", "x-token-x")),
        *((name, False) for name in ("tokens", "max_tokens", "secretary", "key", "keys", "passage", "tokenizer", "")),
    ],
)
def test_names_that_say_so(name: str, says: bool) -> None:
    """Words of a name count, however they are joined."""
    assert says_secret(name) is says


# Refusing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (KEY, "result"),
        ({"a": [1, {"b": f"x{KEY}x"}]}, "result.a[1].b"),
        ({"a": base64.b64encode(KEY.encode()).decode()}, "result.a"),
        ({KEY: 1}, "result key"),
    ],
)
def test_state_with_an_own_secret_is_refused(value: Any, where: str) -> None:
    """The error names the field and not the secret."""
    with pytest.raises(InvalidInput) as refused:
        redact.refuse(value, "result")

    one_line(refused.value, f"{where}: got a value of the agent's secret fields")
    assert "canary" not in str(refused.value)


def test_state_with_other_secrets_is_not_refused() -> None:
    """Only the agent's own are sure not to belong there."""
    Redactor(["something else"], [KEY]).refuse({"a": [KEY, None, 1.5, "password=hunter2"]}, "result")


# Errors ---------------------------------------------------------------------------------------------------------------


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - a test's own
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError(KEY),
        raised(LookupError("no page"), raised(ValueError(KEY))),
        raised(LookupError("no page"), raised(OSError(5, "https://me:hunter2@host"))),
        ExceptionGroup("several", [ValueError(KEY)]),
    ],
    ids=["itself", "its cause", "an address", "a group"],
)
def test_an_error_with_a_secret_is_replaced(error: Exception) -> None:
    """By one of the same name, whose text, traceback and causes are masked."""
    clean = redact.clean(error)

    assert isinstance(clean, Masked)
    assert type(clean).__name__ == type(error).__name__
    shown = "".join(traceback.format_exception(clean)) + repr(clean) + repr(vars(clean))
    assert "canary" not in shown
    assert "hunter2" not in shown
    assert MASK in shown


def test_an_error_without_a_secret_is_left_alone() -> None:
    """The very object, with its cause."""
    error = raised(LookupError("no page"), ValueError("page 7"))

    assert redact.clean(error) is error
    assert isinstance(error.__cause__, ValueError)


def test_an_error_of_ours_keeps_its_type() -> None:
    """Others decide by it; its text and causes are masked in place."""
    error = raised(LedgerError(f"cannot use {KEY}"), raised(ValueError(KEY)))

    clean = redact.clean(error)

    assert clean is error
    assert str(clean) == f"cannot use {MASK}"
    assert "canary" not in "".join(traceback.format_exception(clean))


# Where secrets come from ----------------------------------------------------------------------------------------------


class Inner(BaseModel):
    token: SecretStr


class Program(BaseModel):
    key: SecretBlock
    login: SecretBlock
    data: SecretBytes
    number: Secret[int]
    inner: Inner | None = None
    several: dict[str, list[SecretStr]]
    open: str = "seen by all"


def test_the_secrets_of_a_model_are_found_wherever_they_are() -> None:
    """In blocks, in what a block holds, in nested models and in collections."""
    program = Program(
        key=SecretBlock(value="of-a-block"),
        login=SecretBlock(value={"user": "ada", "password": "of-a-dict"}),
        data=SecretBytes(b"of-bytes"),
        number=Secret(7),
        inner=Inner(token=SecretStr("of-a-model")),
        several={"a": [SecretStr("of-a-list")]},
    )

    assert set(secret_values(program)) >= {"of-a-block", "of-a-dict", "of-bytes", "of-a-model", "of-a-list"}
    assert "seen by all" not in set(secret_values(program))


def test_the_secrets_of_the_environment_are_found_by_name() -> None:
    """And the passwords of addresses in any variable; where a secret lies is none."""
    environment = {
        "GITHUB_TOKEN": "of-a-token",
        "aws_secret_access_key": "of-aws",
        "DATABASE": "postgresql://me:of-an-address@host/db",
        "PASSWORD_FILE": "/run/secrets/password",
        "MAX_TOKENS": "100000000",
        "TOKEN_LIMIT": "not-a-secret",
        "SECRET": "1234567890",
        "HOME": "/home/ada",
        "PWD": "/home/ada/work",
    }

    assert set(environment_secrets(environment)) == {"of-a-token", "of-aws", "of-an-address"}
