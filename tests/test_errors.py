"""Errors as texts that can be shown and kept."""

from perpetual_blocks.errors import described


def test_an_error_is_described_so_that_any_database_can_hold_it() -> None:
    """Half a surrogate pair and NUL, which databases refuse, become their escapes; all else stays."""
    assert described(ValueError("no \udcff.md, no \0, but 🙂")) == r"ValueError: no \udcff.md, no \x00, but 🙂"
