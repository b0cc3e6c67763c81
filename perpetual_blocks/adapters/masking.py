"""What a process must not show, gathered where it runs, and masked in all that it logs and raises."""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from pydantic import BaseModel

from perpetual_blocks.redaction import Redactor, environment_secrets, secret_values


def redactor_for(agent: BaseModel | None = None, ledger: str = "") -> Redactor:
    """A redactor that knows the secrets of an agent, of a ledger's address and of this process's environment."""
    own = secret_values(agent) if agent is not None else ()
    others = list(environment_secrets(os.environ))
    if ledger:
        from perpetual_blocks.adapters.database.engine import address_secrets  # the process of a unit starts without

        others += address_secrets(ledger)
    return Redactor(own, others)


@contextmanager
def masked(redactor: Redactor) -> Iterator[None]:
    """Masks all log records of this process, whoever writes them, and what is raised within the `with` block."""
    with masked_logs(redactor):
        clean: BaseException | None = None
        try:
            yield
        except Exception as error:
            clean = redactor.clean(error)
            if clean is error:
                raise
        if clean is not None:
            raise clean from None


_active: list[Redactor] = []
_installing = Lock()


@contextmanager
def masked_logs(redactor: Redactor) -> Iterator[None]:
    """Masks all log records of this process within the `with` block.

    Where records are made, and not in a filter: a logger's filters do not see what its children log, and a handler that
    the user's code adds later has none of ours.
    """
    _install()
    _active.append(redactor)
    try:
        yield
    finally:
        _active.remove(redactor)


def _install() -> None:
    with _installing:
        factory = logging.getLogRecordFactory()
        if getattr(factory, "masks", False):
            return

        def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = factory(*args, **kwargs)
            for redactor in _active:
                _mask(record, redactor)
            return record

        make.masks = True  # type: ignore[attr-defined]
        logging.setLogRecordFactory(make)


def _mask(record: logging.LogRecord, redactor: Redactor) -> None:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit are for the handler to complain of
        return
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
    clean = redactor(text)
    if clean != text:
        record.msg, record.args, record.exc_info = clean, None, None
