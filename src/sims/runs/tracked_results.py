"""What a finished run found, for its trackers: the search, the scores, the grids."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sims.arrays import read_arrays
from sims.data.pictures import contact_sheet
from sims.errors import UserError
from sims.results.common import Figure, Result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.shift import ShiftResult
from sims.runs.tracking import Points, Tracking

SHOWN, ACROSS = 64, 8  # images of a grid, and in a row of it


def track_result(tracking: Tracking, result: Result) -> None:
    """Everything that has not been logged yet of a finished run, its trainings included; what cannot be read is not."""
    try:
        _track_result(tracking, result)
    except (UserError, OSError) as error:
        tracking.warn(f"WARNING: trackers lack a part of the run ({error})")


def _track_result(tracking: Tracking, result: Result) -> None:
    tracking.earlier()
    for title, points in lines_of(result).items():
        tracking.line(title, points)
    file = tracking.run / "grids.npz"
    for key, images in read_arrays(file).items() if file.is_file() else ():
        if images.dtype == np.uint8 and images.ndim == 4 and images.size:
            tracking.images(f"samples/{key}", sheet_of(images))


def lines_of(result: Result) -> dict[str, Points]:
    """The lines of a result by their titles: scores of rows at 0, of arms by generation or level, the search by w."""
    if isinstance(result, LoopResult | PollutionResult):
        places = result.levels if isinstance(result, PollutionResult) else tuple(range(result.generations + 1))
        return {
            f"scores of {result.repeats} repeats, {figure}/{arm}": [
                (float(place), Figure.of(values).mean) for place, values in zip(places, curve)
            ]
            for figure, arms in result.curves.items()
            for arm, curve in arms.items()
        }
    assert isinstance(result, ImproveResult | ShiftResult)
    found: dict[str, Points] = {
        f"scores, {figure}/{row.label}": [(0.0, value.mean)]
        for row in result.rows
        for figure, value in row.figures.items()
    }
    if isinstance(result, ImproveResult) and result.search is not None:
        searched: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for cell in result.search.cells:
            if cell.budget is not None and cell.fd is not None:
                extra = "" if cell.extra is None else f", {cell.extra:g}"
                searched[f"search, fd by w/{cell.method}, budget {cell.budget}{extra}, n {cell.n}"].append(
                    (cell.w, cell.fd)
                )
        found |= {title: sorted(points) for title, points in searched.items()}
    return found


def sheet_of(images: np.ndarray) -> np.ndarray:
    """Images uint8 (n, H, W, C) side by side, as one (H', W', 3)."""
    sheet = contact_sheet(images[:SHOWN], min(len(images), ACROSS)).transpose(1, 2, 0)
    return sheet if sheet.shape[2] == 3 else sheet[..., :1].repeat(3, -1)
