"""The figures of an improvement's page; each is None where the run has nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sims.report import numbers as say
from sims.report.blocks import Drawn
from sims.report.context import Context, base_row, title
from sims.report.numbers import short_count, strength
from sims.report.palette import INK, LINE, MUTED
from sims.report.svg import Drawing, from_zero, log_ticks, name_rows, plain_log
from sims.results.common import Figure, Row
from sims.results.improve import CacheResult, Chosen, ImproveResult, SearchCell, SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Improve = Context[ImproveResult]
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))
BAR = "Bars are 95 % intervals, where not visible narrower than the mark."
JACKKNIFE = "Bars are 95 % intervals, by a jackknife over the samples in the search."


def fd_dots(c: Improve, labels: Sequence[str] = (), id: str = "dots") -> Drawn | None:
    """FD to the training images and to held-out ones of every row (of these labels), with 95 % intervals."""
    rows = [row for row in c.result.rows if "fd" in row.figures and (not labels or row.label in labels)]
    names = [name for name in ("fd", "fd_held_out") if any(name in row.figures for row in rows)]
    if not rows:
        return None
    drawing, base = Drawing(c.palette, id, 0.9 + 0.3 * len(rows)), base_row(rows)
    floor = c.result.floor.values if c.result.floor else {}
    for axes, name in zip(drawing.panels(len(names), sharey=True), names):
        _dots(drawing, axes, rows, name)
        axes.set_title(title(c.result, name))
        axes.set_xlim(0, 1.03 * axes.get_xlim()[1])
        drawing.line(axes, base.mean(name) if base else None, "dashed", vertical=True)
        drawing.line(axes, floor.get(name), "dotted", vertical=True)
        _tell(drawing, title(c.result, name), rows, name, real=floor.get(name))
    return drawing.block(
        "Fréchet distance (FD) of every method, lower is better.",
        bar=BAR,
        dashed="The dashed line is the base.",
        dotted="The dotted line is what real images score.",
    )


def _dots(drawing: Drawing, axes: Axes, rows: Sequence[Row], name: str, scale: float = 1.0) -> None:
    """A line per row with a figure, times ``scale``."""
    for place, row in enumerate(rows):
        if value := row.figures.get(name):
            low, high = (None if end is None else scale * end for end in (value.low, value.high))
            drawing.dot(axes, Figure(scale * value.mean, low, high), place, row.label, upright=False)
    name_rows(axes, [drawing.palette.name(row.label) for row in rows])


def _tell(drawing: Drawing, called: str, rows: Sequence[Row], name: str, real: float | None = None) -> None:
    """A figure of every row in words, with its interval, and what real images score."""
    found = {drawing.palette.name(row.label): row.figures[name] for row in rows if name in row.figures}
    places = say.decimals(value.mean for value in found.values())
    values = [say.with_ends(value, places) for value in found.values()]
    drawing.tell(say.told(called, list(found), values, len(found)))
    drawing.tell("" if real is None else f"Real images: {say.fixed(real, places)}.")


def memorization_dots(c: Improve) -> Drawn | None:
    """Share of samples nearer to a training image than 99 % of held-out images are, per row."""
    rows = [row for row in c.result.rows if "memorized" in row.figures]
    if not rows:
        return None
    drawing = Drawing(c.palette, "memory", 0.75 + 0.28 * len(rows))
    (axes,) = drawing.panels(1)
    _dots(drawing, axes, rows, "memorized", scale=100.0)
    shares = [say.percent(row.mean("memorized"), 2) for row in rows]
    drawing.tell(say.told("Near share", [c.palette.name(row.label) for row in rows], shares, len(rows)))
    drawing.line(axes, 1.0, "dotted", vertical=True)
    most = 1.08 * max(1.5, axes.get_xlim()[1])
    axes.set_xlim(-0.02 * most, most)  # room for dots at zero
    axes.set_xlabel("samples nearer to a training image than 99 % of held-out images are, in %")
    return drawing.block(
        "Share of samples that lie nearer to a training image than 99 % of held-out images do.",
        dotted="Held-out images give 1 % by construction (dotted line); clearly more means that training images are "
        "being copied.",
        bar=BAR,
    )


def cost_dots(c: Improve) -> Drawn | None:
    """FD to the training images against network evaluations per sample."""
    rows = [row for row in c.result.rows if "fd" in row.figures and row.nfe > 0]
    if len({row.nfe for row in rows}) < 2:
        return None
    drawing = Drawing(c.palette, "cost", 3.1)
    (axes,) = drawing.panels(1)
    for row in rows:
        drawing.dot(axes, row.figures["fd"], row.nfe, row.label, label=c.palette.name(row.label))
    places = say.decimals(row.mean("fd") for row in rows)
    shown = [f"{say.fixed(row.mean('fd'), places)} at {short_count(row.nfe)} evaluations" for row in rows]
    drawing.tell(say.told(title(c.result, "fd"), [c.palette.name(row.label) for row in rows], shown, len(rows)))
    axes.set(xlabel="network evaluations per sample", ylabel=title(c.result, "fd"))
    axes.set_xlim(0, 1.06 * max(row.nfe for row in rows))
    from_zero(axes)
    drawing.figure.legend(loc="outside right upper")
    caption = "Quality against cost: FD against network evaluations per sample. Lower left is better."
    return drawing.block(caption, bar=BAR)


def scored(search: SearchResult | None) -> list[SearchCell]:
    """The cells of the search that have a score above zero: logarithms are drawn."""
    return [cell for cell in (search.cells if search else ()) if cell.fd]


def fd_against_w(c: Improve) -> Drawn | None:
    """The search: FD against w, one panel per method, one line per budget and number of samples."""
    search, cells = c.result.search, scored(c.result.search)
    methods = list(dict.fromkeys(cell.method for cell in cells if cell.budget is not None))
    if search is None or not methods:
        return None
    drawing = Drawing(c.palette, "strength", 2.75 * -(-len(methods) // 3) + 0.1)
    most, scores = max(cell.n for cell in cells), [cell.fd or 0.0 for cell in cells]
    low, high = min(scores) / 1.12, max(scores) * 1.12
    panels = drawing.panels(len(methods), sharey=True)
    for place, (axes, method) in enumerate(zip(panels, methods)):
        ours = [cell for cell in cells if cell.method == method]
        _w_panel(drawing, axes, ours, most, search.chosen.get(method))
        base = next((cell.fd for cell in cells if cell.budget is None and cell.n == most), None)
        drawing.line(axes, base, "dashed")
        _tell_search(drawing, [cell for cell in ours if cell.n == most], search.chosen.get(method), base)
        axes.set(title=c.palette.name(method), xlabel="w", ylabel="" if place % 3 else title(c.result, "fd"))
        plain_log(axes, "y", log_ticks(low, high))
        axes.set_ylim(low, high)
    return drawing.block(
        "FD against w in the search, logarithmic scale; w = 0 is the base. One line per budget or other setting. The "
        "lowest of many scores is flattering: judge by the results above.",
        ring="The ring marks the setting that was chosen.",
        dashed="The dashed line is the base on the same seeds.",
        pale="Pale lines are early rungs of the search with fewer samples: FD falls with their number, so they compare "
        "with each other only.",
        bar=JACKKNIFE,
    )


def _w_panel(drawing: Drawing, axes: Axes, cells: list[SearchCell], most: int, chosen: Chosen | None) -> None:
    """One method's lines; scores from fewer samples are pale and never joined with the others."""
    colour = drawing.palette[cells[0].method].light
    arms = sorted({_arm(cell) for cell in cells})
    for arm, n in sorted({(_arm(cell), cell.n) for cell in cells}):
        points = sorted((x for x in cells if (_arm(x), x.n) == (arm, n)), key=lambda cell: cell.w)
        full = n == most
        (line,) = axes.plot(
            [point.w for point in points],
            [point.fd or 0.0 for point in points],
            color=colour,
            alpha=1.0 if full else 0.35,
            linewidth=1.7 if full else 1.0,
            linestyle=DASHES[(len(arms) - 1 - arms.index(arm)) % len(DASHES)],  # the largest is solid
            marker="o",
            markersize=4.5 if full else 3,
            label=_said(points[0], chosen) if full else None,
        )
        if full:
            _half_bars(drawing, axes, points, lambda cell: cell.w)
        else:
            line.set_gid(drawing.mark("pale"))
    at = [cell for cell in cells if chosen and (cell.w, *_arm(cell)) == (chosen.w, *_arm(chosen))]
    if at:
        best = max(at, key=lambda cell: cell.n)
        (ring,) = axes.plot(best.w, best.fd or 0.0, "o", markersize=11, markerfacecolor="none", zorder=5)
        ring.set(markeredgecolor=INK, markeredgewidth=1.3, gid=drawing.mark("ring"))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", handlelength=3.6, fontsize=7.5, labelcolor=MUTED)


def _tell_search(drawing: Drawing, cells: Sequence[SearchCell], chosen: Chosen | None, base: float | None) -> None:
    """One method's lines of the most samples in words, the base's with them, and what was chosen."""
    for arm in sorted({_arm(cell) for cell in cells}):
        points = sorted((cell for cell in cells if _arm(cell) == arm), key=lambda cell: cell.w)
        start = [] if base is None else [("w 0", say.fixed(base, say.decimals([base])))]
        pairs = start + [(f"w {strength(cell.w)}", say.fixed(cell.fd, say.decimals([cell.fd]))) for cell in points]
        name = ", ".join(filter(None, (drawing.palette.name(points[0].method), _said(points[0], chosen))))
        least = min(points, key=lambda cell: cell.fd or 0.0)
        at, values = [place for place, _ in pairs], [value for _, value in pairs]
        drawing.tell(f"{say.told(name, at, values, len(pairs)).rstrip('.')}; least at w {strength(least.w)}.")
    if chosen:
        drawing.tell(f"Chosen: w {strength(chosen.w)}.")


def _arm(found: SearchCell | Chosen) -> tuple[int, float]:
    """What a line of the search has in common."""
    return found.budget or 0, found.extra or 0.0


def _said(cell: SearchCell, chosen: Chosen | None) -> str | None:
    """What a line is called: its budget, and the setting beside w."""
    budget = [f"{short_count(cell.budget)} images"] if cell.budget else []
    extra = [] if cell.extra is None or chosen is None else [f"{chosen.extra_name} {cell.extra:g}"]
    return ", ".join(budget + extra) or None


def _half_bars(drawing: Drawing, axes: Axes, cells: list[SearchCell], at: Callable[[SearchCell], float]) -> None:
    """The 95 % intervals of cells of the search, where they have one."""
    for cell in cells:
        if cell.half_width and cell.fd:
            ends, colour = (
                [max(cell.fd - cell.half_width, 1e-9), cell.fd + cell.half_width],
                drawing.palette[cell.method],
            )
            axes.plot([at(cell)] * 2, ends, color=colour.light, linewidth=1, alpha=0.6, gid=drawing.mark("bar"))


def fd_against_budget(c: Improve) -> Drawn | None:
    """Best FD over w at each budget in the search, and the final scores with their intervals."""
    cells = [cell for cell in scored(c.result.search) if cell.budget]
    methods = list(dict.fromkeys(cell.method for cell in cells))
    finals = [row for row in c.result.rows if row.budget and "fd" in row.figures]
    finals = [row for row in finals if not methods or row.label in methods]
    budgets = sorted({cell.budget or 0 for cell in cells} | {row.budget or 0 for row in finals})
    if len(budgets) < 2:
        return None
    drawing = Drawing(c.palette, "budget", 3.1)
    (axes,) = drawing.panels(1)
    for method in methods:
        swatch, best = c.palette[method], _best_by_budget([cell for cell in cells if cell.method == method])
        _half_bars(drawing, axes, best, lambda cell: cell.budget or 0)
        x, y = [cell.budget or 0 for cell in best], [cell.fd or 0.0 for cell in best]
        (line,) = axes.plot(x, y, marker=swatch.marker, color=swatch.light, linewidth=1.2, label=c.palette.name(method))
        line.set(markerfacecolor="none", markeredgecolor=swatch.light, gid=drawing.mark("hollow"))
        at, values = [f"{short_count(budget)} images" for budget in x], [say.fixed(fd, say.decimals(y)) for fd in y]
        drawing.tell(say.told(f"{c.palette.name(method)} in the search", at, values))
    for row in finals:
        label = "" if row.label in methods else c.palette.name(row.label)
        drawing.dot(axes, row.figures["fd"], row.budget or 0, row.label, kind="filled", label=label)
        value = say.fixed(row.mean("fd"), say.decimals(item.mean("fd") for item in finals))
        drawing.tell(f"{c.palette.name(row.label)}, final: {value} at {short_count(row.budget)} images.")
    plain_log(axes, "x", [float(budget) for budget in budgets])
    axes.xaxis.set_major_formatter(lambda value, _: short_count(float(value)))
    axes.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)
    axes.set(xlabel="budget: images the auxiliary was trained on", ylabel=title(c.result, "fd"))
    from_zero(axes)
    drawing.figure.legend(loc="outside right upper")
    return drawing.block(
        "FD against the auxiliary’s training budget.",
        filled="Filled: final scores.",
        hollow="Hollow, joined: the lowest FD over w at each budget in the rung of the search that compared the most "
        "budgets; from fewer samples, hence higher.",
        bar=JACKKNIFE,
    )


def _best_by_budget(cells: list[SearchCell]) -> list[SearchCell]:
    """The lowest cell of every budget in the rung that compared the most budgets; of several, the largest rung."""
    budgets = {n: {cell.budget for cell in cells if cell.n == n} for n in {cell.n for cell in cells}}
    widest = max(budgets, key=lambda n: (len(budgets[n]), n))
    rung = sorted((cell for cell in cells if cell.n == widest), key=lambda cell: (cell.budget or 0, cell.fd or 0.0))
    return [cell for place, cell in enumerate(rung) if not place or cell.budget != rung[place - 1].budget]


def cache_levels(cache: CacheResult) -> tuple[list[float], list[bool]]:
    """Noise levels and whether each recomputes; evaluations that follow one another at one level count as one."""
    merged: list[float] = []
    fresh: list[bool] = []
    for level, anew in zip(cache.levels, cache.refresh, strict=True):
        if merged and merged[-1] == level:
            fresh[-1] = fresh[-1] or anew
        else:
            merged.append(level)
            fresh.append(anew)
    return merged, fresh


def cache_strip(c: Improve, cache: CacheResult) -> Drawn:
    """Which noise levels recompute the guidance: one mark per level, from the noisiest to the cleanest."""
    levels, refresh = cache_levels(cache)
    drawing = Drawing(c.palette, "cache", 1.05)
    (axes,) = drawing.panels(1)
    row = next((row for row in c.result.rows if row.nfe == cache.nfe_cached), None)
    colour = c.palette[row.label].light if row else INK
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    for level, fresh in zip(levels, refresh):
        (mark,) = axes.plot(level, 0, "s", markersize=9, color=colour if fresh else "none", markeredgecolor=colour)
        mark.set(markeredgewidth=1.2, gid=drawing.mark("filled" if fresh else "hollow"))
    drawing.tell(f"At σ {', '.join(strength(level) for level, fresh in zip(levels, refresh) if fresh)}.")
    plain_log(axes, "x", log_ticks(min(levels), max(levels), 6))
    axes.set_xlim(max(levels) * 1.4, min(levels) / 1.4)  # as sampling goes: from noise to image
    axes.set(ylim=(-1, 1), yticks=[], xlabel="noise level σ, in the order of sampling")
    axes.spines["left"].set_visible(False)
    return drawing.block(
        f"The correction is recomputed at {sum(refresh)} of {len(refresh)} levels.",
        filled="Filled: the auxiliary is evaluated and the correction recomputed.",
        hollow="Hollow: the last correction is used again, scaled.",
    )


def rounds_plot(c: Improve) -> Drawn | None:
    """FD to the training images over the rounds, one line per row."""
    series: dict[str, list[tuple[float, float]]] = {}
    for item in c.result.rounds:
        for row in item.rows:
            if "fd" in row.figures:
                series.setdefault(row.label, []).append((item.round, row.figures["fd"].mean))
    if max((len(points) for points in series.values()), default=0) < 2:
        return None
    drawing = Drawing(c.palette, "rounds", 2.7)
    (axes,) = drawing.panels(1)
    for label, points in series.items():
        x, y = zip(*points)
        axes.plot(x, y, color=c.palette[label].light, marker=c.palette[label].marker, label=c.palette.name(label))
        at, values = [f"round {place:g}" for place in x], [say.fixed(fd, say.decimals(y)) for fd in y]
        drawing.tell(say.told(c.palette.name(label), at, values))
    axes.set_xticks(sorted({at for points in series.values() for at, _ in points}))
    axes.xaxis.set_major_formatter(lambda value, _: strength(float(value)))
    axes.set(xlabel="round", ylabel=title(c.result, "fd"))
    from_zero(axes)
    drawing.figure.legend(loc="outside right upper")
    return drawing.block("FD over the rounds; a round that did not improve was not kept.")
