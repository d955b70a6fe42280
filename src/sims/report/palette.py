"""One colour and one marker for everything that is compared, the same in every figure and table, light and dark.

Figures are drawn in the light colours; `as_variables` then turns each into a CSS variable, so that a figure
follows the page's theme. Every colour therefore stands for one thing only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sims.results.common import Look

INK, MUTED, LINE, PAPER = "#1b2230", "#5d6879", "#d9dee7", "#fefefe"
THEME = {  # variable: (light, dark)
    "ink": (INK, "#e7eaf0"),
    "muted": (MUTED, "#9aa5b6"),
    "line": (LINE, "#303846"),
    "paper": (PAPER, "#151a22"),
}
SPARE = (  # for what has no look of its own, in order of appearance
    Look("", "#0b8496", "#45c6d8", "s"),
    Look("", "#00699e", "#5fb8e8", "p"),
    Look("", "#7a6244", "#cdb18a", "h"),
    Look("", "#3d7f7a", "#7cc9c2", ">"),
    Look("", "#8a4fa0", "#d29ae6", "8"),
    Look("", "#4f6a1f", "#a9cc66", "*"),
    Look("", "#a0522d", "#e0a07c", "d"),
    Look("", "#33568f", "#8fb0e6", "H"),
)


@dataclass(frozen=True)
class Swatch:
    """How something looks: its CSS variable, light and dark colours, and matplotlib marker."""

    variable: str
    light: str
    dark: str
    marker: str


class Palette:
    """Swatches by label: the look of that name, or of its method where no other label has it, or a spare one.

    ``rows`` are labels with their methods, in the order of the tables.
    """

    def __init__(self, looks: Mapping[str, Look], rows: Iterable[tuple[str, str]]) -> None:
        self._looks, self._swatches, self._taken = looks, dict[str, Swatch](), set[str]()
        rows = list(dict.fromkeys(rows))
        for label, _ in (row for row in rows if row[0] in looks):
            self._add(label, looks[label])
        for label, method in (row for row in rows if row[0] not in looks):
            self._add(label, looks.get(method))

    def _add(self, label: str, look: Look | None) -> None:
        if look is None or look.light in self._taken:
            left = [spare for spare in SPARE if spare.light not in self._taken]
            look = left[0] if left else SPARE[len(self._swatches) % len(SPARE)]
        self._taken.add(look.light)
        self._swatches.setdefault(label, Swatch(f"m{len(self._swatches)}", look.light, look.dark, look.marker))

    def __getitem__(self, label: str) -> Swatch:
        if label not in self._swatches:
            self._add(label, self._looks.get(label))
        return self._swatches[label]

    def name(self, label: str) -> str:
        """What a label is called on the page."""
        return self._looks[label].title if label in self._looks else label

    def variables(self, dark: bool) -> dict[str, str]:
        """CSS variable → colour, of the theme and of all swatches."""
        shades = {name: pair[dark] for name, pair in THEME.items()}
        return shades | {item.variable: item.dark if dark else item.light for item in self._swatches.values()}

    def as_variables(self, svg: str) -> str:
        """An SVG drawn in light colours, with each colour replaced by its CSS variable."""
        for name, colour in self.variables(dark=False).items():
            svg = svg.replace(colour, f"var(--{name})")
        return svg
