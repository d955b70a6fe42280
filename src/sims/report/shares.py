"""Proportions: what was asked for, what the contenders have, and what the solver saw on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sims.report import numbers as say
from sims.report.blocks import Cell, Column, Drawn, Table, table
from sims.report.context import Context
from sims.report.palette import INK, LINE
from sims.report.svg import Drawing, name_rows
from sims.results.common import Figure
from sims.results.shift import Bounded, ShiftResult, ShiftRow

Shift = Context[ShiftResult]
MOST = 16  # values in a figure


def value_of(found: Bounded) -> Figure | None:
    """A distance to the target as a figure; None where it is not finite."""
    return None if found.value is None else Figure(found.value, found.low, found.high)


def farthest(result: ShiftResult, most: int) -> list[int]:
    """The values whose share the target changes most, in their own order."""
    base = result.base.proportions.values
    away = [round(abs(wanted - was), 6) for wanted, was in zip(result.target, base)]
    return sorted(sorted(range(len(away)), key=lambda place: away[place], reverse=True)[:most])


def percents(shares: Sequence[float]) -> list[str]:
    return [say.percent(share) for share in shares]


def value_table(c: Shift, columns: Mapping[str, Sequence[Cell | str]], caption: str = "") -> Table | None:
    """A line per value of the attribute, beginning with the target."""
    named = [Column(c.result.attribute, c.result.values, False), Column("target", percents(c.result.target))]
    return table([*named, *(Column(title, cells) for title, cells in columns.items())], caption) if columns else None


def share_table(c: Shift, rows: Sequence[ShiftRow]) -> Table | None:
    """The share among the labelled training images, and each contender's with its interval."""
    columns = {"real data": percents([count / sum(c.result.real_counts) for count in c.result.real_counts])}
    for row in rows:
        found = row.proportions
        limits = [f"[{say.fixed(100 * a, 1)}, {say.fixed(100 * b, 1)}]" for a, b in zip(found.low, found.high)]
        shares = zip(percents(found.values), limits)
        columns[c.palette.name(row.label)] = [f"{share} {limit}" for share, limit in shares]
    return value_table(c, columns) if rows else None


def uncorrected_table(c: Shift, rows: Sequence[ShiftRow]) -> Table | None:
    """The judge's shares as it calls them, and what the steering classifier says, corrected."""
    columns: dict[str, list[str]] = {}
    for row in rows:
        name = c.palette.name(row.label)
        columns[f"{name}, judge, raw"] = percents(row.proportions.raw)
        columns[f"{name}, steering, n = {say.count(row.steering.n)}"] = percents(row.steering.values)
    return value_table(c, columns)


def trained_table(c: Shift) -> Table | None:
    """Base, what was expected to be reachable, and each auxiliary's training data."""
    solver = c.result.solver
    columns = {"base": percents(solver.base.values), "expected": percents(solver.expected)}
    columns |= {f"round {item.round}": percents(item.proportions) for item in solver.rounds}
    caption = "Proportions of each auxiliary’s training data, beside the target, the base and what was expected of it."
    return value_table(c, columns, caption)


def reached_table(c: Shift) -> Table | None:
    """What every strength that was tried gave."""
    columns: dict[str, Sequence[Cell | str]] = {"base": percents(c.result.solver.base.values)}
    for item in c.result.solver.rounds:
        limits = [f"95 %: {say.percent(low)} to {say.percent(high)}" for low, high in zip(item.low, item.high)]
        cells = [Cell(share, title=limit) for share, limit in zip(percents(item.values), limits)]
        columns[f"round {item.round}, w\u00a0=\u00a0{say.strength(item.w)}"] = cells
    return value_table(c, columns, "By the steering classifier, corrected for its errors.")


def share_plot(c: Shift, rows: Sequence[ShiftRow], places: Sequence[int], id: str = "proportions") -> Drawn:
    """A line per value: the target as a stroke, the contenders as dots with intervals."""
    names = c.result.values
    drawing = Drawing(c.palette, id, 0.8 + len(places) * (0.16 + 0.13 * len(rows)))
    (axes,) = drawing.panels(1)
    reach = 0.3 if len(rows) > 1 else 0.0
    for index, row in enumerate(rows):
        shares, off = row.proportions, 2 * reach * index / max(1, len(rows) - 1) - reach
        for line, place in enumerate(places):
            value = Figure(shares.values[place], shares.low[place], shares.high[place])
            label = "" if line else say.short_name(c.palette.name(row.label))
            drawing.dot(axes, value, line + off, row.label, upright=False, label=label)
        shown = percents([shares.values[place] for place in places])
        drawing.tell(say.told(c.palette.name(row.label), [names[place] for place in places], shown, len(places)))
    for line, place in enumerate(places):
        axes.axhline(line + 0.5, color=LINE, linewidth=0.6, zorder=0)
        x, y = [c.result.target[place]] * 2, [line - 0.46, line + 0.46]
        axes.plot(x, y, color=INK, linewidth=1.6, zorder=1, gid=drawing.mark("stroke"))
    wanted = percents([c.result.target[place] for place in places])
    drawing.tell(say.told("target", [names[place] for place in places], wanted, len(places)))
    axes.plot([], [], "|", color=INK, markersize=10, markeredgewidth=1.6, markeredgecolor=INK, label="target")
    name_rows(axes, [say.short_name(names[place]) for place in places])
    axes.set_xlim(0, min(1.0, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{say.strength(100 * float(value))} %")
    drawing.figure.legend(loc="outside upper left", ncols=5)
    caption = "Shares of every value by the judge, corrected for its errors, on evaluation seeds."
    if len(places) < len(names):
        caption += f" The {len(places)} values that the target changes most; all {len(names)} are in the table."
    return drawing.block(caption, bar="Bars are 95 % intervals.", stroke="Dark strokes: the target.")
