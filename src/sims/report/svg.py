"""matplotlib figures as inline SVG that follows the page's fonts and theme. No pyplot, no global state.

Whatever a caption may name is drawn as a mark: its element has the id ``FIGURE-KIND-NUMBER``, and a sentence of the
caption that speaks of a kind is there where such a mark is.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from sims.report.blocks import Drawn
from sims.report.palette import INK, LINE, MUTED, PAPER, Palette
from sims.results.common import Figure as Value
from sims.results.common import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches; 72 units of the SVG each

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "svg.hashsalt": "sims",  # the same figure is the same bytes
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 8.5,
    "text.parse_math": False,  # a "$" in a name is a dollar
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "lines.markeredgecolor": PAPER,
    "lines.markeredgewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the report's style; matplotlib's own settings are as before afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's matplotlibrc must not change the page
        matplotlib.rcParams.update(STYLE)
        yield


class Drawing:
    """A figure of the page (height in inches) and the marks in it."""

    def __init__(self, palette: Palette, name: str, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.name, self.palette = name, palette
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(self.figure)
        self._marks: Counter[str] = Counter()
        self._told: list[str] = []

    def panels(self, count: int, most: int = 3, **options: Any) -> list[Axes]:
        """So many panels, at most ``most`` beside one another, in the form that all of them have."""
        columns = min(most, count)
        grid = self.figure.subplots(math.ceil(count / columns), columns, squeeze=False, **options)
        for axes in grid.flat:
            axes.tick_params(length=0)
            axes.grid()
        for axes in list(grid.flat)[count:]:
            axes.set_axis_off()
        return list(grid.flat)[:count]

    def mark(self, kind: str) -> str:
        """The id of one more mark of a kind, for an artist's ``gid``."""
        self._marks[kind] += 1
        return f"{kind}-{self._marks[kind]}"

    def line(self, axes: Axes, value: float | None, kind: str, *, vertical: bool = False) -> None:
        """A line across a panel at a value: ``dashed`` and pale, or ``dotted`` and dark."""
        if value is None:
            return
        colour, width, dashes = (MUTED, 0.8, (4, 3)) if kind == "dashed" else (INK, 1.0, (1, 1.5))
        draw = axes.axvline if vertical else axes.axhline
        draw(value, color=colour, linewidth=width, linestyle=(0, dashes), zorder=0, gid=self.mark(kind))  # type: ignore[operator]

    def bar(self, axes: Axes, value: Value | Interval, at: float, colour: str, *, upright: bool = True) -> None:
        """The interval of a figure, where it has one."""
        if value.low is None or value.high is None:
            return
        x, y = ([at, at], [value.low, value.high]) if upright else ([value.low, value.high], [at, at])
        axes.plot(x, y, color=colour, linewidth=2.2, solid_capstyle="butt", gid=self.mark("bar"))

    def dot(
        self,
        axes: Axes,
        value: Value,
        at: float,
        name: str,
        *,
        upright: bool = True,
        kind: str = "dot",
        label: str = "",
    ) -> None:
        """A figure with its interval, in the colour and form of a name."""
        swatch = self.palette[name]
        self.bar(axes, value, at, swatch.light, upright=upright)
        x, y = (at, value.mean) if upright else (value.mean, at)
        how: Any = {"markersize": 7, "linestyle": "none", "clip_on": False, "label": label, "gid": self.mark(kind)}
        axes.plot(x, y, swatch.marker, color=swatch.light, **how)

    def tell(self, text: str) -> None:
        """A sentence with numbers that are drawn, for those who cannot see them; see `numbers.told`."""
        self._told += [text] if text else []

    def block(self, caption: str, **sentences: str) -> Drawn:
        """The drawing with its caption: ``sentences`` (kind of mark -> text) are said of what is drawn.

        What was told is in its alternative text.
        """
        said = " ".join([caption, *(text for kind, text in sentences.items() if self._marks[kind])])
        return Drawn(to_svg(self.figure, self.palette, " ".join([caption, *self._told]), self.name), said)


def from_zero(axes: Axes) -> None:
    """A vertical axis of distances begins at zero, whatever their intervals reach to."""
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A horizontal line of the panel for every name."""
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def plain_log(axes: Axes, axis: str, ticks: list[float]) -> None:
    """A logarithmic axis with the given ticks, written as ordinary numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    getattr(axes, f"set_{axis}scale")("log")
    target = getattr(axes, f"{axis}axis")
    target.set_major_locator(FixedLocator(ticks))
    target.set_minor_locator(NullLocator())
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def log_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high], spaced evenly on a log scale as far as round numbers can be."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 4 for n in range(4, 40))):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [round(step * 10.0**decade, 10) for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= wanted:
            return ticks if len(ticks) <= 2 * wanted else ticks[:: math.ceil(len(ticks) / (2 * wanted))]
    return ticks or [low, high]


def to_svg(figure: Figure, palette: Palette, alt: str, name: str) -> Markup:
    """The figure as an inline <svg> with an accessible name; `name` keeps its ids apart from other figures'."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would restyle the whole page
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert size is not None
    svg = svg.replace(size.group(0), f'role="img" aria-label="{escape(alt)}"', 1)
    return Markup(palette.as_variables(svg))  # matplotlib has escaped the texts, and alt is escaped above
