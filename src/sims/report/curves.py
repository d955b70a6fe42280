"""The figures of loops and of the pollution experiment: curves over generations or levels, points, strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from sims.report.blocks import Drawn
from sims.report.context import Context, figure_facts, heading, in_order
from sims.report.palette import MUTED
from sims.report.strips import split_key
from sims.report.svg import Drawing, from_zero
from sims.results.common import Figure
from sims.results.loop import LoopResult, PollutionResult

Either = LoopResult | PollutionResult
Loops = Context[LoopResult] | Context[PollutionResult]
SHOWN = 6  # generations in a table


@dataclass(frozen=True)
class Axis:
    """Where the curves of a result are measured: generations, or levels in percent."""

    places: tuple[float, ...]
    title: str
    is_level: bool

    def text(self, place: float) -> str:
        return f"{place:g} %" if self.is_level else f"generation {place:g}"

    def shown(self) -> list[float]:
        """The places that a table has columns for: all levels; first, last and some of the generations between."""
        return list(self.places) if self.is_level else thinned(self.places)


def axis_of(result: Either) -> Axis:
    if isinstance(result, PollutionResult):
        return Axis(result.levels, "pollution: synthetic samples, % of the real data", True)
    return Axis(tuple(map(float, range(result.generations + 1))), "generation", False)


def thinned(places: Sequence[float], most: int = SHOWN) -> list[float]:
    """At most ``most`` of the places, first and last among them."""
    if len(places) <= most:
        return list(places)
    return [places[round(index * (len(places) - 1) / (most - 1))] for index in range(most)]


def is_distance(result: Either, name: str) -> bool:
    return figure_facts(result, name).kind == "distance"


def distances_of(result: Either) -> list[str]:
    """The distances among the figures, in order; the first one is the main one."""
    return [name for name in in_order(result, result.curves) if is_distance(result, name)]


def curve_panels(c: Loops, id: str, names: Sequence[str], caption: str) -> Drawn:
    """A panel per figure: every arm's mean with its interval, and what real data score."""
    axis = axis_of(c.result)
    drawing = Drawing(id, 2.75 * -(-len(names) // 2) + 0.3)
    floor = c.result.floor
    panels = drawing.panels(len(names), 2)
    for axes, name in zip(panels, names):
        for arm in c.result.arms:
            values = [Figure.of(repeats) for repeats in c.result.curves[name][arm.name]]
            swatch, means = c.palette[arm.name], [value.mean for value in values]
            marker = swatch.marker if len(values) <= 15 else ""
            axes.plot(axis.places, means, color=swatch.light, marker=marker, label=arm.label)
            low, high = ([value.low for value in values], [value.high for value in values])
            if None not in low:
                band = axes.fill_between(axis.places, low, high, color=swatch.light, alpha=0.16, linewidth=0)  # type: ignore[arg-type]
                band.set_gid(drawing.mark("band"))
        drawing.line(axes, floor.values.get(name) if floor else None, "dotted")
        axes.set(title=heading(c.result, name), xlabel=axis.title)
        if not axis.is_level:
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        if is_distance(c.result, name) and min(chain(*chain(*c.result.curves[name].values()))) >= 0:
            from_zero(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
    said = f" ({floor.text.rstrip('.')})" if floor and floor.text else ""
    return drawing.block(
        c.palette,
        f"Figures of every arm against {axis.title}: {', '.join(names)}.",
        caption,
        band="Bands are 95 % intervals of the mean.",
        dotted=f"Dotted: what real data score in the samples’ place{said}.",
    )


def point_grid(c: Loops) -> Drawn | None:
    """Points of every arm at a few generations, over those of the truth."""
    axis, labels = axis_of(c.result), {arm.name: arm.label for arm in c.result.arms}
    points = {split_key(key): array[:800] for key, array in c.pictures.points.items()}
    names = [name for name in labels if any(arm == name for arm, _ in points)]
    truth = c.pictures.truth
    if not names or truth is None:
        return None
    places = thinned(sorted({place for arm, place in points if arm in names and place is not None}))
    reach = 1.1 * float(abs(truth).max())
    drawing = Drawing("points", 1.55 * len(names) + 0.3)
    panels = drawing.panels(len(names) * len(places), len(places), sharex=True, sharey=True)
    dots = {"markeredgewidth": 0, "rasterized": True}
    for index, axes in enumerate(panels):
        name, place = names[index // len(places)], places[index % len(places)]
        x, y = truth[:800].T
        axes.plot(x, y, ".", color=MUTED, markersize=2, alpha=0.3, **dots)  # type: ignore[arg-type]
        x, y = points[name, place].T
        axes.plot(x, y, ".", color=c.palette[name].light, markersize=3, alpha=0.7, **dots)  # type: ignore[arg-type]
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axes.set_gid(drawing.mark("grey"))  # of the panel: dots that become an image have no id
        if index < len(places):
            axes.set_title(axis.text(place))
        if index % len(places) == 0:
            axes.set_ylabel(labels[name].replace(", ", ",\n"), fontsize="small")
    alt = "Scatter plots of samples per generation."
    caption = "Samples at a few generations; the same noise in every row."
    return drawing.block(c.palette, alt, caption, grey="Grey: the truth.")


def strength_panels(c: Context[PollutionResult]) -> Drawn | None:
    """FD against w, a panel for every guided remedy and a line for every level."""
    remedies = c.result.strengths
    if not remedies:
        return None
    drawing = Drawing("strengths", 3.0)
    panels = drawing.panels(len(remedies), sharey=True)
    for axes, (name, found) in zip(panels, remedies.items()):
        curves = found.figures["fd"]
        for index, (level, curve) in enumerate(zip(c.result.levels, curves)):
            means = [Figure.of(repeats).mean for repeats in curve]
            shade = 0.35 + 0.65 * (index + 1) / len(curves)
            axes.plot(found.w, means, color=c.colour(name), alpha=shade, marker="o", markersize=4, label=f"{level:g} %")
        axes.set(xlabel="w", title=c.palette.name(name))
        axes.legend()
    panels[0].set_ylabel(figure_facts(c.result, "fd").title)
    from_zero(panels[0])
    caption = "FD against the guidance strength, one line per level of pollution, mean over the repeats."
    return drawing.block(c.palette, "FD against w per pollution level.", caption)
