"""The figures of loops and of the pollution experiment: curves over generations or levels, points, strengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from sims.report import numbers as say
from sims.report.blocks import Drawn
from sims.report.context import Context, facts_of, heading, in_order, title
from sims.report.palette import MUTED
from sims.report.strips import split_key
from sims.report.svg import Drawing, from_zero
from sims.results.common import Figure
from sims.results.loop import LoopResult, PollutionResult

Either = LoopResult | PollutionResult
Loops = Context[LoopResult] | Context[PollutionResult]


def places_of(result: Either) -> tuple[float, ...]:
    """Where the curves are measured: levels in percent, or generations."""
    if isinstance(result, PollutionResult):
        return result.levels
    return tuple(map(float, range(result.generations + 1)))


def place_text(result: Either, place: float) -> str:
    return f"{place:g} %" if isinstance(result, PollutionResult) else f"generation {place:g}"


def distances_of(result: Either) -> list[str]:
    """The distances among the figures, in order; the first one is the main one."""
    return [name for name in in_order(result, result.curves) if facts_of(result, name).kind == "distance"]


def curve_panels(c: Loops, id: str, names: Sequence[str], caption: str) -> Drawn | None:
    """A panel per figure: every arm's mean with its interval, and what real data score."""
    if not names:
        return None
    result, places, floor = c.result, places_of(c.result), c.result.floor
    drawing = Drawing(c.palette, id, 2.75 * -(-len(names) // 2) + 0.3)
    panels = drawing.panels(len(names), 2)
    for axes, name in zip(panels, names):
        for arm in result.arms:
            values = [Figure.of(repeats) for repeats in result.curves[name][arm.name]]
            colour, marker = c.palette[arm.name].light, c.palette[arm.name].marker if len(values) <= 15 else ""
            axes.plot(places, [value.mean for value in values], color=colour, marker=marker, label=arm.label)
            digits = say.decimals(value.mean for value in values)
            shown = [say.fixed(value.mean, digits) for value in values]
            drawing.tell(
                say.told(f"{title(c.result, name)}, {arm.label}", [place_text(result, at) for at in places], shown)
            )
            limits: Any = [value.low for value in values], [value.high for value in values]
            if None not in limits[0]:
                axes.fill_between(places, *limits, color=colour, alpha=0.16, linewidth=0, gid=drawing.mark("band"))
        drawing.line(axes, floor.values.get(name) if floor else None, "dotted")
        axes.set_title(heading(result, name))
        if isinstance(result, PollutionResult):
            axes.set_xlabel("pollution: synthetic samples, % of the real data")
        else:
            axes.set_xlabel("generation")
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        if facts_of(result, name).kind == "distance" and min(chain(*chain(*result.curves[name].values()))) >= 0:
            from_zero(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
    said = f" ({floor.text.rstrip('.')})" if floor and floor.text else ""
    return drawing.block(
        caption,
        band="Bands are 95 % intervals of the mean.",
        dotted=f"Dotted: what real data score in the samples’ place{said}.",
    )


def point_grid(c: Loops, id: str = "points", most: int = 6) -> Drawn | None:
    """Points of every arm at a few generations (the last ``most`` of them), over those of the truth."""
    points = {split_key(key): array[:800] for key, array in c.pictures.points.items()}
    arms = [arm for arm in c.result.arms if any(name == arm.name for name, _ in points)]
    truth = c.pictures.truth
    if not arms or truth is None:
        return None
    places = say.thinned(sorted({place for _, place in points if place is not None}))[-most:]
    reach = 1.1 * float(abs(truth).max())
    across = len(places) if most > 1 else min(5, len(arms))  # one generation: an arm beside the other
    drawing = Drawing(c.palette, id, 1.55 * -(-len(arms) * len(places) // across) + 0.3)
    panels = drawing.panels(len(arms) * len(places), across, sharex=True, sharey=True)
    dots: Any = {"markeredgewidth": 0, "rasterized": True}
    for index, axes in enumerate(panels):
        arm, place = arms[index // len(places)], places[index % len(places)]
        axes.plot(*truth[:800].T, ".", color=MUTED, markersize=2.5, alpha=0.6, **dots)
        axes.plot(*points[arm.name, place].T, ".", color=c.palette[arm.name].light, markersize=3, alpha=0.7, **dots)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axes.set_gid(drawing.mark("grey"))  # of the panel: dots that become an image have no id
        if most == 1 or index < len(places):
            axes.set_title(arm.label if most == 1 else place_text(c.result, place))
        if most > 1 and index % len(places) == 0:
            axes.set_ylabel(arm.label.replace(", ", ",\n"), fontsize="small")
        spread = [f"{float(points[arm.name, place][:, side].std()):.3g}" for side in (0, 1)]
        drawing.tell(f"{arm.label}, {place_text(c.result, place)}: standard deviations {' and '.join(spread)}.")
    drawing.tell(f"The truth: {' and '.join(f'{float(truth[:, side].std()):.3g}' for side in (0, 1))}.")
    when = f"at {place_text(c.result, places[-1])}" if most == 1 else "at a few generations"
    return drawing.block(f"Samples {when}; the same noise for every arm.", grey="Grey: the truth.")


def strength_panels(c: Context[PollutionResult]) -> Drawn | None:
    """FD against w, a panel for every guided remedy and a line for every level."""
    remedies = c.result.strengths
    if not remedies:
        return None
    drawing = Drawing(c.palette, "strengths", 3.0)
    panels = drawing.panels(len(remedies), sharey=True)
    for axes, (name, found) in zip(panels, remedies.items()):
        curves = found.figures["fd"]
        for index, (level, curve) in enumerate(zip(c.result.levels, curves)):
            shade, means = 0.35 + 0.65 * (index + 1) / len(curves), [Figure.of(repeats).mean for repeats in curve]
            axes.plot(found.w, means, color=c.palette[name].light, alpha=shade, marker="o", label=f"{level:g} %")
            shown = [say.fixed(mean, say.decimals(means)) for mean in means]
            drawing.tell(say.told(f"{c.palette.name(name)}, {level:g} %", [f"w {w:g}" for w in found.w], shown))
        axes.set(xlabel="w", title=c.palette.name(name))
        axes.legend()
    panels[0].set_ylabel(title(c.result, "fd"))
    from_zero(panels[0])
    return drawing.block("FD against the guidance strength, one line per level of pollution, mean over the repeats.")
