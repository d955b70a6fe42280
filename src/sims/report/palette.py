"""One colour and one marker per method, the same in every figure and table, light and dark.

Figures are drawn in the light colours; `as_variables` then turns each into a CSS variable, so that a figure
follows the page's theme. Every colour therefore stands for one thing only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INK, MUTED, LINE, PAPER = "#1b2230", "#5d6879", "#d9dee7", "#fefefe"
THEME = {  # variable: (light, dark)
    "ink": (INK, "#e7eaf0"),
    "muted": (MUTED, "#9aa5b6"),
    "line": (LINE, "#303846"),
    "paper": (PAPER, "#151a22"),
}
KNOWN = {  # method: (light, dark, marker)
    "base": ("#66707f", "#a7b0be", "o"),
    "sims": ("#1d5fd6", "#6fa3ff", "o"),
    "cached": ("#0b8496", "#45c6d8", "s"),
    "fast": ("#00699e", "#5fb8e8", "p"),
    "distilled": ("#6d45c9", "#ab90ff", "D"),
    "standard": ("#5f6a78", "#a1acba", "o"),
    "standard-equal": ("#8c6312", "#dab04a", "P"),
    "standard-steps": ("#9a4f8e", "#d592ca", "d"),
    "neon": ("#c7530a", "#ff9d52", "^"),
    "autoguidance": ("#217a3c", "#5cc77f", "v"),
    "continued": ("#96690a", "#e3b64b", "P"),
    "placebo": ("#b52c7c", "#f27fbd", "X"),
    "self-trained": ("#a32b2e", "#f2858a", "<"),
}
TITLES = {
    "base": "Base",
    "sims": "SIMS",
    "cached": "SIMS, cached",
    "fast": "SIMS, fast",
    "distilled": "SIMS, distilled",
    "neon": "Neon",
    "autoguidance": "Autoguidance",
    "continued": "Continued training",
    "placebo": "Placebo",
    "self-trained": "Self-trained",
}  # where a run gives no label of its own
SPARE = (  # for methods not named above, in order of appearance
    ("#7a6244", "#cdb18a", "h"),
    ("#3d7f7a", "#7cc9c2", ">"),
    ("#8a4fa0", "#d29ae6", "8"),
    ("#4f6a1f", "#a9cc66", "*"),
    ("#a0522d", "#e0a07c", "d"),
    ("#33568f", "#8fb0e6", "H"),
)


@dataclass(frozen=True)
class Swatch:
    """How a method looks: its CSS variable, light and dark colours, and matplotlib marker."""

    variable: str
    light: str
    dark: str
    marker: str


class Palette:
    """Swatches of the methods of one report."""

    def __init__(self, methods: Iterable[str]):
        self._swatches: dict[str, Swatch] = {}
        spare = 0
        for method in methods:
            if method in self._swatches:
                continue
            known = KNOWN.get(method)
            if known is None:
                known = SPARE[spare % len(SPARE)]
                spare += 1
            self._swatches[method] = Swatch(f"m{len(self._swatches)}", *known)

    def __getitem__(self, method: str) -> Swatch:
        if method not in self._swatches:  # named only in a side table: grey rather than an error
            return Swatch("muted", MUTED, THEME["muted"][1], ".")
        return self._swatches[method]

    def variables(self, dark: bool) -> dict[str, str]:
        """CSS variable → colour, of the theme and of every method."""
        shades = {name: pair[dark] for name, pair in THEME.items()}
        return shades | {item.variable: item.dark if dark else item.light for item in self._swatches.values()}

    def as_variables(self, svg: str) -> str:
        """An SVG drawn in light colours, with each colour replaced by its CSS variable."""
        for name, colour in self.variables(dark=False).items():
            svg = svg.replace(colour, f"var(--{name})")
        return svg
