"""Are two sets of samples different? Differences of their figures with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sims.errors import UserError
from sims.metrics.bootstrap import paired_frechet_interval
from sims.metrics.comparison import ScoreRow, require_comparable
from sims.metrics.intervals import Interval, paired_interval
from sims.scoring.features import FeatureSet
from sims.scoring.figures import MANIFOLD, Settings, around, manifold_values, some_features, subset_halves
from sims.scoring.suite import Score, ScoreOptions

# The best of other figures lies between: 0.5 of "told from real", 0 of the copied share.
BETTER_BELOW = ("fd", "fd_held_out", "fd_infinity", "kid", "kid_held_out", "wasserstein", "sliced_wasserstein", "mmd")
BETTER_ABOVE = ("precision", "recall", "density", "coverage", "inception_score", "modes_hit",
                "high_quality")  # fmt: skip
LOSSLESS = ("memory", "png", "bmp", "tiff")  # 8-bit images in these are the same pixels
Array = np.ndarray


def require_alike(scores: Sequence[Score], earlier: Sequence[ScoreRow], force: bool) -> None:
    """UserError naming the fields in which scores differ, unless forced. Seeds may differ."""
    every = [row for score in scores for row in score.rows] + list(earlier)
    for metric in dict.fromkeys(row.metric for row in every):
        rows = [row for row in every if row.metric == metric]
        exact = all(row.format in LOSSLESS and row.dtype == "uint8" for row in rows)
        require_comparable(rows, force, ignore=("seeds", *(["format"] if exact else [])))


def paired(a: Score, b: Score, options: ScoreOptions) -> list[dict[str, Any]]:
    """For every figure of both: a minus b with its 95 % interval, how it was found, and a verdict.

    Several draws: Student's t over the draws, paired where both have the same seeds. One draw: subsets of the same
    seeds of both (paired), or the interval of each alone, whose errors are then added (unpaired). UserError where one
    has several draws and the other has not as many.
    """
    if len(a.sets) != len(b.sets):
        raise UserError(
            f"{a.name} has {len(a.sets)} draw(s) and {b.name} {len(b.sets)}: give both as many with --draws and "
            "--samples (a model has 5 draws unless told otherwise, a set of samples one)"
        )
    figures_a, figures_b = a.figures, b.figures
    common = [name for name in figures_a if name in figures_b]
    same = all(_same_seeds(x, y) for x, y in zip(a.sets, b.sets))
    found: dict[str, tuple[Interval, str]] = {}
    if len(a.sets) > 1:
        how = "paired draws of the same seeds" if same else "draws in order"
        for name in common:
            left, right = ([draw[name].value for draw in score.draws] for score in (a, b))
            found[name] = (paired_interval(left, right), how)
    elif same:
        found = _common(a, b, common, options)
    for name in common:
        first, second = figures_a[name], figures_b[name]
        if name not in found and first.limits is not None and second.limits is not None:
            halves = ((limits.high - limits.low) / 2 for limits in (first.limits, second.limits))
            half = sum(half**2 for half in halves) ** 0.5
            found[name] = (around(first.value - second.value, half), "unpaired: both intervals")
    return [_verdict(name, a, b, *found[name]) for name in common if name in found]


def _same_seeds(a: FeatureSet, b: FeatureSet) -> bool:
    """Whether samples come from the same seeds, and the same of them were kept."""
    if a.seeds is None or b.seeds is None or a.positions is None or b.positions is None:
        return False
    return np.array_equal(a.seeds, b.seeds) and np.array_equal(a.positions, b.positions)


def _common(a: Score, b: Score, names: list[str], options: ScoreOptions) -> dict[str, tuple[Interval, str]]:
    """Intervals of differences of one draw each, from subsets of the same seeds of both."""
    how, r = Settings(options.neighbours, options.resamples, device=a.device), a.reference
    x, y = a.sets[0], b.sets[0]
    assert x.kept is not None and y.kept is not None
    halves: dict[str, float] = {}
    for name, against in (("fd", r.train), ("fd_held_out", r.held_out)):
        if name in names and against is not None and len(x.kept) >= 4:
            near = paired_frechet_interval(
                x.kept, y.kept, against.moments, num_resamples=how.resamples, device=how.device
            )
            halves[name] = (near.high - near.low) / 2 * (len(x.kept) / x.count) ** 0.5  # errors fall with the root
    if "precision" in names and r.train.kept is not None:
        left, right = (some_features(z, how.neighbours) for z in (x, y))

        def difference(real: Array, rows: Array) -> dict[str, float]:
            first, second = (manifold_values(real, z[rows], how) for z in (left, right))
            return {name: first[name] - second[name] for name in MANIFOLD}

        halves |= subset_halves(difference, r.train.kept, len(left), how)
    values = {name: a.figures[name].value - b.figures[name].value for name in halves}
    return {name: (around(values[name], half), "subsets of the same seeds") for name, half in halves.items()}


def _verdict(name: str, a: Score, b: Score, limits: Interval, how: str) -> dict[str, Any]:
    """A row of the table of differences."""
    lower, sure = limits.mean < 0, limits.excludes(0.0)
    if not sure:
        text = f"no difference in {name} can be shown: it lies between {limits.low:.4g} and {limits.high:.4g}"
    else:
        names = (a.name, b.name) if a.name != b.name else (f"{a.name} (the first)", f"{b.name} (the second)")
        better, worse = names if lower == (name in BETTER_BELOW) else names[::-1]
        known = name in BETTER_BELOW or name in BETTER_ABOVE
        word = f"{better} is better than {worse}" if known else f"{names[0]} and {names[1]} differ"
        text = f"{word} in {name}: by {abs(limits.mean):.4g}, 95 % [{_ordered(limits)}]"
    return {
        "metric": name,
        "difference": limits.mean,
        "low": limits.low,
        "high": limits.high,
        "interval": how,
        "significant": sure,
        "verdict": text,
    }


def _ordered(limits: Interval) -> str:
    low, high = sorted((abs(limits.low), abs(limits.high)))
    return f"{low:.4g}, {high:.4g}"
