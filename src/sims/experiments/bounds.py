"""What the searches of a job cost at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sims.denoiser import Denoiser
from sims.experiments.search import Search, SearchOptions
from sims.experiments.stages import Setting, fewest
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
    return sum(max(_spent(denoiser, sampler, solver, enough) for enough in range(1, most)) for solver in SOLVERS)


def _spent(denoiser: Denoiser, sampler: SamplerOptions, solver: SolverName, enough: int) -> int:
    """Of one solver, if so many steps keep the gain, and fewer do not."""
    dearest, spent = nfe(denoiser, sampler), 0

    def retained(setting: Setting) -> float:
        nonlocal spent
        own = nfe(denoiser, replace(sampler, solver=solver, steps=setting.steps, s_churn=0.0))
        if own > dearest:
            return math.nan
        spent += own + setting.refreshes
        return float(setting.steps >= enough)

    fewest(retained, solver, sampler.steps)
    return spent
