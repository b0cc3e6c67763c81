"""Following a chain while it works: a live view for a terminal, plain lines for everything else."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from perpetual_blocks.cli.render import headline, sessions_table
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.status import chain_status

SHOWN_SESSIONS = 12


class Follower:
    """Shows a chain's progress on standard error, so that standard output stays free for the result.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, ledger: Ledger, chain: str, console: Console, *, quiet: bool) -> None:
        self._ledger = ledger
        self._chain = chain
        self._console = console
        self.quiet = quiet
        self._live = (
            None if quiet or not console.is_terminal else Live(console=console, refresh_per_second=4, transient=True)
        )
        self._said: set[tuple[Any, ...]] = set()
        self._note = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops drawing; what was drawn last stays on the screen."""
        if self._live is not None:
            self._live.stop()

    @property
    def draws(self) -> bool:
        """Whether a live view is drawn, which other output would tear."""
        return self._live is not None

    def note(self, text: str) -> None:
        """Says what is going on beside the chain."""
        self._note = text
        self._say(("note", text), lambda: text)
        if self._live is not None:
            self._live.update(Text(text, style="dim"))

    def look(self) -> dict[str, Any] | None:
        """Reads the chain, shows it, and returns its status; None as long as it does not exist."""
        try:
            status = chain_status(self._ledger, self._chain)
        except UnknownChain:
            return None
        if self._live is not None:
            self._live.update(Group(headline(status), sessions_table(status["sessions"], SHOWN_SESSIONS)))
        self._say_progress(status)
        return status

    def _say_progress(self, status: dict[str, Any]) -> None:
        items = status["items"]
        for session in status["sessions"]:
            key = (session["ordinal"], session["state"])
            if session["state"] == "Running":
                self._say(key, lambda s=session: f"session {s['ordinal']} started (process {s['pid']})")  # type: ignore[misc]
            else:
                self._say(
                    key,
                    lambda s=session: (  # type: ignore[misc]
                        f"session {s['ordinal']} {s['state']}: {s['units']} units, {s['stop_message']}"
                    ),
                )
        tenth = items["completed"] * 10 // max(1, items["total"])
        if items["total"]:
            self._say(("tenth", tenth), lambda: f"{items['completed']:,} of {items['total']:,} items done")

    def _say(self, key: tuple[Any, ...], text: Callable[[], str]) -> None:
        if not self.quiet and not self.draws and key not in self._said:
            self._said.add(key)
            self._console.print(text(), highlight=False, soft_wrap=True, markup=False)
