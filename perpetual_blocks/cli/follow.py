"""Following a chain while it works: a live view for a terminal, plain lines for everything else.

It reads the ledger only, so that a server may come and go meanwhile.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from perpetual_blocks.cli.live import local_time, progress_view
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.session.progress import Onlooker, Progress
from perpetual_blocks.session.progress_words import end_in_words, next_in_words


class Follower:
    """Shows a chain's progress.

    Args:
        console: Standard error, where standard output is to stay free for the result.
        quiet: Show nothing.
    """

    def __init__(self, ledger: Ledger, chain: str, console: Console, *, quiet: bool) -> None:
        self._onlooker = Onlooker(ledger, chain)
        self._console = console
        self.quiet = quiet
        # What is drawn is drawn over in place, line by line, which does not flicker.
        self._live = (
            None if quiet or not console.is_terminal else Live(console=console, refresh_per_second=4, transient=True)
        )
        self._said: set[tuple[Any, ...]] = set()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops drawing."""
        if self._live is not None:
            self._live.stop()

    @property
    def draws(self) -> bool:
        """Whether a live view is drawn, which other output would tear."""
        return self._live is not None

    def note(self, text: str) -> None:
        """Says what is going on beside the chain."""
        self._say(("note", text), lambda: text)
        self._draw(text)

    def look(self) -> dict[str, Any] | None:
        """Reads the chain, shows it, and returns the cheap part of its status; None as long as it does not exist."""
        try:
            self._progress = self._onlooker.look()
        except UnknownChain:
            return None
        self._draw()
        self._say_progress(self._progress)
        return self._progress.status

    def _draw(self, note: str = "") -> None:
        if self._live is None:
            return
        if self._progress is not None:
            self._live.update(progress_view(self._progress, note))
        elif note:
            self._live.update(Text(note, style="dim"))

    def _say_progress(self, progress: Progress) -> None:
        status, items = progress.status, progress.status["items"]
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
        if progress.resume_at is not None:
            self._say(("waits", status["resume_at"]), lambda: next_in_words(progress, local_time))
        tenth = items["completed"] * 10 // max(1, items["total"])
        if items["total"]:
            self._say(("tenth", tenth), lambda: _tenth(progress))

    def _say(self, key: tuple[Any, ...], text: Callable[[], str]) -> None:
        if not self.quiet and not self.draws and key not in self._said:
            self._said.add(key)
            self._console.print(text(), highlight=False, soft_wrap=True, markup=False)


def _tenth(progress: Progress) -> str:
    items = progress.status["items"]
    text = f"{items['completed']:,} of {items['total']:,} items done"
    if progress.eta is None or items["completed"] == items["total"]:  # its session may still be closing
        return text
    return f"{text}, {end_in_words(progress.eta, local_time)}"
