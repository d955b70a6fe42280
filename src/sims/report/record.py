"""What a run directory says, cleaned for display: `summary.json` and, where present, `grids.npz`.

`summary.json` (format 1); every key but `format` and `rows` may be absent, and its section then disappears:

    title, headline, verified, warnings, data, extractor, floor, rows, search, costs, cache, rounds, comparisons,
    commands, config_toml, versions, seconds, stages

A figure is a number or an interval {"mean", "low", "high"} (95 %), of several draws also with their "min". NaN and
infinities read as None, shown as "–".
Conventions: `comparisons[].difference` is a − b; `cache.retained_*`, `share`, `agreement`, `memorized` are fractions;
`rows[].fd_*` are Fréchet distances and `kid_held_out` the squared kernel distance to the test images, lower is better;
`precision` and `recall` higher is better; `distance_ratio` is the median distance to the nearest training image,
samples over held-out images (1 = as far as held-out images are). `rows[].retained` {fd, fd_held_out} is the share of
the gain of sims over the base, as is `retained` in `cache.tried`, a list of samplers {steps, refreshes, nfe, retained}.
Figures of a second extractor, which nothing was chosen with, have the prefix `check_`. `search.cells` hold {method,
budget, w, n, fd, half_width}, the last being half a 95 % interval or None; `base` is the base on the same seeds.

`grids.npz`: arrays `method@w`, uint8 (n, H, W, C) of the same seeds each, `seeds` (n,), and optionally
`real` (training images) and `nearest` (the training image nearest to each sample of the main method).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
Row = dict[str, Any]
VARIANTS = {"sims (cached)": "cached", "sims (fast)": "fast"}  # labels of one method that look different


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; low and high are None where the run had a single draw."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Record:
    """A run directory in memory: the cleaned summary and the sample grids."""

    summary: dict[str, Any]
    grids: dict[str, np.ndarray] = field(default_factory=dict)  # "method@w" → uint8 (n, H, W, C)
    seeds: list[int] = field(default_factory=list)
    real: np.ndarray | None = None
    nearest: np.ndarray | None = None
    points: dict[str, np.ndarray] = field(default_factory=dict)  # "arm@generation" → (n, 2)

    def part(self, name: str) -> dict[str, Any]:
        """A dict-valued part of the summary, empty where absent."""
        value = self.summary.get(name)
        return value if isinstance(value, dict) else {}

    def items(self, name: str) -> list[Any]:
        """A list-valued part of the summary, empty where absent."""
        value = self.summary.get(name)
        return value if isinstance(value, list) else []

    @property
    def rows(self) -> list[Row]:
        return [row for row in self.items("rows") if isinstance(row, dict)]


def read_record(run_dir: Path) -> Record:
    """Read a run directory; raises UserError where it holds no readable summary."""
    path = Path(run_dir) / "summary.json"
    if not path.is_file():
        raise UserError(
            f"{run_dir} holds no summary.json: a report needs a finished run; run the same command to finish it"
        )
    try:
        summary = clean(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise UserError(f"{path} is not valid JSON ({error}): run the same command again to write it anew") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path} holds a {type(summary).__name__}, not a table of results: it was not written by sims")
    if summary.get("format") != FORMAT:
        found = summary.get("format")
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT}: use the version that wrote it")
    return _with_grids(summary, Path(run_dir) / "grids.npz")


def clean(value: Any) -> Any:
    """The same JSON value with NaN and infinities as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def _with_grids(summary: dict[str, Any], path: Path) -> Record:
    if not path.is_file():
        return Record(summary)
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and numpy raise a dozen kinds for a torn or foreign file
        raise UserError(f"{path} cannot be read ({error}): delete it to get the report without images") from error
    seeds = [int(seed) for seed in arrays.pop("seeds", [])]
    images = {name: array for name, array in arrays.items() if _is_images(array)}
    real, nearest = images.pop("real", None), images.pop("nearest", None)
    points = {name: array for name, array in arrays.items() if array.ndim == 2 and array.shape[1] == 2}
    return Record(summary, images, seeds, real, nearest, points)


def _is_images(array: Any) -> bool:
    return array.dtype.name == "uint8" and array.ndim == 4 and len(array) > 0 and array.shape[-1] in (1, 3)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def interval(value: Any) -> Interval | None:
    """An interval from a number or a {"mean", "low", "high"}; None where there is no mean."""
    if not isinstance(value, dict):
        mean = number(value)
        return None if mean is None else Interval(mean)
    mean = number(value.get("mean"))
    return None if mean is None else Interval(mean, number(value.get("low")), number(value.get("high")))


def mean(row: Row | None, metric: str) -> float | None:
    """The mean of a row's metric, or None."""
    found = interval((row or {}).get(metric))
    return None if found is None else found.mean


def look(row: Row) -> str:
    """What decides a row's colour and name: its method, or the variant of it that its label tells."""
    return VARIANTS.get(str(row.get("label")), str(row.get("method")))


def base_row(rows: list[Row]) -> Row | None:
    """The row of the base model (w = 0), or None."""
    return next((row for row in rows if row.get("method") == "base"), None)


def best_row(rows: list[Row], metric: str = "fd") -> Row | None:
    """The row of lowest mean, the base included; None where no row has the metric."""
    scored = [row for row in rows if mean(row, metric) is not None]
    return min(scored, key=lambda row: mean(row, metric) or 0.0) if scored else None


def change(row: Row, base: Row | None, metric: str = "fd") -> float | None:
    """Change of a metric from the base, in percent; None for the base itself and where a figure is missing."""
    ours, theirs = mean(row, metric), mean(base, metric)
    if row is base or ours is None or not theirs:
        return None
    return 100 * (ours / theirs - 1)


def change_interval(record: Record, row: Row, base: Row, metric: str = "fd") -> tuple[float, float, float, bool] | None:
    """Change from the base in percent (mean, low, high) and whether the interval is of the paired difference.

    Without a paired comparison the ends are the widest that the two separate intervals allow. None without intervals.
    """
    ours, theirs = interval(row.get(metric)), interval(base.get(metric))
    if ours is None or theirs is None or theirs.mean <= 0:
        return None
    for item in record.items("comparisons"):
        found = interval(item.get("difference"))
        names = item.get("a") in (row.get("label"), row.get("method")), item.get("b") in (base.get("label"), "base")
        if all(names) and item.get("metric") == metric and found and found.low is not None and found.high is not None:
            if found.mean * (ours.mean - theirs.mean) < 0:
                continue  # the other way round than documented: do not guess
            low, high = 100 * found.low / theirs.mean, 100 * found.high / theirs.mean
            return 100 * found.mean / theirs.mean, low, high, True
    if ours.low is None or ours.high is None or not theirs.low or not theirs.high:
        return None
    low, high = 100 * (ours.low / theirs.high - 1), 100 * (ours.high / theirs.low - 1)
    return 100 * (ours.mean / theirs.mean - 1), low, high, False
