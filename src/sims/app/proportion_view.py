"""Proportions before and after: bars with intervals, the same as a table, and pictures of every group."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

from PIL import Image

from sims.app.preview import tile
from sims.report.strips import read_pictures, split_key
from sims.results.shift import ShiftResult, ShiftRow

MOST = 24  # values of the attribute that are drawn
INK = "#1b2230"


def shown_rows(result: ShiftResult) -> list[ShiftRow]:
    """The base, what was saved, and the others but for the baselines."""
    return [row for row in result.rows if not row.baseline]


def draw_bars(result: ShiftResult) -> Image.Image:
    """A group of bars for every value, with 95 % intervals; the target as strokes."""
    from matplotlib.figure import Figure  # here: only who looks at proportions needs it

    rows, names = shown_rows(result), [name[:16] for name in result.values[:MOST]]
    figure = Figure(figsize=(max(6.0, 0.7 * len(names) + 2), 4.0), dpi=110, layout="constrained")
    axes, width = figure.subplots(), 0.8 / max(1, len(rows))
    for index, row in enumerate(rows):
        found = row.proportions
        x = [place + width * (index - (len(rows) - 1) / 2) for place in range(len(names))]
        y = found.values[:MOST]
        errors = [
            [max(0.0, value - low) for value, low in zip(y, found.low)],
            [max(0.0, high - value) for value, high in zip(y, found.high)],
        ]
        look = result.looks.get(row.method)
        axes.bar(x, y, width, yerr=errors, capsize=2, label=row.label, color=look.light if look else None)
    for place, wanted in enumerate(result.target[:MOST]):
        axes.plot([place - 0.45, place + 0.45], [wanted] * 2, color=INK, linewidth=2, label="" if place else "target")
    axes.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 4 else 0)
    axes.set_ylabel(f"share of {result.attribute}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    figure.legend(loc="outside upper left", fontsize=8, ncols=5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def share_html(result: ShiftResult) -> str:
    """The same numbers as a table."""
    rows = shown_rows(result)
    head = "".join(f"<th>{escape(row.label)}</th>" for row in rows)
    lines = []
    for place, name in enumerate(result.values):
        cells = "".join(
            f"<td>{100 * row.proportions.values[place]:.1f} % "
            f"[{100 * row.proportions.low[place]:.1f}, {100 * row.proportions.high[place]:.1f}]</td>"
            for row in rows
        )
        lines.append(f"<tr><td>{escape(name)}</td><td>{100 * result.target[place]:.1f} %</td>{cells}</tr>")
    title = f"<th>{escape(result.attribute)}</th><th>target</th>"
    return f"<div class='wide'><table><tr>{title}{head}</tr>{''.join(lines)}</table></div>"


def group_pictures(run: Path, result: ShiftResult) -> list[tuple[Image.Image, str]]:
    """Pictures that the run kept of every group, with what each is: model and value."""
    found = []
    for key, images in read_pictures(run).images.items():
        label, _, place = split_key(key)[0].rpartition("#")
        if label and place.isdecimal() and int(place) < len(result.values):
            name = f"{label}: {result.values[int(place)]}"
            found += [(tile(image, 64), name) for image in images[:8]]
    return found
