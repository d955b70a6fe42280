"""Choosing (budget, w): paired seeds, successive halving over budgets, descent in w.

The published procedure evaluates a grid of about 12 budgets x 13 strengths x 10,000 samples. Here every cell uses the
same noise seeds, so that differences between cells are far less noisy than the figures themselves; few samples then
rank them. The distance is close to unimodal in w (and U-shaped in the budget): a descent finds the best strength, and
half of the budgets are dropped whenever the number of samples grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from sims.config import left_open
from sims.errors import UserError
from sims.methods.contract import STRENGTHS, Continuous
from sims.results.improve import Chosen, SearchCell
from sims.seeds import check_drawn

Array = np.ndarray


class Arm(NamedTuple):
    """What is chosen beside the strength: a budget, and the extra setting of a method that has one."""

    budget: int
    extra: float | None = None


Features = Callable[[Arm, float, int, int], Array]  # arm, w, first, last -> features (last - first, D)


@dataclass(frozen=True)
class SearchOptions:
    """How budget and strength are chosen."""

    rungs: tuple[int, ...] = left_open((400, 1_000, 2_500))
    """Samples per cell in each round of the search; after each round half of the budgets are dropped."""
    w: float | None = None
    """A fixed strength instead of a search."""
    budget: int | None = None
    """A fixed budget (images seen by the auxiliary) instead of a search."""
    limit: int = left_open(26_000)
    """At most about this many samples; the search then settles for the best cell so far."""
    max_w: float = 16.0
    """The range of w extends itself up to here when the best lies at its end."""

    def __post_init__(self) -> None:
        if not self.rungs or min(self.rungs) < 2 or list(self.rungs) != sorted(self.rungs):
            raise UserError(f"search.rungs is {list(self.rungs)}: give rising numbers of samples, each at least 2")
        check_drawn("search.rungs", self.rungs[-1])
        if self.w is not None and not math.isfinite(self.w):
            raise UserError(f"search.w is {self.w}: the strength of guidance must be a finite number, such as 1")
        if not 0 < self.max_w < math.inf:
            raise UserError(f"search.max_w is {self.max_w}: it must be a positive number")


@dataclass(frozen=True, kw_only=True)
class Searched(Chosen):
    """What a search chose, the distance there, every cell, and whether the range of w was extended."""

    fd: float
    extended: bool
    cells: tuple[SearchCell, ...] = ()


def around(w: float, most: float) -> list[float]:
    """Strengths from half of w to three times as much, up to ``most``."""
    return sorted({x for x in STRENGTHS if w / 2 <= x <= min(3 * w, most)} | {w})


def half_width(features: Sequence[Array], statistic: Callable[..., float], parts: int = 10) -> float | None:
    """Half of the 95 % interval of a statistic of features (n, D), by a jackknife that leaves out a tenth at a time.

    Several arrays are paired by row: the same rows are left out of each. None where there are too few samples, or so
    many features that it would take long; it only informs.
    """
    count, width = features[0].shape
    if count < 5 * parts or width > 256:
        return None
    groups = np.array_split(np.arange(count), parts)
    values = np.array([statistic(*(np.delete(array, group, axis=0) for array in features)) for group in groups])
    if not np.isfinite(values).all():  # some are refused without a tenth of their samples
        return None
    error = math.sqrt((parts - 1) / parts * float(((values - values.mean()) ** 2).sum()))
    return float(special.stdtrit(parts - 1, 0.975)) * error


class Search:
    """One search over arms and w; ``features(arm, w, first, last)`` samples seeds first ... last - 1."""

    def __init__(
        self,
        features: Features,
        distance: Callable[[Array], float],
        arms: Sequence[Arm],
        strengths: Continuous,
        options: SearchOptions,
        method: str = "",
    ) -> None:
        self.features, self.distance, self.arms, self.options = features, distance, sorted(arms), options
        self.method = method
        self.start = sorted(w for w in strengths.start if w <= options.max_w) or [options.max_w]
        self.lattice = sorted({w for w in strengths.among if w <= options.max_w} | set(self.start))
        self.known: dict[tuple[Arm, float], Array] = {}
        self.cells: dict[tuple[Arm, float, int], float] = {}
        self.half_widths: dict[tuple[Arm, float, int], float | None] = {}
        self.samples = 0

    def run(self) -> Searched:
        """Search; with a fixed w or budget only the other is sought, with both nothing is."""
        if self.options.budget is not None:
            known = sorted({arm.budget for arm in self.arms})
            if self.options.budget not in known:
                there = ", ".join(map(str, known))
                raise UserError(f"search.budget {self.options.budget} is none of the auxiliary's budgets: {there}")
            self.arms = [arm for arm in self.arms if arm.budget == self.options.budget]
        if self.options.w is not None:
            self.lattice = self.start = [self.options.w]
        alive = list(self.arms)
        best = {arm: self._coarse(arm, self.options.rungs[0]) for arm in alive}
        for rung, n in enumerate(self.options.rungs[1:], start=1):
            alive = sorted(alive, key=lambda arm: best[arm][1])[: max(1, math.ceil(len(alive) / 2))]
            stride = 2 if rung < len(self.options.rungs) - 1 else 1
            best = {arm: self._descend(arm, best[arm][0], n, stride) for arm in alive}
        chosen = min(alive, key=lambda arm: best[arm][1])
        w, fd = best[chosen]
        cells = tuple(
            SearchCell(
                method=self.method, budget=key[0].budget, extra=key[0].extra, w=key[1], n=key[2],
                fd=value if value < math.inf else None, half_width=self.half_widths[key],
            )
            for key, value in self.cells.items()
        )  # fmt: skip
        extended = w > max(self.start)
        return Searched(**chosen._asdict(), w=w, samples=self.samples, fd=fd, extended=extended, cells=cells)

    def _coarse(self, arm: Arm, n: int) -> tuple[float, float]:
        """The best of the starting strengths, extended upwards (and down) while the best lies at the end."""
        tried = list(self.start)
        for w in tried:
            self._fd(arm, w, n)
        while True:
            best = min(tried, key=lambda w: self._fd(arm, w, n))
            higher, lower = _beyond(self.lattice, max(tried), up=True), _beyond(self.lattice, min(tried), up=False)
            if best == max(tried) and higher is not None:
                tried.append(higher)
            elif best == min(tried) and lower is not None:
                tried.append(lower)
            else:
                return best, self._fd(arm, best, n)

    def _descend(self, arm: Arm, w: float, n: int, stride: int) -> tuple[float, float]:
        """Walk along the lattice to a strength that is better than its neighbours, within the limit of samples."""
        index = self.lattice.index(w)
        while True:
            around = [i for i in (index - stride, index, index + stride) if 0 <= i < len(self.lattice)]
            if self.samples + sum(self._missing(arm, self.lattice[i], n) for i in around) > self.options.limit:
                around = [index]
            best = min(around, key=lambda i: self._fd(arm, self.lattice[i], n))
            if best == index:
                return self.lattice[index], self._fd(arm, self.lattice[index], n)
            index = best

    def _missing(self, arm: Arm, w: float, n: int) -> int:
        """Samples still to be drawn for a cell."""
        return max(0, n - len(self.known.get((arm, w), ())))

    def _fd(self, arm: Arm, w: float, n: int) -> float:
        """Distance of the first n paired samples; NaN counts as infinitely bad."""
        key = (arm, w, n)
        if key not in self.cells:
            have = self.known.get((arm, w))
            done = 0 if have is None else len(have)
            if done < n:
                more = self.features(arm, w, done, n)
                self.samples += n - done
                have = more if have is None else np.concatenate([have, more])
                self.known[arm, w] = have
            assert have is not None
            finite = np.isfinite(have[:n]).all()
            self.cells[key] = self.distance(have[:n]) if finite else math.inf
            self.half_widths[key] = half_width([have[:n]], self.distance) if self.cells[key] < math.inf else None
        return self.cells[key]


def _beyond(lattice: Sequence[float], end: float, up: bool) -> float | None:
    """The next strength beyond the end of what was tried, half as far again; a smaller one on the way to 0."""
    grown = end * 1.5 if (end > 0) == up else end / 1.5
    further = [w for w in lattice if (w >= grown if up else w <= grown)]
    return None if not further else further[0] if up else further[-1]


# -- what it costs -----------------------------------------------------------------------------------------------------


def search_bound(options: SearchOptions, arms: int, strengths: Continuous) -> int:
    """No search draws more samples than this: the first rung, the limit, and what every rung needs at least."""
    search = Search(lambda *_: None, lambda _: 0.0, _arms(arms), strengths, options)  # type: ignore[arg-type, return-value]
    lattice, tried = (search.lattice, _tried(search)) if options.w is None else ([options.w], 1)
    coarse, needed, alive = arms * tried * options.rungs[0], 0, arms
    for before, after in zip(options.rungs, options.rungs[1:]):
        alive = max(1, math.ceil(alive / 2))
        needed += alive * (after - before)
    limit = coarse if options.w is not None else max(coarse, options.limit)
    return min(arms * len(lattice) * max(options.rungs), limit + needed)


def _tried(search: Search) -> int:
    """Strengths of the first rung when the range is extended as far as it goes, both ways."""
    low, high, count = min(search.start), max(search.start), len(search.start)
    while (higher := _beyond(search.lattice, high, up=True)) is not None:
        high, count = higher, count + 1
    while (lower := _beyond(search.lattice, low, up=False)) is not None:
        low, count = lower, count + 1
    return count


def _arms(count: int) -> list[Arm]:
    return [Arm(number) for number in range(count)]


def search_expected(options: SearchOptions, arms: int, strengths: Continuous) -> tuple[int, int]:
    """Samples and cells that a search draws where the distance is U-shaped around a usual strength of the method.

    The search itself is run on made-up distances, once for every arm that could be the best.
    """
    samples = cells = 0
    for best in range(arms):

        def features(arm: Arm, w: float, first: int, last: int, best: int = best) -> np.ndarray:
            strength = strengths.usual * 1.4 ** (best - arm.budget)  # the longer the training, the less w
            off = math.log(max(w, 1e-3) / strength) ** 2 + 0.2 * (arm.budget - best) ** 2
            return np.full((last - first, 1), off)

        search = Search(features, lambda x: float(x[0, 0]), _arms(arms), strengths, options)
        samples += search.run().samples
        cells += len(search.cells)
    return round(samples / arms), round(cells / arms)
