"""Proportions: what was asked for, what the contenders have, and what the solver saw on its way."""

from __future__ import annotations

from collections.abc import Sequence

from sims.report.blocks import Cell, Column, Drawn, Table, table
from sims.report.context import Context
from sims.report.numbers import DASH, count, fixed, percent, short_name, strength
from sims.report.palette import INK, LINE
from sims.report.svg import Drawing, name_rows
from sims.results.common import Figure
from sims.results.shift import Bounded, Shares, ShiftResult, ShiftRow, SolverResult, SolverRound

Shift = Context[ShiftResult]


def value_of(found: Bounded) -> Figure | None:
    """A distance to the target as a figure; None where it is not finite."""
    return None if found.value is None else Figure(found.value, found.low, found.high)


def share(shares: Shares, place: int) -> Figure:
    return Figure(shares.values[place], shares.low[place], shares.high[place])


def share_text(shares: Shares, place: int) -> str:
    low, high = 100 * shares.low[place], 100 * shares.high[place]
    return f"{percent(shares.values[place])} [{fixed(low, 1)}, {fixed(high, 1)}]"


def farthest(result: ShiftResult, most: int) -> list[int]:
    """The values whose share the target changes most, in their own order."""
    base = result.base.proportions.values
    away = [round(abs(wanted - was), 6) for wanted, was in zip(result.target, base)]
    return sorted(sorted(range(len(away)), key=lambda place: away[place], reverse=True)[:most])


def share_plot(c: Shift, rows: Sequence[ShiftRow], places: Sequence[int]) -> Drawn:
    """A line per value: the target as a stroke, the contenders as dots with intervals."""
    values = c.result.values
    drawing = Drawing("proportions", 0.8 + len(places) * (0.16 + 0.13 * len(rows)))
    (axes,) = drawing.panels(1)
    reach = 0.3 if len(rows) > 1 else 0.0
    for index, row in enumerate(rows):
        swatch = c.palette[row.label]
        for line, place in enumerate(places):
            value, at = share(row.proportions, place), line + 2 * reach * index / max(1, len(rows) - 1) - reach
            drawing.bar(axes, value, at, swatch.light, upright=False)
            axes.plot(value.mean, at, swatch.marker, color=swatch.light, markersize=6, clip_on=False)
        label = short_name(c.palette.name(row.label))
        axes.plot([], [], swatch.marker, color=swatch.light, linestyle="none", label=label)
    for line, place in enumerate(places):
        axes.axhline(line + 0.5, color=LINE, linewidth=0.6, zorder=0)
        x = [c.result.target[place]] * 2
        axes.plot(x, [line - 0.46, line + 0.46], color=INK, linewidth=1.6, zorder=1, gid=drawing.mark("stroke"))
    axes.plot([], [], "|", color=INK, markersize=10, markeredgewidth=1.6, markeredgecolor=INK, label="target")
    name_rows(axes, [short_name(values[place]) for place in places])
    axes.set_xlim(0, min(1.0, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{strength(100 * float(value))} %")
    drawing.figure.legend(loc="outside upper left", ncols=5)
    alt = "Dot plot of the share of every value: the target, the base and the steered models, with 95 % intervals."
    caption = "Shares by the judge, corrected for its errors, on evaluation seeds."
    if len(places) < len(values):
        caption += f" The {len(places)} values that the target changes most; all {len(values)} are in the table."
    said = {"bar": "Bars are 95 % intervals.", "stroke": "Dark strokes: the target."}
    return drawing.block(c.palette, alt, caption, **said)


def share_table(c: Shift, rows: Sequence[ShiftRow]) -> Table | None:
    """Target, share among the labelled training images, and each contender's share with its interval."""
    result, total = c.result, sum(c.result.real_counts)

    def column(row: ShiftRow) -> Column[int]:
        return Column(c.palette.name(row.label), lambda place: share_text(row.proportions, place))

    columns: list[Column[int]] = [
        Column(result.attribute, lambda place: result.values[place], False),
        Column("target", lambda place: percent(result.target[place])),
        Column("real data", lambda place: percent(result.real_counts[place] / total)),
        *map(column, rows),
    ]
    return table(range(len(result.values)), columns) if rows else None


def uncorrected_table(c: Shift) -> Table | None:
    """The judge's shares as it calls them, and what the steering classifier says, corrected."""

    def columns(row: ShiftRow) -> list[Column[int]]:
        group = f"{c.palette.name(row.label)}, n = {count(row.steering.n)}"
        return [
            Column("judge, raw", lambda place: percent(row.proportions.raw[place]), group=group),
            Column("steering", lambda place: percent(row.steering.values[place]), group=group),
        ]

    rows = [row for row in c.result.rows if not row.baseline]
    names = Column[int](c.result.attribute, lambda place: c.result.values[place], False)
    return table(range(len(c.result.values)), [names, *(column for row in rows for column in columns(row))])


def trained_table(c: Shift, solver: SolverResult) -> Table | None:
    """A line per value: target, base, what was expected to be reachable, and each auxiliary's training data."""
    result = c.result
    trained = {f"round {item.round}": item.proportions for item in solver.rounds}
    plans = {"target": result.target, "base": solver.base.values, "expected": solver.expected, **trained}

    def column(title: str, values: Sequence[float]) -> Column[int]:
        return Column(title, lambda place: percent(values[place]) if values else DASH)

    columns = [Column[int]("value", lambda place: result.values[place], False)]
    columns += [column(title, values) for title, values in plans.items()]
    caption = "Proportions of each auxiliary’s training data, beside the target, the base and what was expected of it."
    return table(range(len(result.values)), columns, caption)


def reached_table(c: Shift, solver: SolverResult) -> Table | None:
    result = c.result

    def column(item: SolverRound) -> Column[int]:
        def cell(place: int) -> Cell:
            limits = f"95 %: {percent(item.low[place])} to {percent(item.high[place])}"
            return Cell(percent(item.values[place]), title=limits)

        return Column(f"round {item.round}, w\u00a0=\u00a0{strength(item.w)}", cell)

    columns: list[Column[int]] = [
        Column("value", lambda place: result.values[place], False),
        Column("target", lambda place: percent(result.target[place])),
        Column("base", lambda place: percent(solver.base.values[place])),
        *map(column, solver.rounds),
    ]
    return table(range(len(result.values)), columns, "By the steering classifier, corrected for its errors.")
