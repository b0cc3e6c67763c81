"""Small pieces of Markdown that several pages have."""


def one_line(text: str | None) -> str:
    """A text without its line breaks; nothing for None."""
    return " ".join((text or "").split())


def cell(text: str | None) -> str:
    """A text as a table's cell."""
    return one_line(text).replace("|", "\\|")


def bar(fraction: float, cells: int = 20) -> str:
    """A share as a bar of so many characters; what is over 1 is full."""
    filled = min(cells, round(fraction * cells))
    return "█" * filled + "░" * (cells - filled)
