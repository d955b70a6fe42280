"""What a search measured: FD against strength, as a picture in which points can be clicked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sims.results.improve import ImproveResult, SearchCell

SIZE, DPI = (8.6, 4.2), 110


@dataclass(frozen=True)
class Curves:
    """The picture, the measurements in it, and where each of them lies, in pixels from the upper left (n, 2)."""

    image: Image.Image
    cells: tuple[SearchCell, ...]
    places: np.ndarray

    def at(self, x: float, y: float) -> int | None:
        """The measurement nearest to a pixel; None where there are none."""
        if not len(self.places):
            return None
        return int(np.square(self.places - np.array([x, y])).sum(axis=1).argmin())


def last_cells(cells: Sequence[SearchCell], method: str) -> list[SearchCell]:
    """A method's measurements that came to a distance, of each setting the one with the most samples."""
    best: dict[tuple[object, ...], SearchCell] = {}
    for cell in cells:
        key = (cell.budget, cell.w, cell.extra)
        if cell.method == method and cell.fd is not None and (key not in best or cell.n >= best[key].n):
            best[key] = cell
    return sorted(best.values(), key=lambda cell: (cell.budget or 0, cell.extra or 0.0, cell.w))


def said(cell: SearchCell, extra: str = "") -> str:
    """Such as "w 2.5, budget 64,000: FD 20.1 ± 1.2 (n = 3,000)"."""
    parts = [f"w {cell.w:g}"]
    parts += [f"{extra or 'setting'} {cell.extra:g}"] if cell.extra is not None else []
    parts += [f"budget {cell.budget:,}"] if cell.budget else []
    half = f" ± {cell.half_width:.3g}" if cell.half_width is not None else ""
    return f"{', '.join(parts)}: FD {cell.fd or 0.0:.4g}{half} (n = {cell.n:,})"


def draw_curves(result: ImproveResult, method: str, extra: str = "") -> Curves:
    """FD against w, a line for every budget and extra setting, with intervals; low distances on a log scale."""
    from matplotlib.figure import Figure  # here: only who looks at a search needs it

    cells = tuple(last_cells(result.search.cells if result.search else (), method))
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[int | None, float | None], list[SearchCell]] = {}
    for cell in cells:
        lines.setdefault((cell.budget, cell.extra), []).append(cell)
    for (budget, setting), line in lines.items():
        name = [f"{budget:,} images"] if budget else []
        name += [f"{extra or 'setting'} {setting:g}"] if setting is not None else []
        x, y = [cell.w for cell in line], [cell.fd or 0.0 for cell in line]
        bars = [min(cell.half_width or 0.0, 0.9 * (cell.fd or 0.0)) for cell in line]
        axes.errorbar(x, y, bars, marker="o", markersize=6, capsize=2, linewidth=1.2, label=", ".join(name) or method)
    if cells:
        axes.set_yscale("log")
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xticks(strengths := sorted({cell.w for cell in cells}), [f"{w:g}" for w in strengths], rotation=60)
        axes.minorticks_off()
        axes.legend(fontsize=8, ncols=3)
    axes.set_xlabel("w (strength of guidance)")
    axes.set_ylabel("FD to the training data")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    points = np.array([(cell.w, cell.fd or 0.0) for cell in cells]).reshape(-1, 2)
    places = axes.transData.transform(points) if len(points) else points
    return Curves(image, cells, np.column_stack([places[:, 0], image.height - places[:, 1]]))
