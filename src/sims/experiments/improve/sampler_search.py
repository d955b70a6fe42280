"""Sampling the guided model at less cost: the correction reused, and the cheapest sampler that keeps the gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sims.config import to_dict
from sims.denoiser import Denoiser
from sims.experiments.options import GuidanceOptions
from sims.files import digest
from sims.guidance import CacheRule, CorrectionGuide
from sims.model import Model
from sims.runs.directory import Run
from sims.sampling import SamplerOptions, SolverName, nfe
from sims.seeds import seed_range


class Setting(NamedTuple):
    """A sampler setting with cached guidance, ``stronger`` times as strong as was chosen; no refreshes: of the base."""

    solver: SolverName
    steps: int
    refreshes: int = 0
    stronger: float = 1.0


SEARCHED: tuple[SolverName, ...] = ("dpmpp2m", "unipc")  # Heun reaches their accuracy with twice the evaluations
CACHED_NOTE = "correction reused between levels"
KEPT = 0.98  # of the gain, on the selection seeds: a little above the 97 % that is to remain on fresh ones
LEAST = 6  # steps
STRONGER = (0.8, 1.25)  # fewer evaluations can want another strength
FURTHER = 3  # times that a setting is made cheaper with another strength


def fewest(retained: Callable[[Setting], float], solver: SolverName, steps: int, guided: bool = True) -> Setting | None:
    """The fewest steps, then corrections, that keep enough of the gain, then both with other strengths.

    None if none keeps it. NaN = too dear to try. The base has steps alone.
    """

    def first(steps: int) -> Setting:
        return Setting(solver, steps, steps if guided else 0)

    start = steps
    while not (kept := retained(first(steps))) >= KEPT:
        if math.isnan(kept):
            return None
        steps += 4
    while LEAST < steps <= start and retained(first(steps - 2)) >= KEPT:
        steps -= 2
    setting = first(steps)
    while guided and (fewer := _fewer(setting)) and retained(fewer) >= KEPT:
        setting = fewer
    for _ in range(FURTHER if guided else 0):
        cheaper = (other for other in _otherwise(setting) if retained(other) >= KEPT)
        if (found := next(cheaper, None)) is None:
            break
        setting = found
    return setting


def _fewer(setting: Setting) -> Setting | None:
    """The same with fewer corrections."""
    return setting._replace(refreshes=int(0.7 * setting.refreshes)) if setting.refreshes > 1 else None


def _otherwise(setting: Setting) -> list[Setting]:
    """Cheaper settings at other strengths: fewer corrections, or fewer steps."""
    steps = max(LEAST, setting.steps - 2)
    shorter = setting._replace(steps=steps, refreshes=min(setting.refreshes, steps))
    cheaper = [_fewer(setting), None if steps == setting.steps else shorter]
    return [one._replace(stronger=setting.stronger * by) for one in cheaper if one is not None for by in STRONGER]


def with_setting(model: Model, rule: CacheRule | None, setting: Setting) -> Model:
    """The model with another sampler; if it is guided, with few corrections."""
    sampler = replace(model.sampler, solver=setting.solver, steps=setting.steps, s_churn=0.0)
    if rule is None:
        return replace(model, sampler=sampler)
    guided = model.denoiser
    assert isinstance(guided, CorrectionGuide)
    model = model.with_denoiser(guided.with_strength(setting.stronger * guided.w))
    return replace(with_cache(model, rule.with_refreshes(setting.refreshes)), sampler=sampler)


def with_cache(model: Model, rule: CacheRule) -> Model:
    """The guided model with a cache rule."""
    assert isinstance(model.denoiser, CorrectionGuide)
    return model.with_denoiser(model.denoiser.with_cache(rule))


def pilot(run: Run, model: Model, guidance: GuidanceOptions, seed: int, round_: int = 0) -> CacheRule:
    """The rule from a short run of full guidance, kept in the run directory."""
    guided, seeds = model.denoiser, seed_range("pilot", seed, guidance.pilot, round_)
    assert isinstance(guided, CorrectionGuide)
    key = digest(model.hash, to_dict(model.sampler), [seeds.start, seeds.stop])[:12]
    file = run.path / "search" / f"pilot-{key}.json"
    return CacheRule.from_json(
        run.once(file, lambda: CacheRule.from_pilot(guided, seeds, model.sampler, refreshes=1).to_json())
    )


def pilot_cost(model: Model, guidance: GuidanceOptions) -> int:
    """Network evaluations of the pilot."""
    return guidance.pilot * nfe(model, model.sampler)


def cached_model(run: Run, model: Model, guidance: GuidanceOptions, seed: int, round_: int = 0) -> Model | None:
    """The model with its correction recomputed only where a pilot says; None where caching is off or gains nothing."""
    guided, allowed = model.denoiser, guidance.cache_cost
    if not allowed or not isinstance(guided, CorrectionGuide) or guided.w == 0:
        return None
    base_cost = nfe(guided.base, model.sampler)
    refreshes = int((allowed - 1) * base_cost + 1e-6)  # 0.2 * 35 is 7, whatever floating point says
    if refreshes < 1 or base_cost + refreshes >= nfe(model, model.sampler):
        return None
    return with_cache(model, pilot(run, model, guidance, seed, round_).with_refreshes(refreshes))


# -- what it costs -----------------------------------------------------------------------------------------------------


def cheapest_bound(denoiser: Denoiser, sampler: SamplerOptions) -> int:
    """Evaluations per sample that the search for the cheapest samplers makes at most, over all solvers."""
    most = 2 * sampler.steps + 4  # no solver takes more steps for the same evaluations
    otherwise = FURTHER * 2 * len(STRONGER) * 2 * nfe(denoiser, sampler)
    return sum(
        max(_spent(denoiser, sampler, solver, enough, guided=guided)[0] for enough in range(1, most))
        + guided * otherwise
        for solver in SEARCHED
        for guided in (True, False)
    )


def _spent(
    denoiser: Denoiser,
    sampler: SamplerOptions,
    solver: SolverName,
    enough: int,
    corrections: float = 0.0,
    *,
    guided: bool = True,
) -> tuple[int, int]:
    """Evaluations and settings of one solver, if so many steps keep the gain, with that share of corrections."""
    dearest, spent, tried = nfe(denoiser, sampler), 0, 0

    def retained(setting: Setting) -> float:
        nonlocal spent, tried
        own = nfe(denoiser, replace(sampler, solver=solver, steps=setting.steps, s_churn=0.0))
        if own > dearest:
            return math.nan
        spent, tried = spent + own + setting.refreshes, tried + 1
        return float(setting.steps >= enough and setting.refreshes >= corrections * setting.steps * guided)

    fewest(retained, solver, sampler.steps, guided)
    return spent, tried


def cheapest_expected(denoiser: Denoiser, sampler: SamplerOptions) -> tuple[int, int]:
    """Evaluations per sample, and settings, of the search for the cheapest samplers, where usual settings suffice."""
    cases = [(0.7, 0.35), (0.8, 0.6), (0.9, 0.8)]  # shares of the steps, and of these the corrections
    spent = [
        _spent(denoiser, sampler, solver, round(steps * sampler.steps), corrections, guided=guided)
        for steps, corrections in cases
        for solver in SEARCHED
        for guided in (True, False)
    ]
    return tuple(round(sum(values) / len(cases)) for values in zip(*spent))  # type: ignore[return-value]
