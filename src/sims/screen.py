"""What a terminal is shown: texts, in which nothing steers it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

#: Characters that clear, move, colour or turn around what a terminal shows, and how they are shown instead.
_STEERING = {
    code: repr(chr(code))[1:-1]
    for codes in (range(32), range(127, 160), (0x061C, 0x200E, 0x200F), range(0x2028, 0x202F), range(0x2066, 0x206A))
    for code in codes
    if chr(code) not in "\n\t"
}


def printable(text: object) -> str:
    r"""A text whose control characters are written out; line breaks stay.

    >>> print(printable("cats\x1b[2J"))
    cats\x1b[2J
    """
    return str(text).translate(_STEERING)


def show(text: object) -> None:
    """Print a text of foreign names on stdout."""
    print(printable(text))


def say(text: object) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


class Screen(Console):
    """A terminal that shows foreign texts as they are, in tables, lines and progress bars: "[red]" is a text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
