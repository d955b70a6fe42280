"""What every part of a page is made from: the result, its pictures, one palette; and what figures are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sims.report.blocks import Cell
from sims.report.palette import Palette
from sims.report.strips import Pictures
from sims.results.common import FigureFacts, Result, Row

R = TypeVar("R", bound=Result, covariant=True)
ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


def facts_of(result: Result, figure: str) -> FigureFacts:
    """What a figure is called; one without facts by its name."""
    return result.figures.get(figure) or FigureFacts(figure.replace("_", " "))


def title(result: Result, figure: str) -> str:
    return facts_of(result, figure).title


def called(result: Result, label: str) -> str:
    """What a row or an arm is called on the page."""
    return result.looks[label].title if label in result.looks else label


def heading(result: Result, figure: str) -> str:
    """A figure as the title of a column: what it is called, and which way is better."""
    return title(result, figure) + ARROWS[facts_of(result, figure).better]


def in_order(result: Result, figures: Iterable[str]) -> list[str]:
    """Figures in the order of the result's facts, those without facts last."""
    names = dict.fromkeys(figures)
    return [name for name in result.figures if name in names] + [name for name in names if name not in result.figures]


def base_row(rows: Sequence[Row]) -> Row | None:
    """The row of the base model (w = 0), or None."""
    return next((row for row in rows if row.w == 0), None)


@dataclass(frozen=True)
class Context(Generic[R]):
    """The result with what draws it."""

    result: R
    pictures: Pictures
    palette: Palette

    def cell(self, label: str, note: str = "") -> Cell:
        """A label in a table, with its colour."""
        return Cell(self.palette.name(label), note, swatch=self.palette[label].variable)
