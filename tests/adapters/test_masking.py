"""Masking in a process: its log records, and what is raised."""

import io
import logging
from collections.abc import Iterator

import pytest

from perpetual_blocks.adapters.masking import masked, masked_logs, redactor_for
from perpetual_blocks.redaction import Masked, Redactor

KEY = "canary-of-the-logs"
redactor = Redactor([KEY])


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What a handler, added by somebody else, writes of a logger and its children."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    logger = logging.getLogger("of.somebody")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_records_of_all_loggers_are_masked(output: io.StringIO) -> None:
    """Of children too, in arguments, in mappings and in tracebacks."""
    child = logging.getLogger("of.somebody.else")
    with masked_logs(redactor):
        child.error("it is %s", KEY)
        child.error("it is %(key)r", {"key": KEY})
        try:
            raise ValueError(KEY)
        except ValueError:
            child.exception("wrong: %d %%", 5)

    said = output.getvalue()
    assert "canary" not in said
    assert said.startswith("of.somebody.else it is ***\nof.somebody.else it is '***'\nof.somebody.else wrong: 5 %\n")
    assert said.endswith("ValueError: ***\n")


def test_records_without_secrets_and_records_afterwards_are_left_alone(output: io.StringIO) -> None:
    """A record keeps its arguments; after the block, nothing is masked any more."""
    logger = logging.getLogger("of.somebody")
    records: list[logging.LogRecord] = []
    keep = logging.Handler()
    keep.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(keep)
    with masked_logs(redactor):
        logger.error("%s of %s", 3, 4)
    logger.error(KEY)
    logger.removeHandler(keep)

    assert records[0].args == (3, 4)
    assert output.getvalue().splitlines()[-1] == f"of.somebody {KEY}"


def test_a_record_that_cannot_be_formatted_is_left_to_its_handler(output: io.StringIO) -> None:
    """Masking does not raise where logging would not."""
    with masked_logs(redactor):
        record = logging.getLogRecordFactory()("x", logging.ERROR, "f", 1, "%d and %d", (1,), None)

    assert record.args == (1,)


def test_two_sessions_of_one_process_mask_for_each_other(output: io.StringIO) -> None:
    """In whichever order they end."""
    first, second = masked_logs(Redactor(["canary-one"])), masked_logs(Redactor(["canary-two"]))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logging.getLogger("of.somebody").error("canary-one canary-two")
    second.__exit__(None, None, None)

    assert output.getvalue() == "of.somebody canary-one ***\n"


def test_what_is_raised_is_masked() -> None:
    """Whoever catches it sees the type's name and the masked text."""
    with pytest.raises(Masked) as caught, masked(redactor):
        raise ValueError(f"no {KEY}")

    assert str(caught.value) == "no ***"
    assert type(caught.value).__name__ == "ValueError"
    assert caught.value.__cause__ is None
    with pytest.raises(KeyError), masked(redactor):
        raise KeyError("as it is")


def test_a_redactor_knows_the_ledgers_password_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in an address the password is, quoted or not."""
    monkeypatch.setenv("SOME_API_KEY", "canary-of-a-variable")
    known = redactor_for(ledger="postgresql://me:p%40ss-word-1@host/db?sslpassword=canary-of-tls")

    assert known("p@ss-word-1, p%40ss-word-1, canary-of-tls, canary-of-a-variable") == "***, ***, ***, ***"
