"""Choosing: every method prepared, its budget and strength chosen, its cost counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from sims.config import to_dict
from sims.experiments.improve.improvement import Choice, Context, mark, settings_of
from sims.experiments.improve.method_search import built, search_method, search_work
from sims.experiments.improve.search import Arm, Searched
from sims.experiments.options import ImproveOptions
from sims.methods import HEIR, LEADER, Alone, Artefact, Base, Continuous, Expected, Method, paired
from sims.results.common import Cost
from sims.runs.prepared import record
from sims.runs.work import Work
from sims.training.trainer import read_trained


def choose(
    context: Context, method: Method, base: Base, round_: int, leader: Choice | None
) -> tuple[Choice, Searched | None]:
    """Prepare one method, choose its budget and strength, and say what it cost."""
    settings = settings_of(context.options, round_, None if leader is None else leader.as_leader())
    name, strengths = method.name, method.strengths
    with context.stage(_preparing(method), round_) if method.prepared_as else nullcontext():
        artefact = method.prepare(base, context.real, settings, context.run)
    if artefact is None and method.budget == "none":  # the base is all it needs
        artefact = Artefact(base.key, {0: Path()})
    if not round_:
        _record(context, method, base, artefact)
    if artefact is None:
        return Choice(name, name, base.model), None
    budgets, cost, searched = sorted(artefact.variants), artefact.cost, None
    extra = method.extra.usual if method.extra else None
    if method.budget == "leader" and leader is not None and leader.budget is not None:
        budgets = [leader.budget]
    if not isinstance(strengths, Continuous):
        budget, w = budgets[-1], strengths.w
    elif context.judge is None:
        budget, w = default_choice(sorted(artefact.variants), strengths)
    else:
        with context.stage(f"search {name}", round_):
            searched = search_method(context, method, base, artefact, budgets, round_)
        budget, w, extra = searched.budget, searched.w, searched.extra
        cost += Cost(evaluations=searched.evaluations)
    model = built(context, method, base, artefact, Arm(budget, extra), w)
    said = "" if method.extra is None or extra is None else method.extra.said(extra)
    note = ", ".join(text for text in (artefact.note, said) if text)
    if method.of_leader and leader is not None:
        w, cost = leader.w, cost + leader.cost
    return Choice(name, name, model, w, budget or None, cost, note), searched


def _record(context: Context, method: Method, base: Base, artefact: Artefact | None) -> None:
    """Leave word of what the method is built from."""
    trained = None if base.training is None else read_trained(base.training)
    networks = {} if artefact is None else artefact.variants
    last = None if trained is None else trained.last
    record(context.run, last, to_dict(base.model.sampler), method.name, networks)


def default_choice(budgets: list[int], strengths: Continuous) -> tuple[int, float]:
    """(budget, w) where there is nothing to choose by: the middle budget and w = 1, or less where less is usual.

    w = 1 made every base measured so far better, though the best w lay between 0.75 and 3.5 (``benchmarks/results``);
    nothing verifies it for another model.
    """
    return budgets[(len(budgets) - 1) // 2], min(1.0, strengths.usual)


def in_order(methods: Sequence[Method]) -> list[Method]:
    """The order of the work: the leading method first, since others follow from what it chose; the heir is last."""
    return sorted(methods, key=lambda method: (method is not LEADER, method is HEIR))


def pair_of(
    methods: Sequence[Method], chosen: Mapping[str, Choice], searches: Mapping[str, Searched], base_fd: float
) -> Method | None:
    """The best trained rule under the best that composes, if both made the base better; else None."""
    helps = {
        method: Alone(method, found.budget, found.w, found.extra, chosen[method.name].cost)
        for method in methods
        if (found := searches.get(method.name)) is not None and found.fd < base_fd
    }
    by = {method: searches[method.name].fd for method in helps}
    inner = min((method for method in helps if _is_trained(method)), key=by.__getitem__, default=None)
    outer = min((method for method in helps if method.composes), key=by.__getitem__, default=None)
    return None if inner is None or outer is None else paired(helps[inner], helps[outer])


def _is_trained(method: Method) -> bool:
    """Whether it has a strength, and something was trained for it: on own samples, or in the base's training."""
    return isinstance(method.strengths, Continuous) and not method.is_free and not method.needs_real


def expected_pair(methods: Sequence[Method]) -> Method | None:
    """A pair such as a job may try, for counting its work; None where there can be none."""
    inner = next((method for method in in_order(methods) if _is_trained(method)), None)
    outer = next((method for method in methods if method.composes), None)
    return None if inner is None or outer is None else paired(Alone(inner, 0, 1.0), Alone(outer, 0, 1.0))


def _preparing(method: Method) -> str:
    return f"prepare {method.prepared_as}"


def choosing_work(options: ImproveOptions, methods: Sequence[Method], expected: Expected, round_: int) -> list[Work]:
    """What ``choose`` counts for all methods of a round; what several share is prepared once."""
    counted: dict[str, Work] = {}
    for method in in_order(methods):
        own = []
        if method.work is not None:
            own.append(replace(method.work(expected), stage=_preparing(method)))
        if options.is_judged and isinstance(method.strengths, Continuous):
            own.append(search_work(options, method, expected))
        if method is LEADER:
            spent = Cost(sum(work.images for work in own), sum(work.evaluations for work in own))
            expected = replace(expected, leader=spent)
        for work in own:
            counted.setdefault(work.stage, work)
    if options.is_judged and not round_ and (pair := expected_pair(methods)) is not None:
        work = search_work(options, pair, expected)
        counted[work.stage] = work
    return [replace(work, stage=work.stage + mark(options, round_)) for work in counted.values()]
