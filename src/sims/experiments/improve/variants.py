"""The variants of the leading method at less cost, chosen on the selection seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sims.experiments.improve.improvement import Choice, Context, mark
from sims.experiments.improve.own_sampler import own_planned
from sims.experiments.improve.sampler_search import (
    CACHED_NOTE,
    SEARCHED,
    Setting,
    best_within,
    cached_model,
    cheapest_bound,
    cheapest_expected,
    fewest,
    own_expected,
    pilot,
    pilot_cost,
    with_setting,
)
from sims.experiments.improve.selection import Selection, noise_of, select
from sims.experiments.options import ImproveOptions
from sims.guidance import CorrectionGuide
from sims.methods import (
    BASE,
    CACHED,
    FAST,
    HEIR,
    LEADER,
    METHODS,
    PAIR,
    RIVAL,
    WITHIN,
    Base,
    Expected,
    Fixed,
    Method,
)
from sims.results.common import Cost
from sims.results.improve import TriedSampler
from sims.runs.work import Sampling, Work
from sims.sampling import FEW, nfe

CHOOSE = "choose the sampler"


@dataclass(frozen=True)
class Variants:
    """What was found on the selection seeds: the base, the round's result, the variants."""

    before: Selection
    after: Selection
    noise: float
    choices: tuple[Choice, ...] = ()
    tried: tuple[TriedSampler, ...] = ()


def find_variants(
    context: Context, base: Base, choices: Sequence[Choice], leader: Choice, full_fd: float, round_: int
) -> Variants:
    """The cached variant and, in the first round, the cheapest samplers; what the round is accepted by."""
    options, few = context.options, nfe(base.model, base.model.sampler) <= FEW  # a correction is then used but once
    plain = Choice(BASE.name, BASE.name, base.model)
    before = select(context, plain, round_)
    heir = next((choice for choice in choices if choice.method == HEIR.name), None)
    after = select(context, heir or leader, round_)
    found: list[Choice] = []
    tried: tuple[TriedSampler, ...] = ()
    cached = None if few else cached_model(context.run, leader.model, options.guidance, options.seed, round_)
    if cached is not None:
        spent = Cost(evaluations=pilot_cost(leader.model, options.guidance))
        found.append(replace(leader, label=CACHED, model=cached, cost=leader.cost + spent, note=CACHED_NOTE))
    if not few and not round_ and full_fd < before.fd and options.guidance.cache_cost:
        cheaper, tried = _cheapest(context, plain, leader, before.fd, full_fd)
        found += cheaper
    return Variants(before, after, noise_of(context, before, after), tuple(found), tried)


def cached_rival(
    context: Context, choices: Sequence[Choice], fds: Mapping[str, float], base_fd: float
) -> Choice | None:
    """The best of the other rules that cost more than caching allows, cached; None where none of them helps."""
    able = [
        choice
        for choice in choices
        if _costs_more(choice)
        and fds.get(choice.label, math.inf) < base_fd
        and choice.label != LEADER.name
        and choice.method != PAIR
    ]
    for choice in sorted(able, key=lambda choice: fds[choice.label]):
        model = cached_model(context.run, choice.model, context.options.guidance, context.options.seed)
        if model is not None:
            spent = Cost(evaluations=pilot_cost(choice.model, context.options.guidance))
            note = ", ".join(text for text in (choice.label, choice.note, CACHED_NOTE) if text)
            return replace(choice, label=RIVAL, model=model, cost=choice.cost + spent, note=note)
    return None


def _costs_more(choice: Choice) -> bool:
    """Whether its rule evaluates more than the base does."""
    return choice.method not in METHODS or METHODS[choice.method].networks > 1


def _cheapest(
    context: Context, base: Choice, leader: Choice, base_fd: float, full_fd: float
) -> tuple[list[Choice], tuple[TriedSampler, ...]]:
    """The cheapest sampler that keeps the gain, and, where that costs too much, the best that does not; what was tried.

    Sought on the selection seeds.
    """
    options, guided = context.options, leader.model.denoiser
    if not isinstance(guided, CorrectionGuide):
        return [], ()
    rule = pilot(context.run, leader.model, options.guidance, options.seed)
    tried: list[TriedSampler] = []

    def sampled_by(setting: Setting) -> Choice:
        model = with_setting(leader.model, rule, setting)
        return replace(leader, label=FAST, model=model, w=setting.stronger * leader.w, note=setting.note)

    def retained(setting: Setting) -> float:
        choice = sampled_by(setting)
        if nfe(base.model, choice.model.sampler) > base.nfe:
            return math.nan
        fd = select(context, choice, 0).fd
        kept = (base_fd - fd) / (base_fd - full_fd)
        if math.isfinite(kept):  # else they show less of their prompts
            tried.append(setting.tried(choice.method, choice.w, choice.nfe, fd, kept))
        return kept

    settings, limit = [fewest(retained, solver) for solver in SEARCHED], own_limit(options, base.nfe)
    quick = min((sampled_by(one) for one in settings if one is not None), key=lambda choice: choice.nfe, default=None)
    found = [] if quick is None else [quick]
    if quick is None or quick.nfe > limit:
        setting = best_within(retained, lambda one: sampled_by(one).nfe, limit)
        found += [] if setting is None else [replace(sampled_by(setting), label=WITHIN)]
    evaluations = base.nfe + sum(round(one.nfe) for one in tried)  # of the base and of every setting
    spent = Cost(evaluations=pilot_cost(leader.model, options.guidance) + max(options.search.rungs) * evaluations)
    return [replace(choice, cost=leader.cost + spent) for choice in found], tuple(tried)


def own_limit(options: ImproveOptions, nfe: int) -> int:
    """Evaluations that the leader may take at most in the variant which costs no more than the base of so many.

    Less, where ``max_cost`` is less.
    """
    return int(min(1.0, options.max_cost) * nfe + 1e-6)


def variants_work(
    options: ImproveOptions, methods: Sequence[Method], expected: Expected, sampling: Sampling, round_: int
) -> Work:
    """What ``find_variants`` counts, and what is drawn of the methods that nothing was searched for."""
    selection, fixed = max(options.search.rungs), [one for one in methods if isinstance(one.strengths, Fixed)]
    fixed += [LEADER] if LEADER in methods and HEIR not in methods else []  # what the round is accepted by
    settings = len(fixed)
    cost = most = selection * sum(expected.evaluations(method.networks) for method in fixed)
    if LEADER in methods and options.guidance.cache_cost and sampling.nfe > FEW:
        first = round_ == 0
        cost += options.guidance.pilot * sampling.guided + selection * cached_nfe(options, sampling.nfe)
        most += (selection + options.guidance.pilot) * sampling.guided
        settings += 1
        if first:
            limit = own_limit(options, sampling.nfe)
            usual = cheapest_expected(sampling.nfe, limit)
            cost, settings = cost + selection * usual.evaluations, settings + usual.settings
            most += selection * cheapest_bound(sampling.nfe, limit)
        if first and has_rival(methods):
            cost += options.guidance.pilot * sampling.guided + selection * cached_nfe(options, sampling.nfe)
            most += (selection + options.guidance.pilot) * sampling.guided
            settings += 1
    evaluations, tried = own_expected(sampling.nfe)
    for _ in own_planned(options, methods, sampling.nfe, round_):
        cost, most, settings = cost + selection * evaluations, most + selection * evaluations, settings + tried
    drawn = selection * settings
    stage = CHOOSE + mark(options, round_)
    return Work(stage, evaluations=cost, samples=drawn, searched=drawn, cells=settings, most=most)


def has_rival(methods: Sequence[Method]) -> bool:
    """Whether another rule than the leading one costs so much that it may be cached."""
    return any(method.networks > 1 and method is not LEADER for method in methods)


def cached_nfe(options: ImproveOptions, nfe: int) -> int:
    """Evaluations of a sample of the cached variant."""
    return round(options.guidance.cache_cost * nfe)
