"""Are two sets of samples different? Differences of their figures with intervals, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sims.errors import UserError
from sims.metrics.comparison import require_comparable
from sims.metrics.intervals import Interval, paired_interval
from sims.results.scores import Difference, ScoreRow
from sims.scoring.features import FeatureSet
from sims.scoring.figures import METRICS, Settings, around
from sims.scoring.options import ScoreOptions
from sims.scoring.suite import Score

LOSSLESS = ("memory", "png", "bmp", "tiff")  # 8-bit images in these are the same pixels


def require_alike(scores: Sequence[Score], earlier: Sequence[ScoreRow], force: bool) -> None:
    """UserError naming the fields in which scores differ, unless forced. Seeds may differ."""
    every = [row for score in scores for row in score.result.rows] + list(earlier)
    for metric in dict.fromkeys(row.metric for row in every):
        rows = [row for row in every if row.metric == metric]
        exact = all(row.format in LOSSLESS and row.dtype == "uint8" for row in rows)
        require_comparable(rows, force, ignore=("seeds", *(["format"] if exact else [])))


def paired(a: Score, b: Score, options: ScoreOptions) -> tuple[Difference, ...]:
    """For every figure of both: a minus b with its 95 % interval, how it was found, and a verdict.

    Several draws: Student's t over the draws, paired where both have the same seeds. One draw: subsets of the same
    seeds of both (paired), or the interval of each alone, whose errors are then added (unpaired). UserError where one
    has several draws and the other has not as many.
    """
    if len(a.sets) != len(b.sets):
        raise UserError(
            f"{a.name} has {len(a.sets)} draw(s) and {b.name} {len(b.sets)}: give both as many with option 'draws' and "
            "option 'samples' (a model has 5 draws unless told otherwise, a set of samples one)"
        )
    figures_a, figures_b = a.figures, b.figures
    common = [name for name in figures_a if name in figures_b]
    same = all(_same_seeds(x, y) for x, y in zip(a.sets, b.sets))
    found: dict[str, tuple[Interval, str]] = {}
    if len(a.sets) > 1:
        how = "paired draws of the same seeds" if same else "draws in order"
        for name in common:
            left, right = ([draw[name].mean for draw in score.draws] for score in (a, b))
            found[name] = (paired_interval(left, right), how)
    elif same:
        found = _common(a, b, common, options)
    for name in common:
        first, second = figures_a[name], figures_b[name]
        if name not in found and first.half is not None and second.half is not None:
            half = (first.half**2 + second.half**2) ** 0.5
            found[name] = (around(first.mean - second.mean, half), "unpaired: both intervals")
    return tuple(_verdict(name, a, b, *found[name]) for name in common if name in found)


def _same_seeds(a: FeatureSet, b: FeatureSet) -> bool:
    """Whether samples come from the same seeds, and the same of them were kept."""
    if a.seeds is None or b.seeds is None or a.positions is None or b.positions is None:
        return False
    return np.array_equal(a.seeds, b.seeds) and np.array_equal(a.positions, b.positions)


def _common(a: Score, b: Score, names: list[str], options: ScoreOptions) -> dict[str, tuple[Interval, str]]:
    """Intervals of differences of one draw each, from subsets of the same seeds of both."""
    how, r = Settings(options.neighbours, options.resamples, device=a.device), a.reference
    halves: dict[str, float] = {}
    for metric in (METRICS[name] for name in options.metrics):
        if metric.paired_halves and metric.figures.keys() & set(names):
            halves |= metric.paired_halves(a.sets[0], b.sets[0], r.train, r.held_out, how)
    values = {name: a.figures[name].mean - b.figures[name].mean for name in names if name in halves}
    return {name: (around(value, halves[name]), "subsets of the same seeds") for name, value in values.items()}


def _verdict(name: str, a: Score, b: Score, limits: Interval, how: str) -> Difference:
    """A row of the table of differences."""
    lower, sure = limits.mean < 0, limits.excludes(0.0)
    better_way = a.result.facts[name].better
    if not sure:
        text = f"no difference in {name} can be shown: it lies between {limits.low:.4g} and {limits.high:.4g}"
    else:
        names = (a.name, b.name) if a.name != b.name else (f"{a.name} (the first)", f"{b.name} (the second)")
        better, worse = names if lower == (better_way == "lower") else names[::-1]
        known = better_way != "neither"
        word = f"{better} is better than {worse}" if known else f"{names[0]} and {names[1]} differ"
        text = f"{word} in {name}: by {abs(limits.mean):.4g}, 95 % [{_ordered(limits)}]"
    return Difference(
        metric=name,
        difference=limits.mean,
        low=limits.low,
        high=limits.high,
        interval=how,
        significant=sure,
        verdict=text,
    )


def _ordered(limits: Interval) -> str:
    low, high = sorted((abs(limits.low), abs(limits.high)))
    return f"{low:.4g}, {high:.4g}"
