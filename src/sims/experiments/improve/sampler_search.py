"""Sampling the guided model at less cost: the correction reused, and the cheapest sampler that keeps the gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sims.config import to_dict
from sims.experiments.options import GuidanceOptions
from sims.files import digest
from sims.guidance import CacheRule, CorrectionGuide
from sims.model import Model
from sims.results.improve import TriedSampler
from sims.runs.directory import Run
from sims.sampling import SOLVERS, Churn, SolverName, edm_sigmas, nfe
from sims.seeds import seed_range


class Setting(NamedTuple):
    """A sampler setting with cached guidance, ``stronger`` times as strong as was chosen; no refreshes: of the base."""

    solver: SolverName
    steps: int
    refreshes: int = 0
    stronger: float = 1.0

    @property
    def note(self) -> str:
        """Such as "UniPC, 10 steps"."""
        corrections = f", {self.refreshes} corrections" if self.refreshes else ""
        return f"{SOLVER_NAMES[self.solver]}, {self.steps} steps{corrections}"

    def tried(self, label: str, w: float, nfe: float, fd: float, retained: float | None = None) -> TriedSampler:
        """What became of it."""
        return TriedSampler(
            method=label, solver=self.solver, steps=self.steps, refreshes=self.refreshes, w=w, nfe=nfe, fd=fd,
            retained=retained,
        )  # fmt: skip


SOLVER_NAMES = {"heun": "Heun", "dpmpp2m": "DPM-Solver++(2M)", "unipc": "UniPC"}
SEARCHED: tuple[SolverName, ...] = ("unipc", "heun")
STEPS = (6, 8, 10, 13, 17, 22, 28)
OWN = [Setting(solver, steps) for solver in (*SEARCHED, "dpmpp2m") for steps in STEPS]  # of a model as it is
CACHED_NOTE = "correction reused between levels"
KEPT = 0.98  # of the gain, on the selection seeds: a little above the 97 % that is to remain on fresh ones
STRONGER = (0.8, 1.25)  # fewer evaluations can want another strength; more than that fits the selection seeds alone


def fewest(retained: Callable[[Setting], float], solver: SolverName) -> Setting | None:
    """The fewest steps, then corrections, that keep enough of the gain, then one of these less with another strength.

    None if none keeps it. NaN = too dear. More steps are not always better: an inexact solver can do a model good.
    """
    for steps in STEPS:
        kept = retained(Setting(solver, steps, steps))
        if math.isnan(kept):
            return None
        if kept >= KEPT:
            break
    else:
        return None
    setting = Setting(solver, steps, steps)
    while (fewer := _fewer(setting)) and retained(fewer) >= KEPT:
        setting = fewer
    return next((other for other in _otherwise(setting) if retained(other) >= KEPT), setting)


def _fewer(setting: Setting) -> Setting | None:
    """The same with fewer corrections."""
    return setting._replace(refreshes=int(0.7 * setting.refreshes)) if setting.refreshes > 1 else None


def _otherwise(setting: Setting) -> list[Setting]:
    """Cheaper settings at other strengths: fewer corrections, or fewer steps."""
    less = [steps for steps in STEPS if steps < setting.steps]
    shorter = setting._replace(steps=less[-1], refreshes=min(setting.refreshes, less[-1])) if less else None
    return [one._replace(stronger=by) for one in (_fewer(setting), shorter) if one is not None for by in STRONGER]


def best_within(retained: Callable[[Setting], float], cost: Callable[[Setting], float], limit: float) -> Setting | None:
    """The setting that keeps most of the gain at ``limit`` evaluations at most; None where none keeps any of it.

    Every number of steps with as many corrections as that leaves, then the best of these at other strengths.
    """
    kept = {setting: retained(setting) for setting in _at_most(cost, limit)}
    if not kept:
        return None
    first = max(kept, key=kept.__getitem__)
    others = [first._replace(stronger=by) for by in STRONGER]
    kept |= {setting: retained(setting) for setting in others}
    best = max(kept, key=kept.__getitem__)
    return best if kept[best] > 0 else None


def _at_most(cost: Callable[[Setting], float], limit: float) -> list[Setting]:
    """For every solver and number of steps, the setting with the most corrections at so many evaluations."""
    able = ([Setting(solver, steps, n) for n in range(steps, 0, -1)] for solver in SEARCHED for steps in STEPS)
    found = (next((setting for setting in settings if cost(setting) <= limit), None) for settings in able)
    return [setting for setting in found if setting is not None]


def suits_best(retained: Callable[[Setting], float]) -> Setting | None:
    """The cheapest of the samplers that suit a model best, with what it corrects left as it is.

    Of all solvers and steps that cost no more than its own; None if its own is better than these. ``retained`` is then
    1 where nothing changes. NaN = too dear.
    """
    kept = {setting: retained(setting) for setting in OWN}
    best = max((share for share in kept.values() if not math.isnan(share)), default=0.0)
    return next((s for s in sorted(kept, key=evaluations) if kept[s] >= max(KEPT, best + KEPT - 1)), None)


def evaluations(setting: Setting) -> int:
    """Of the base, along one trajectory; levels of its own that several steps are rounded to would make it fewer."""
    sigmas = edm_sigmas(setting.steps, 0.002, 80.0)
    return len(SOLVERS[setting.solver].planned(sigmas, Churn(), lambda sigma: sigma))


def with_setting(model: Model, rule: CacheRule | None, setting: Setting) -> Model:
    """The model with another sampler; if it is guided, with few corrections."""
    sampler = replace(model.sampler, solver=setting.solver, steps=setting.steps, s_churn=0.0, levels=())
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
    base_cost, planned = nfe(guided.base, model.sampler), model.sampler.planned(guided)
    levels = sum(step is not None for step in guided.steps(planned))
    each = (guided.evaluations(planned) - base_cost) / max(1, levels)  # of a correction: two networks may be more
    refreshes = int((allowed - 1) * base_cost / each + 1e-6) if each else 0  # 0.2 * 35 is 7, not a little less
    if not 1 <= refreshes < levels:
        return None
    return with_cache(model, pilot(run, model, guidance, seed, round_).with_refreshes(refreshes))


# -- what it costs -----------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """Evaluations per sample, and settings, of the search for the cheapest samplers; whether one costs too much."""

    evaluations: int
    settings: int
    beyond: bool


def cheapest_bound(nfe: int, limit: float) -> int:
    """Evaluations per sample that the search makes at most, for a base of so many and that limit of the cheapest."""
    return max(_spent(nfe, limit, enough, share).evaluations for enough in (*STEPS, nfe) for share in (0.0, 1.0))


def cheapest_expected(nfe: int, limit: float) -> Spent:
    """What the search for the cheapest samplers makes, where usual settings suffice."""
    cases = [_spent(nfe, limit, enough, share) for enough, share in ((10, 0.2), (13, 0.4), (17, 0.6))]
    means = [round(sum(values) / len(cases)) for values in zip(*cases)]
    return Spent(means[0], means[1], bool(means[2]))


def _spent(nfe: int, limit: float, enough: int, corrections: float) -> Spent:
    """Of the whole search, if so many steps keep the gain, with that share of corrections."""
    tried: list[Setting] = []

    def retained(setting: Setting) -> float:
        if evaluations(setting) > nfe:
            return math.nan
        tried.append(setting)
        kept = setting.steps >= enough and setting.refreshes >= corrections * setting.steps and setting.stronger == 1
        return float(kept)

    found = [fewest(retained, solver) for solver in SEARCHED]
    beyond = all(setting is None or cost_of(setting) > limit for setting in found)
    if beyond:
        best_within(retained, cost_of, limit)
    return Spent(sum(map(cost_of, tried)), len(tried), beyond)


def cost_of(setting: Setting) -> int:
    """Evaluations along one trajectory, where a correction is one."""
    return evaluations(setting) + setting.refreshes


def own_expected(nfe: int) -> tuple[int, int]:
    """Evaluations per sample, and settings, of the search for the sampler that suits a model of so many best."""
    able = [evaluations(setting) for setting in OWN if evaluations(setting) <= nfe]
    return sum(able), len(able)
