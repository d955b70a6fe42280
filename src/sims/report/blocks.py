"""What a section of the page is made of; `page.html` draws each kind, and `terminal` the tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Generic, TypeVar

from markupsafe import Markup

from sims.report.numbers import DASH

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True)
class Prose:
    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Notice:
    """A boxed line that must not be missed."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True)
class Drawn:
    """A figure: its SVG, and a caption that names nothing but what is ``drawn`` (names of marks, see `svg`)."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str
    drawn: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Cell:
    """A table cell; `title` is shown on hover, `swatch` is the CSS variable of a method's colour."""

    text: str
    note: str = ""
    title: str = ""
    swatch: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column(Generic[T_contra]):
    """A column: its title, what it says of an item, and the title that it shares with its neighbours.

    ``drop``: the order in which a narrow terminal leaves columns out; 0 = never.
    """

    title: str
    cell: Callable[[T_contra], Cell | str]
    numeric: bool = True
    drop: int = 0
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; ``strong`` are the indices of emphasized rows."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column[Any]]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    title: str = ""
    strong: Collection[int] = ()

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper header, where there is one: titles, and the number of columns of each."""
        groups = [(title, len(list(columns))) for title, columns in groupby(self.columns, lambda column: column.group)]
        return groups if any(title for title, _ in groups) else []


def table(
    items: Iterable[T],
    columns: Iterable[Column[T]],
    caption: str = "",
    *,
    title: str = "",
    strong: Collection[int] = (),
) -> Table | None:
    """A row per item; columns without anything in them are left out, and a table without columns is None."""
    items, columns = list(items), list(columns)
    cells = [[found if isinstance(found := c.cell(item), Cell) else Cell(found) for item in items] for c in columns]
    kept = [k for k, column in enumerate(cells) if k == 0 or any(cell.text not in ("", DASH) for cell in column)]
    if len(kept) < 2 or not items:
        return None
    rows = [[cells[k][place] for k in kept] for place in range(len(items))]
    return Table([columns[k] for k in kept], rows, caption, title, strong)


@dataclass(frozen=True)
class Strip:
    """A row of images as one PNG data URI; width in CSS pixels."""

    label: str
    uri: str
    alt: str
    width: int
    height: int
    swatch: str = ""


@dataclass(frozen=True)
class Images:
    kind: ClassVar[str] = "images"
    strips: Sequence[Strip]
    caption: str


@dataclass(frozen=True)
class Fact:
    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    kind: ClassVar[str] = "facts"
    facts: Sequence[Fact]


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens them."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Prose | Notice | Drawn | Table | Images | Facts | Code | Details


def details(summary: str, *blocks: Block | None) -> Details | None:
    """The blocks that there are, behind a line; None where there are none."""
    kept = present(*blocks)
    return Details(summary, kept) if kept else None


def prose(text: str) -> Prose | None:
    return Prose(text) if text else None


def facts(*items: Fact) -> Facts | None:
    """The facts that have a value."""
    kept = [item for item in items if item.value not in ("", DASH)]
    return Facts(kept) if kept else None


def present(*blocks: Block | None) -> list[Block]:
    """The blocks that there are."""
    return [block for block in blocks if block is not None]


@dataclass(frozen=True)
class Section:
    """A section of the page; without blocks it is left out."""

    id: str
    title: str
    blocks: Sequence[Block]
