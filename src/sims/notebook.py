"""What a notebook shows inline: small tables in HTML, in which foreign texts are texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sims.screen import printable


def text(value: object) -> str:
    """A text as it is shown on a page: neither markup nor control characters of it count."""
    return escape(printable(value))


def number(value: float | None, half: float | None = None) -> str:
    """A number of about four digits, with half of its interval where that is known; a dash where there is none.

    >>> number(31.4567, 2.345), number(None), number(-0.25)
    ('31.46 ± 2.35', '–', '−0.25')
    """
    if value is None:
        return "–"
    if half is None:
        return f"{value:.4g}".replace("-", "−")
    places = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    return f"{value:.{places}f} ± {half:.{places}f}".replace("-", "−")


def table(
    title: object, columns: Sequence[object], rows: Iterable[Sequence[object]], notes: Iterable[object] = ()
) -> str:
    """A table under a title, and notes below it, as HTML; every value is escaped.

    >>> table("<b>", ["name", "w"], [["base", 0]])
    '<div><b>&lt;b&gt;</b><table><tr><th>name</th><th>w</th></tr><tr><td>base</td><td>0</td></tr></table></div>'
    """
    head = f"<tr>{''.join(f'<th>{text(column)}</th>' for column in columns)}</tr>" if columns else ""
    body = "".join(f"<tr>{''.join(f'<td>{text(value)}</td>' for value in row)}</tr>" for row in rows)
    below = "".join(f"<p>{text(note)}</p>" for note in notes)
    return f"<div><b>{text(title)}</b><table>{head}{body}</table>{below}</div>"
