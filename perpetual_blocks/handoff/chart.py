"""Charts as SVG text: how full each budget was, session by session.

Elements have classes and no colours: a page that shows a chart among its own text colours them as it likes, and
`standalone` gives a picture colours and a background of its own, so that it is read on a light and on a dark page.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from perpetual_blocks.handoff.document import HistoryLine

DRAWN = 60
"""How many sessions a handoff's chart shows: the latest."""

MOST_LIMITS = 6
HEADROOM = 1.15
"""What was used beyond a limit is drawn up to here; 1 is the limit."""

Box = tuple[float, float, float, float]
"""x, the y that it stands on, width, height."""

WIDTH = 560
MARGIN = 16
_HEADER, _PLOT, _GAP = 22, 38, 16
_LETTER = 6.4  # about as wide as one of 12 px is

# Okabe and Ito's blue and vermillion, which colour-blind people tell apart, too; the sign differs as well.
_COLOURS = (
    "text{font:12px system-ui,sans-serif}.ink{fill:#1b2430}.soft{fill:#5b6675}.strong{font-weight:600}"
    ".bar{fill:#0072b2}.past{fill:#8fbfdd}.over{fill:#d55e00}.cross{stroke:#d55e00;stroke-width:1.5}"
    ".track{fill:#eef1f5}.limit{stroke:#5b6675;stroke-dasharray:3 3}.base{stroke:#c3cad3}"
)


def budget_chart(
    sessions: Sequence[HistoryLine],
    limits: Mapping[str, str],
    *,
    width: int = WIDTH,
    margin: int = MARGIN,
    each: int = 1,
) -> str:
    """One row of columns for each limit: how full it was when each session ended. The last session stands out.

    Args:
        limits: What the amount of each limit is, in words, by its name.
        each: For how many sessions each column stands; it has the ordinal of the last of them.

    Returns:
        An SVG element; nothing where there is nothing to compare.
    """
    names = [name for name in limits if any(name in session.used for session in sessions)][:MOST_LIMITS]
    if len(sessions) < 2 or not names:
        return ""
    inner = width - 2 * margin
    step = inner / len(sessions)
    parts: list[str] = []
    top = float(margin)
    for name in names:
        last = next(session for session in reversed(sessions) if name in session.used)
        told = f"{last.used[name]:.0%} used"
        room = int((inner - _LETTER * (len(told) + 2)) / _LETTER)
        parts.append(_heading(margin, top + 12, name, limits[name], room))
        parts.append(label(width - margin, top + 12, told, "ink strong", "end"))
        base, unit = top + _HEADER + _PLOT, _PLOT / HEADROOM
        parts.append(box(margin, base - unit, inner, unit, "track"))
        columns: dict[str, list[Box]] = {"past": [], "bar": [], "over": []}
        for place, session in enumerate(sessions):
            x, wide = margin + place * step, max(1.0, step - min(3.0, step / 4))
            share = min(session.used.get(name, 0.0), HEADROOM)
            columns["bar" if session is last else "past"].append((x, base, wide, min(share, 1.0) * unit))
            columns["over"].append((x, base - unit, wide, (share - 1.0) * unit))
        parts += [boxes(drawn, kind) for kind, drawn in columns.items()]
        parts.append(line(margin, base, width - margin, base, "base"))
        parts.append(line(margin, base - unit, width - margin, base - unit, "limit"))
        top = base + _GAP
    # Once, below the last row: such a session has often written no limits down, and has no columns.
    places = [
        (margin + (place + 0.5) * step - 1, top - _GAP + 7) for place, one in enumerate(sessions) if not one.graceful
    ]
    parts.append(cross(places))
    first, latest = sessions[0].ordinal - each + 1, sessions[-1].ordinal
    parts.append(label(margin, top + 10, f"session {first:,}", "soft"))
    parts.append(label(width - margin, top + 10, f"session {latest:,}", "soft", "end"))
    top += 28
    for words in _caption(inner, each, crossed=not all(session.graceful for session in sessions)):
        parts.append(label(margin, top + 10, words, "soft"))
        top += 17
    title = f"How full each budget was, session {first} to {latest}"
    return element(width, top + max(0, margin - 8), "".join(parts), title)


def standalone(svg: str) -> str:
    """The chart as a picture that needs no page around it: with a size, colours and a background."""
    if not svg:
        return ""
    head, _, body = svg.partition(">")
    _, _, box = head.partition('viewBox="0 0 ')
    width, height = box.partition('"')[0].split()
    background = f'<rect width="{width}" height="{height}" rx="8" fill="#fbfcfd" stroke="#d5dbe3"/>'
    return f'{head} width="{width}" height="{height}"><style>{_COLOURS}</style>{background}{body}'


def _caption(inner: float, each: int, *, crossed: bool) -> list[str]:
    columns = "a session: what was used when it ended" if each == 1 else f"{each} sessions, as the fullest ended"
    sentences = [f"A column is {columns}.", "Dashed: the limit."]
    if crossed:
        sentences.append("Crossed: ended without its own shutdown.")
    lines = [""]
    for sentence in sentences:
        longer = f"{lines[-1]} {sentence}".strip()
        if lines[-1] and len(longer) * _LETTER > inner:
            lines.append(sentence)
        else:
            lines[-1] = longer
    return lines


def _heading(x: float, y: float, name: str, amount: str, room: int) -> str:
    name = name if len(name) <= room else name[: room - 1] + "…"
    # What there is no room for beside the name is in the table.
    beside = f'<tspan class="soft" dx="8">{escape(amount)}</tspan>' if len(name) + len(amount) + 2 <= room else ""
    return f'<text x="{x:g}" y="{y:g}" class="ink"><tspan class="strong">{escape(name)}</tspan>{beside}</text>'


# Elements -------------------------------------------------------------------------------------------------------------


def element(width: float, height: float, body: str, title: str) -> str:
    """An SVG element that says in words what it shows."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" role="img"'
    return f"{head}><title>{escape(title)}</title>{body}</svg>"


def label(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """A line of text."""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}"{at}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle."""
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{kind}"/>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>'


def boxes(drawn: Iterable[Box], kind: str) -> str:
    """Boxes that stand on their `y`, in one element: there may be hundreds; those without a height are left out."""
    outlines = (
        f"M{_n(x)} {_n(y)}v{_n(-height)}h{_n(width)}v{_n(height)}z" for x, y, width, height in drawn if height > 0
    )
    path = "".join(outlines)
    return f'<path d="{path}" class="{kind}"/>' if path else ""


def cross(places: Iterable[tuple[float, float]]) -> str:
    """A small cross at each of these places."""
    path = "".join(f"M{_n(x - 3)} {_n(y - 3)}l6 6m0-6l-6 6" for x, y in places)
    return f'<path d="{path}" class="cross"/>' if path else ""


def _n(number: float) -> str:
    return f"{round(number, 1):g}"
