"""What every part of a page is made from: the result, its pictures, and one palette."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sims.report.blocks import Cell
from sims.report.palette import Palette
from sims.report.strips import Pictures
from sims.results.common import FigureFacts, Result, Row

R = TypeVar("R", bound=Result, covariant=True)
ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}


def figure_facts(result: Result, name: str) -> FigureFacts:
    """What a figure is called; one without facts by its name."""
    return result.figures.get(name) or FigureFacts(name.replace("_", " "))


def heading(result: Result, name: str) -> str:
    """A figure as the title of a column: what it is called, and which way is better."""
    facts = figure_facts(result, name)
    return facts.title + ARROWS[facts.better]


def in_order(result: Result, names: Iterable[str]) -> list[str]:
    """Figures in the order of the result's facts, those without facts last."""
    names = dict.fromkeys(names)
    return [name for name in result.figures if name in names] + [name for name in names if name not in result.figures]


def best_value(result: Result, name: str, values: Iterable[float | None]) -> float | None:
    """The best of a figure's values; None where neither way is better."""
    better = figure_facts(result, name).better
    kept = [value for value in values if value is not None]
    return None if better == "neither" or not kept else (min if better == "lower" else max)(kept)


@dataclass(frozen=True)
class Context(Generic[R]):
    """The result with what draws it."""

    result: R
    pictures: Pictures
    palette: Palette

    def name(self, row: Row, note: str = "") -> Cell:
        """A row's name in a table."""
        return Cell(self.palette.name(row.label), note, swatch=self.palette[row.label].variable)

    def colour(self, label: str) -> str:
        return self.palette[label].light
