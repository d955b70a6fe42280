"""What the searches of a job cost: at most, and where they go as usual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sims.denoiser import Denoiser
from sims.experiments.improve.sampler_search import Setting, fewest
from sims.experiments.improve.search import Search, SearchOptions
from sims.methods import Continuous
from sims.sampling import SOLVERS, SamplerOptions, SolverName, nfe


def search_bound(options: SearchOptions, budgets: int, start: Sequence[float]) -> int:
    """No search draws more samples than this: the first rung, the limit, and what every rung needs at least."""
    search = Search(lambda *_: None, lambda _: 0.0, range(budgets), start, options)  # type: ignore[arg-type, return-value]
    lattice, tried = (search.lattice, _tried(search)) if options.w is None else ([options.w], 1)
    coarse, needed, alive = budgets * tried * options.rungs[0], 0, budgets
    for before, after in zip(options.rungs, options.rungs[1:]):
        alive = max(1, math.ceil(alive / 2))
        needed += alive * (after - before)
    limit = coarse if options.w is not None else max(coarse, options.limit)
    return min(budgets * len(lattice) * max(options.rungs), limit + needed)


def _tried(search: Search) -> int:
    """Strengths of the first rung when the range is extended as far as it goes, both ways."""
    low, high, count = min(search.start), max(search.start), len(search.start)
    while higher := [w for w in search.lattice if w >= 1.5 * high]:
        high, count = higher[0], count + 1
    while lower := [w for w in search.lattice if w <= low / 1.5]:
        low, count = lower[-1], count + 1
    return count


def cheapest_bound(denoiser: Denoiser, sampler: SamplerOptions) -> int:
    """Evaluations per sample that the search for the cheapest sampler makes at most, over all solvers."""
    most = 2 * sampler.steps + 4  # no solver takes more steps for the same evaluations
    return sum(max(_spent(denoiser, sampler, solver, enough)[0] for enough in range(1, most)) for solver in SOLVERS)


def _spent(
    denoiser: Denoiser, sampler: SamplerOptions, solver: SolverName, enough: int, corrections: float = 0.0
) -> tuple[int, int]:
    """Evaluations and settings of one solver, if so many steps keep the gain, with that share of corrections."""
    dearest, spent, tried = nfe(denoiser, sampler), 0, 0

    def retained(setting: Setting) -> float:
        nonlocal spent, tried
        own = nfe(denoiser, replace(sampler, solver=solver, steps=setting.steps, s_churn=0.0))
        if own > dearest:
            return math.nan
        spent, tried = spent + own + setting.refreshes, tried + 1
        return float(setting.steps >= enough and setting.refreshes >= corrections * setting.steps)

    fewest(retained, solver, sampler.steps)
    return spent, tried


def search_expected(options: SearchOptions, budgets: int, strengths: Continuous) -> tuple[int, int]:
    """Samples and cells that a search draws where the distance is U-shaped around a usual strength of the method.

    The search itself is run on made-up distances, once for every budget that could be the best.
    """
    samples = cells = 0
    for best in range(budgets):

        def features(budget: int, w: float, first: int, last: int, best: int = best) -> np.ndarray:
            strength = strengths.usual * 1.4 ** (best - budget)  # the longer the training, the less w
            off = math.log(max(w, 1e-3) / strength) ** 2 + 0.2 * (budget - best) ** 2
            return np.full((last - first, 1), off)

        search = Search(features, lambda x: float(x[0, 0]), range(budgets), strengths.start, options)
        samples += search.run().samples
        cells += len(search.cells)
    return round(samples / budgets), round(cells / budgets)


def cheapest_expected(denoiser: Denoiser, sampler: SamplerOptions) -> tuple[int, int]:
    """Evaluations per sample, and settings, of the search for the cheapest sampler, where usual settings suffice."""
    cases = [(0.7, 0.35), (0.8, 0.6), (0.9, 0.8)]  # shares of the steps, and of these the corrections
    spent = [
        _spent(denoiser, sampler, solver, round(steps * sampler.steps), corrections)
        for steps, corrections in cases
        for solver in SOLVERS
    ]
    return tuple(round(sum(values) / len(cases)) for values in zip(*spent))  # type: ignore[return-value]
