"""The figures of a report, drawn from the summary; each returns None where the run has nothing to show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sims.report.numbers import short_count, strength
from sims.report.palette import INK, LINE, MUTED, Palette
from sims.report.record import Record, Row, base_row, interval, look, mean, number
from sims.report.svg import log_ticks, new_figure, plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell = dict[str, Any]
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)))


def fd_dots(record: Record, palette: Palette) -> Figure | None:
    """FD to the training images and to the test images of every row, with 95 % intervals."""
    rows = [row for row in record.rows if mean(row, "fd") is not None]
    if not rows:
        return None
    tested = any(mean(row, "fd_held_out") is not None for row in rows)
    figure = new_figure(0.9 + 0.3 * len(rows))
    panels = figure.subplots(1, 1 + tested, sharey=True, squeeze=False)[0]
    titles = ("FD to the training images", "FD to the test images")
    for axes, metric, title in zip(panels, ("fd", "fd_held_out"), titles):
        for place, row in enumerate(rows):
            _dot(axes, row, metric, place, palette)
        axes.set_title(title)
        axes.grid(axis="x")
        axes.set_xlim(0, 1.03 * axes.get_xlim()[1])
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        base = mean(base_row(rows), metric)
        if base is not None:
            axes.axvline(base, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    floor = number(record.part("floor").get("fd"))
    if tested and floor is not None:
        panels[1].axvline(floor, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=0)
    panels[0].set_yticks(range(len(rows)), [str(row.get("label") or row.get("method")) for row in rows])
    panels[0].tick_params(axis="y", labelcolor=INK)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _dot(axes: Axes, row: Row, metric: str, place: int, palette: Palette) -> None:
    value = interval(row.get(metric))
    if value is None:
        return
    swatch = palette[look(row)]
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [place, place], color=swatch.light, linewidth=2.2, solid_capstyle="butt")
    axes.plot(value.mean, place, swatch.marker, color=swatch.light, markersize=7, clip_on=False)


def cost_dots(record: Record, palette: Palette) -> Figure | None:
    """FD to the training images against network evaluations per sample."""
    rows = [row for row in record.rows if mean(row, "fd") is not None and (number(row.get("nfe")) or 0) > 0]
    if len({row["nfe"] for row in rows}) < 2:
        return None
    figure = new_figure(3.1)
    axes = figure.subplots()
    for row in rows:
        value, swatch = interval(row["fd"]), palette[look(row)]
        assert value is not None
        if value.low is not None and value.high is not None:
            axes.plot([row["nfe"]] * 2, [value.low, value.high], color=swatch.light, linewidth=2)
        label = str(row.get("label") or row.get("method"))
        axes.plot(
            row["nfe"], value.mean, swatch.marker, color=swatch.light, markersize=8, linestyle="none", label=label
        )
    axes.set_xlabel("network evaluations per sample")
    axes.set_ylabel("FD to the training images")
    axes.grid()
    axes.set_xlim(0, 1.06 * max(row["nfe"] for row in rows))
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    axes.tick_params(length=0)
    figure.legend(loc="outside right upper")
    return figure


def search_cells(record: Record) -> list[Cell]:
    """The cells of the search that have a score above zero and a strength."""
    cells = [cell for cell in record.part("search").get("cells") or [] if isinstance(cell, dict)]
    return [cell for cell in cells if (number(cell.get("fd")) or 0) > 0 and number(cell.get("w")) is not None]


def fd_against_w(record: Record, palette: Palette, names: dict[str, str]) -> Figure | None:
    """The search: FD against w, one panel per method, one line per budget and number of samples."""
    cells = search_cells(record)
    methods = list(dict.fromkeys(str(cell.get("method")) for cell in cells if cell.get("method") != "base"))
    if not methods:
        return None
    columns = min(3, len(methods))
    lines = math.ceil(len(methods) / columns)
    figure = new_figure(2.75 * lines + 0.1)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    most = max(number(cell.get("n")) or 0 for cell in cells)
    scores = [cell["fd"] for cell in cells]
    low, high = min(scores) / 1.12, max(scores) * 1.12
    base = next((cell["fd"] for cell in cells if cell.get("method") == "base" and (cell.get("n") or 0) == most), None)
    for axes, method in zip(grid.flat, methods):
        chosen = (record.part("search").get("chosen") or {}).get(method) or {}
        _w_panel(axes, [cell for cell in cells if cell.get("method") == method], most, palette[method].light, chosen)
        if base is not None:
            axes.axhline(base, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set_title(names.get(method, method))
        axes.set_xlabel("w")
        axes.grid()
        plain_log(axes, "y", log_ticks(low, high))
        axes.set_ylim(low, high)
        axes.tick_params(length=0)
    for axes in list(grid.flat)[len(methods) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("FD to the training images")
    return figure


def _w_panel(axes: Axes, cells: list[Cell], most: float, colour: str, chosen: dict[str, Any]) -> None:
    """One method's lines; scores from fewer samples are pale and never joined with the others."""
    budgets = sorted({number(cell.get("budget")) or 0 for cell in cells})
    for place, budget in enumerate(budgets):
        for n in sorted({number(cell.get("n")) or 0 for cell in cells}):
            points = [c for c in cells if (number(c.get("budget")) or 0, number(c.get("n")) or 0) == (budget, n)]
            points = sorted(points, key=lambda cell: cell["w"])
            if not points:
                continue
            full = n == most
            pairs = [point["w"] for point in points], [point["fd"] for point in points]
            for point in points if full else []:
                _bar(axes, point["w"], point, colour)
            axes.plot(
                *pairs,
                color=colour,
                alpha=1.0 if full else 0.35,
                linewidth=1.7 if full else 1.0,
                linestyle=DASHES[(len(budgets) - 1 - place) % len(DASHES)],  # the largest is solid
                marker="o",
                markersize=4.5 if full else 3,
                label=f"{short_count(budget)} images" if full and budget else None,
            )
    at = [c for c in cells if c.get("w") == chosen.get("w") and c.get("budget") == chosen.get("budget")]
    if at:
        best = max(at, key=lambda cell: number(cell.get("n")) or 0)
        axes.plot(best["w"], best["fd"], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, zorder=5)
        axes.lines[-1].set_markeredgewidth(1.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", handlelength=3.6, fontsize=7.5, labelcolor=MUTED)


def _bar(axes: Axes, place: float, cell: Cell, colour: str) -> None:
    """The 95 % interval of a cell of the search, where it has one."""
    if half := number(cell.get("half_width")):
        ends = [max(cell["fd"] - half, 1e-9), cell["fd"] + half]
        axes.plot([place, place], ends, color=colour, linewidth=1, alpha=0.6)


def fd_against_budget(record: Record, palette: Palette, names: dict[str, str]) -> Figure | None:
    """Best FD over w at each budget in the search, and the final scores with their intervals."""
    cells = [cell for cell in search_cells(record) if (number(cell.get("budget")) or 0) > 0]
    methods = list(dict.fromkeys(str(cell.get("method")) for cell in cells))
    finals = [row for row in record.rows if (number(row.get("budget")) or 0) > 0 and mean(row, "fd") is not None]
    finals = [row for row in finals if not methods or look(row) in methods]
    budgets = sorted({cell["budget"] for cell in cells} | {row["budget"] for row in finals})
    if len(budgets) < 2:
        return None
    figure = new_figure(3.1)
    axes = figure.subplots()
    for method in methods:
        swatch = palette[method]
        ours = _widest([cell for cell in cells if cell["method"] == method])
        best = [
            min((c for c in ours if c["budget"] == budget), key=lambda cell: cell["fd"])
            for budget in sorted({c["budget"] for c in ours})
        ]
        for cell in best:
            _bar(axes, cell["budget"], cell, swatch.light)
        axes.plot(
            [cell["budget"] for cell in best],
            [cell["fd"] for cell in best],
            marker=swatch.marker,
            color=swatch.light,
            linewidth=1.2,
            label=names.get(method, method),
        )
        axes.lines[-1].set(markerfacecolor="none", markeredgecolor=swatch.light)
    labelled = set(methods)
    for row in finals:
        method, value = look(row), interval(row["fd"])
        assert value is not None
        swatch = palette[method]
        if value.low is not None and value.high is not None:
            axes.plot([row["budget"]] * 2, [value.low, value.high], color=swatch.light, linewidth=2.2)
        label = None if method in labelled else names.get(method, method)
        labelled.add(method)
        axes.plot(
            row["budget"], value.mean, swatch.marker, color=swatch.light, markersize=8, linestyle="none", label=label
        )
    plain_log(axes, "x", budgets)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(float(value)))
    axes.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    axes.set_xlabel("budget: images the auxiliary was trained on")
    axes.set_ylabel("FD to the training images")
    axes.grid()
    axes.tick_params(length=0)
    if labelled:
        figure.legend(loc="outside right upper")
    return figure


def _widest(cells: list[Cell]) -> list[Cell]:
    """The cells of the rung of a search that compared the most budgets; of several, the one with the most samples."""
    rungs: dict[float, list[Cell]] = {}
    for cell in cells:
        rungs.setdefault(number(cell.get("n")) or 0, []).append(cell)
    return max(rungs.items(), key=lambda item: (len({cell["budget"] for cell in item[1]}), item[0]))[1]


def cache_strip(record: Record, palette: Palette) -> Figure | None:
    """Which noise levels recompute the guidance: one mark per level, from the noisiest to the cleanest."""
    cache = record.part("cache")
    levels, refresh = cache_levels(cache)
    if not levels or len(levels) != len(refresh) or any((number(level) or 0) <= 0 for level in levels):
        return None
    figure = new_figure(1.05)
    axes = figure.subplots()
    colour = palette["cached"].light if palette["cached"].variable != "muted" else INK
    axes.axhline(0, color=LINE, linewidth=1, zorder=0)
    for level, fresh in zip(levels, refresh):
        axes.plot(level, 0, "s", markersize=9, color=colour if fresh else "none", markeredgecolor=colour)
        axes.lines[-1].set_markeredgewidth(1.2)
    plain_log(axes, "x", log_ticks(min(levels), max(levels), 6))
    axes.set_xlim(max(levels) * 1.4, min(levels) / 1.4)  # as sampling goes: from noise to image
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("noise level σ, in the order of sampling")
    return figure


def cache_levels(cache: dict[str, Any]) -> tuple[list[Any], list[bool]]:
    """Noise levels and whether each recomputes; evaluations that follow one another at one level count as one."""
    levels, refresh = cache.get("levels") or [], cache.get("refresh") or []
    merged: list[Any] = []
    fresh: list[bool] = []
    for level, anew in zip(levels, refresh):
        if merged and merged[-1] == level:
            fresh[-1] = fresh[-1] or bool(anew)
        else:
            merged.append(level)
            fresh.append(bool(anew))
    return (merged, fresh) if len(levels) == len(refresh) else ([], [])


def memorization_dots(record: Record, palette: Palette) -> Figure | None:
    """Share of samples nearer to a training image than 99 % of held-out images are, per row."""
    rows = [row for row in record.rows if mean(row, "memorized") is not None]
    if not rows:
        return None
    figure = new_figure(0.75 + 0.28 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found = interval(row["memorized"])
        assert found is not None
        ends = {"mean": 100 * found.mean}
        if found.low is not None and found.high is not None:
            ends |= {"low": 100 * found.low, "high": 100 * found.high}
        _dot(axes, row | {"memorized": ends}, "memorized", place, palette)
    axes.axvline(1, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=0)
    most = 1.08 * max(1.5, axes.get_xlim()[1])
    axes.set_xlim(-0.02 * most, most)  # room for dots at zero
    axes.set_yticks(range(len(rows)), [str(row.get("label") or row.get("method")) for row in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("samples nearer to a training image than 99 % of held-out images are, in %")
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return figure


def rounds_plot(record: Record, palette: Palette) -> Figure | None:
    """FD to the training images over the rounds, one line per method."""
    series: dict[str, list[tuple[float, float]]] = {}
    for item in record.items("rounds"):
        for row in item.get("rows") or []:
            value, at = mean(row, "fd"), number(item.get("round"))
            if value is not None and at is not None:
                series.setdefault(str(row.get("label") or row.get("method")), []).append((at, value))
    if max((len(points) for points in series.values()), default=0) < 2:
        return None
    methods = {
        str(r.get("label") or r.get("method")): r for item in record.items("rounds") for r in item.get("rows") or []
    }
    figure = new_figure(2.7)
    axes = figure.subplots()
    for label, points in series.items():
        swatch = palette[look(methods[label])]
        axes.plot(*zip(*points), color=swatch.light, marker=swatch.marker, markersize=6, label=label)
    axes.set_xticks(sorted({at for points in series.values() for at, _ in points}))
    axes.xaxis.set_major_formatter(lambda value, _: strength(float(value)))
    axes.set_xlabel("round")
    axes.set_ylabel("FD to the training images")
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    axes.grid()
    axes.tick_params(length=0)
    figure.legend(loc="outside right upper")
    return figure
