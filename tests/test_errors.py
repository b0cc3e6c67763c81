"""Errors as texts that can be shown and kept."""

from perpetual_blocks.errors import described


def test_an_error_is_described_so_that_any_database_can_hold_it() -> None:
    """Half a surrogate pair and NUL, which databases refuse, become their escapes; all else stays."""
    assert described(ValueError("no \udcff.md, no \0, but 🙂")) == r"ValueError: no \udcff.md, no \x00, but 🙂"


def test_an_error_may_have_no_text_or_very_much() -> None:
    """What raises when it is to be told is told by its name, and what quotes a whole page is cut short."""

    class Mute(Exception):
        """Cannot be told."""

        def __str__(self) -> str:
            raise RuntimeError("nothing to say")

    assert described(Mute()) == "Mute: (its text cannot be had: RuntimeError)"
    assert described(ValueError("x" * 2000)) == "ValueError: " + "x" * 2000
    assert described(ValueError("x" * 5000)) == "ValueError: " + "x" * 2000 + "... (3,000 characters more)"
