"""The sampler that suits a model best at no more than its own evaluations: of the base, and of the best at its cost.

Whoever compares a guided model that has its samplers searched with a base that has not compares searches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sims.experiments.improve.improvement import Choice, Context
from sims.experiments.improve.sampler_search import Setting, suits_best, with_setting
from sims.experiments.improve.selection import select
from sims.experiments.options import ImproveOptions
from sims.methods import BASE, METHODS, TUNED, Method
from sims.results.common import Cost
from sims.results.improve import TriedSampler
from sims.sampling import FEW

BEST = "the best at the base's cost"  # what a plan calls it


def at_its_best(context: Context, choice: Choice) -> tuple[Choice | None, tuple[TriedSampler, ...]]:
    """A choice with the cheapest of the samplers that suit it best; and what was tried.

    None where its own is the best of them. Sought on the selection seeds.
    """
    count, own = max(context.options.search.rungs), select(context, choice, 0).fd
    tried: list[TriedSampler] = []

    def tuned(setting: Setting) -> Choice:
        note = ", ".join(text for text in (choice.note, setting.note) if text)
        planned, model = "" if choice.method == BASE.name else BEST, with_setting(choice.model, None, setting)
        return replace(choice, label=choice.label + TUNED, model=model, note=note, planned=planned)

    def retained(setting: Setting) -> float:
        other = tuned(setting)
        if other.nfe > choice.nfe:
            return math.nan
        fd = select(context, other, 0).fd
        if math.isfinite(fd):  # else they show less of their prompts
            tried.append(setting.tried(choice.method, choice.w, other.nfe, fd))
        return own / fd

    setting = suits_best(retained)
    if setting is None or tuned(setting).model.sampler == choice.model.sampler:
        return None, tuple(tried)
    spent = Cost(evaluations=count * (choice.nfe + sum(round(one.nfe) for one in tried)))
    return replace(tuned(setting), cost=choice.cost + spent), tuple(tried)


def best_at_its_cost(known: Mapping[str, tuple[Choice, float]]) -> Choice | None:
    """The best that is better than the base and costs no more, of all choices with their FD on the selection seeds."""
    base, base_fd = known[BASE.name]
    able = [
        (fd, label)
        for label, (choice, fd) in known.items()
        if fd < base_fd and choice.nfe <= base.nfe and choice.method in METHODS and METHODS[choice.method].networks == 1
        and choice.method != BASE.name
    ]  # fmt: skip
    return known[min(able)[1]][0] if able else None


def own_planned(options: ImproveOptions, methods: Sequence[Method], nfe: int, round_: int) -> list[str]:
    """What a plan calls those sought: the base, where others are compared with it, and the best at its cost."""
    if round_ or nfe <= FEW or not options.guidance.cache_cost or BASE not in methods or len(methods) == 1:
        return []
    others = any(method.networks == 1 and method is not BASE for method in methods)
    return [BASE.name + TUNED, *([BEST] if others else [])]
