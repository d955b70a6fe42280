"""What a section of the page is made of; `page.html` draws each kind, and `terminal` the tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal

from markupsafe import Markup

from sims.report.numbers import DASH


@dataclass(frozen=True)
class Text:
    """A paragraph, a boxed line that must not be missed, or lines as they were typed."""

    text: str
    kind: Literal["prose", "notice", "code"] = "prose"


@dataclass(frozen=True)
class Drawn:
    """A figure: its SVG, and a caption that names nothing but what is drawn (see `svg`)."""

    kind: ClassVar[str] = "figure"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Cell:
    """A table cell; `title` is shown on hover, `swatch` is the CSS variable of a method's colour."""

    text: str
    note: str = ""
    title: str = ""
    swatch: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column with its cells; ``group`` is a title that it shares with its neighbours.

    ``key``: it tells rows apart. ``drop``: the order in which a narrow terminal leaves columns out (0 = never), and a
    narrow page puts them behind a line (0 = last).
    """

    title: str
    cells: Sequence[Cell | str]
    numeric: bool = True
    drop: int = 0
    group: str = ""
    key: bool = False

    @property
    def is_empty(self) -> bool:
        return all((cell.text if isinstance(cell, Cell) else cell) in ("", DASH) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """Columns of one length; ``strong`` are the indices of emphasized rows."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    caption: str = ""
    title: str = ""
    strong: Collection[int] = ()

    @property
    def rows(self) -> list[list[Cell]]:
        lines = zip(*(column.cells for column in self.columns), strict=True)
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in line] for line in lines]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper header, where there is one: titles, and the number of columns of each."""
        groups = [(title, len(list(columns))) for title, columns in groupby(self.columns, lambda column: column.group)]
        return groups if any(title for title, _ in groups) else []


def table(
    columns: Iterable[Column], caption: str = "", *, title: str = "", strong: Collection[int] = ()
) -> Table | None:
    """The first column and all others that hold something; None where nothing is left."""
    first, *others = columns
    kept = [column for column in others if not column.is_empty]
    return Table([first, *kept], caption, title, strong) if kept and first.cells else None


@dataclass(frozen=True)
class Strip:
    """A row of images as one PNG data URI; sizes in CSS pixels, ``pitch`` from one image to the next."""

    label: str
    uri: str
    alt: str
    width: int
    height: int
    swatch: str = ""
    pitch: int = 1


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
class Details:
    """Blocks behind a line that opens them."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Text | Drawn | Table | Images | Facts | Details


@dataclass(frozen=True)
class Section:
    """A section of the page; without blocks it is left out."""

    id: str
    title: str
    blocks: Sequence[Block]


def present(*blocks: Block | None) -> list[Block]:
    """The blocks that there are."""
    return [block for block in blocks if block is not None]


def details(summary: str, *blocks: Block | None) -> Details | None:
    """The blocks that there are, behind a line; None where there are none."""
    kept = present(*blocks)
    return Details(summary, kept) if kept else None


def prose(text: str) -> Text | None:
    return Text(text) if text else None


def facts(*items: Fact) -> Facts | None:
    """The facts that have a value."""
    kept = [item for item in items if item.value not in ("", DASH)]
    return Facts(kept) if kept else None
