"""The variants of the leading method at less cost, chosen on the selection seeds; which of them becomes the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sims.experiments.improve.improvement import Choice, Context, mark
from sims.experiments.improve.sampler_search import (
    CACHED_NOTE,
    SEARCHED,
    Setting,
    cached_model,
    cheapest_bound,
    cheapest_expected,
    fewest,
    pilot,
    pilot_cost,
    with_setting,
)
from sims.experiments.improve.selection import Selection, noise_of, select
from sims.experiments.options import ImproveOptions
from sims.guidance import CorrectionGuide
from sims.methods import BASE, CACHED, FAST, HEIR, Base, Expected, Method
from sims.results.common import Cost
from sims.results.improve import TriedSampler
from sims.runs.work import Sampling, Work
from sims.sampling import FEW, nfe

SOLVER_NAMES = {"heun": "Heun", "dpmpp2m": "DPM-Solver++(2M)"}
CHOOSE = "choose the sampler"


@dataclass(frozen=True)
class Variants:
    """What was found on the selection seeds: the base, the round's result, the variants, the label of the improved."""

    before: Selection
    after: Selection
    noise: float
    improved: str
    choices: tuple[Choice, ...] = ()
    tried: tuple[TriedSampler, ...] = ()


def find_variants(
    context: Context, base: Base, choices: Sequence[Choice], leader: Choice, full_fd: float, round_: int
) -> Variants:
    """The cached variant and, in the first round, the cheapest sampler; what the round is accepted by."""
    options, few = context.options, nfe(base.model, base.model.sampler) <= FEW  # a correction is then used but once
    before = select(context, Choice(BASE.name, BASE.name, base.model), round_)
    after = select(context, next((choice for choice in choices if choice.method == HEIR.name), leader), round_)
    fast, tried = (None, ()) if few or round_ else _cheapest(context, leader, before.fd, full_fd)
    improved, found = leader.label, []
    if (
        not few
        and (model := cached_model(context.run, leader.model, options.guidance, options.seed, round_)) is not None
    ):
        spent = Cost(evaluations=pilot_cost(leader.model, options.guidance))
        cached = replace(leader, label=CACHED, model=model, cost=leader.cost + spent, note=CACHED_NOTE)
        found.append(cached)
        if before.fd - select(context, cached, round_).fd >= 0.95 * (before.fd - full_fd):
            improved = cached.label
    if fast is not None:
        found.append(fast)
    return Variants(before, after, noise_of(context, before, after), improved, tuple(found), tried)


def _cheapest(
    context: Context, leader: Choice, base_fd: float, full_fd: float
) -> tuple[Choice | None, tuple[TriedSampler, ...]]:
    """The cheapest sampler setting that keeps 95 % of the gain, sought on the selection seeds with every solver.

    First the number of steps with full guidance, then fewer corrections. None where there is no gain to keep.
    """
    options, guided, sampler = context.options, leader.model.denoiser, leader.model.sampler
    if full_fd >= base_fd or not options.guidance.cache_cost or not isinstance(guided, CorrectionGuide):
        return None, ()
    rule = pilot(context.run, leader.model, options.guidance, options.seed)
    dearest = nfe(guided.base, sampler)
    tried: list[TriedSampler] = []

    def fast(setting: Setting) -> Choice:
        note = f"{SOLVER_NAMES[setting.solver]}, {setting.steps} steps, {setting.refreshes} corrections"
        return replace(leader, label=FAST, model=with_setting(leader.model, rule, setting), note=note)

    def retained(setting: Setting) -> float:
        choice = fast(setting)
        if nfe(guided.base, choice.model.sampler) > dearest:
            return math.nan
        kept = (base_fd - select(context, choice, 0).fd) / (base_fd - full_fd)
        tried.append(TriedSampler(**setting._asdict(), nfe=choice.nfe, retained=kept))
        return kept

    settings = [fewest(retained, solver, sampler.steps) for solver in SEARCHED]
    candidates = [fast(setting) for setting in settings if setting is not None]
    if not candidates:
        return None, ()
    found = min(candidates, key=lambda choice: choice.nfe)
    evaluations = dearest + sum(round(entry.nfe) for entry in tried)  # of the base and of every setting
    spent = pilot_cost(leader.model, options.guidance) + max(options.search.rungs) * evaluations
    return replace(found, cost=leader.cost + Cost(evaluations=spent)), tuple(tried)


def variants_work(
    options: ImproveOptions, methods: Sequence[Method], expected: Expected, sampling: Sampling, round_: int
) -> Work:
    """What ``find_variants`` counts."""
    selection, settings = max(options.search.rungs), 2
    after = sampling.nfe if HEIR in methods else sampling.guided
    cost = most = selection * (sampling.nfe + after)
    if options.guidance.cache_cost and sampling.nfe > FEW:
        first = round_ == 0
        usual, tried = cheapest_expected(sampling.denoiser, sampling.options) if first else (0, 0)
        cost += options.guidance.pilot * sampling.guided + selection * (cached_nfe(options, sampling.nfe) + usual)
        most += (selection + options.guidance.pilot) * sampling.guided
        most += selection * cheapest_bound(sampling.denoiser, sampling.options) if first else 0
        settings += 1 + tried
    drawn = selection * settings
    stage = CHOOSE + mark(options, round_)
    return Work(stage, evaluations=cost, samples=drawn, searched=drawn, cells=settings, most=most)


def cached_nfe(options: ImproveOptions, nfe: int) -> int:
    """Evaluations of a sample of the cached variant."""
    return round(options.guidance.cache_cost * nfe)
