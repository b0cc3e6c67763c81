"""What every command shares: where the ledger is, how results are printed, what exit codes mean.

| exit code | meaning |
| ---: | --- |
| 0 | done |
| 1 | the chain ended without finishing (stalled, exhausted, cancelled) or has discarded items, or a check failed |
| 2 | wrong input; one line on standard error says what was expected |
| 3 | the ledger, the results storage or the Prefect server cannot be used |
| 4 | another session works on the chain, or has taken it over |
| 10 | `session checkpoint`: the budget says wrap now |
| 130 | stopped by Ctrl-C; the chain can go on |
| 143 | ended by SIGTERM |
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter
from rich.console import Console

from perpetual_blocks.cli.sections import section_of
from perpetual_blocks.errors import Fenced, InvalidInput, PerpetualError, Superseded, UnknownChain
from perpetual_blocks.redaction import Redactor, environment_secrets

if TYPE_CHECKING:
    from perpetual_blocks.adapters.database import SqlLedger
    from perpetual_blocks.blocks import StatePersistence

OK, NOT_FINISHED, WRONG_INPUT, UNUSABLE, SUPERSEDED, WRAP_NOW, INTERRUPTED = 0, 1, 2, 3, 4, 10, 130

LEDGER_VARIABLE = "PERPETUAL_LEDGER"

# An id may well be "a:x:b"; it is shown as it is, and not as a picture.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object, and nothing else.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the state is.

    Args:
        ledger: The ledger's address: a path or sqlite:///path. By default $PERPETUAL_LEDGER, else the file in
            Prefect's home.
        store: The name of a State Persistence block, instead.
    """

    ledger: str | None = None
    store: str | None = None

    def get_store(self, otherwise: "StatePersistence | str | None" = None) -> "StatePersistence":
        """The store that the options name, or else the one that is given, or else the default one."""
        from perpetual_blocks.blocks.loading import load_store

        self._tell_children()
        return load_store(None if self.ledger else self.store or otherwise)

    def open_ledger(self) -> "SqlLedger":
        """The ledger itself. Where its address is known, without Prefect: importing that takes more than a second."""
        self._tell_children()
        address = None if self.store else os.environ.get(LEDGER_VARIABLE)
        if address is None:
            return self.get_store().get_ledger()

        from perpetual_blocks.adapters.database import SqlLedger

        return SqlLedger(address)

    def _tell_children(self) -> None:
        """Child processes find the same ledger."""
        if self.ledger and self.store:
            raise InvalidInput.of("--ledger", self.ledger, "either --ledger or --store")
        if self.ledger:
            os.environ[LEDGER_VARIABLE] = self.ledger


def print_json(value: Any) -> None:
    """The value on standard output, as it is."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def exit_code_of(status: Mapping[str, Any]) -> int:
    """The exit code that says how a chain stands: 0 only where every item is done."""
    return OK if status["status"] == "finished" and not status["items"].get("discarded") else NOT_FINISHED


def exit_code(error: PerpetualError) -> int:
    """The exit code that says what kind of error it was."""
    match error:
        case InvalidInput() | UnknownChain():
            return WRONG_INPUT
        case Superseded() | Fenced():
            return SUPERSEDED
        case _:
            return UNUSABLE


def fail(error: PerpetualError) -> NoReturn:
    """One line on standard error, and the exit code that goes with it."""
    text = Redactor(others=environment_secrets(os.environ))(str(error))
    section = section_of(error)
    more = f" [dim](README.md#{section})[/]" if section else ""
    err.print(f"[bold red]error[/] {_escape(text)}{more}", soft_wrap=True, highlight=False)
    raise SystemExit(exit_code(error))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
