"""What a section of the page is made of; `page.html` draws each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup


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
class Figure:
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
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    groups: Sequence[tuple[str, int]] = ()  # an optional upper header: title and number of columns
    strong: frozenset[int] = frozenset()  # indices of emphasized rows


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


Block = Prose | Notice | Figure | Table | Images | Facts | Code | Details


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)
