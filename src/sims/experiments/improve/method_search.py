"""The search for a method's budget and strength: on the selection seeds, kept in files."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from sims.config import convert, to_dict
from sims.experiments.cost.bounds import search_bound, search_expected
from sims.experiments.improve.context import Context
from sims.experiments.improve.search import Features, Found, Search, around
from sims.experiments.improve.trusted import MOST, Candidates
from sims.experiments.options import ImproveOptions
from sims.files import digest
from sims.guidance import Guide
from sims.methods import Artefact, Base, Continuous, Expected, Method
from sims.model import Model
from sims.processes import agree
from sims.runs.measure import draw_and_measure, parts_of, sampled
from sims.runs.work import Leaves, Work
from sims.sampling import nfe
from sims.scoring.judge import Draw
from sims.seeds import seed_range


def built(context: Context, method: Method, base: Base, artefact: Artefact, budget: int, w: float) -> Model:
    """The base with a method at strength w; the guidance interval applies to whatever guides."""
    denoiser = method.build(base.model, artefact.load(budget, context.run.device), w)
    if isinstance(denoiser, Guide):
        denoiser = denoiser.limited(context.interval)
    return base.model.with_denoiser(denoiser)


def search_method(
    context: Context, method: Method, base: Base, artefact: Artefact, budgets: list[int], round_: int
) -> Found:
    """Choose (budget, w) of one method."""
    run, judge, options = context.run, context.needed_judge, context.options
    strengths, settings, size = method.strengths, options.search, options.batch_size
    assert isinstance(strengths, Continuous)
    seeds = seed_range("selection", options.seed, max(settings.rungs), round_)
    trusted = None if context.trusted is None else np.ascontiguousarray(context.trusted).tobytes()
    key: list[object] = [
        method.name,
        artefact.key,
        base.key,
        budgets,
        to_dict(settings),
        judge.key,
        to_dict(base.model.sampler),
    ]
    key += [[seeds.start, seeds.stop], size, [str(level) for level in context.interval]]
    folder = run.path / "search" / f"{method.name}-{digest(*key, *([trusted] if trusted else []))[:12]}"
    if method.budget == "snapshots":  # a fixed budget is the auxiliary's; the snapshots of the base have others
        settings = replace(settings, budget=None)
    evaluations = 0

    def choose() -> dict[str, object]:
        def features(budget: int, w: float, first: int, last: int) -> np.ndarray:
            nonlocal evaluations
            model = built(context, method, base, artefact, budget, w)
            evaluations += (last - first) * nfe(model, model.sampler)
            kept = draw_and_measure(
                run,
                folder / f"{budget}-{w:g}",
                parts_of(seeds[first:last], size),
                lambda part: sampled(model, part, batch_size=size),
                lambda samples: judge.only_features(samples.x),
                Draw,
                advance,
            )
            return np.concatenate([draw.features for draw in kept])

        # Every process must see the same distances to the last bit, or their ways would part.
        found = Search(features, lambda x: agree(judge.frechet(x)), budgets, strengths.start, settings).run()
        if context.trusted is not None:
            found = _trusted(context, found, features, len(seeds))
        return asdict(replace(found, evaluations=evaluations))

    with run.progress(f"choose budget and w ({method.name})", 8 * sum(settings.rungs)) as advance:
        return convert(run.once(folder / "found.json", choose, together=True), Found, "found.json", "entry")  # type: ignore[no-any-return]


def _trusted(context: Context, found: Found, features: Features, count: int) -> Found:
    """The strength chosen anew, by the trusted images; the budget stays."""
    judge, options = context.needed_judge, context.options
    assert context.trusted is not None
    samples = {w: features(found.budget, w, 0, count) for w in around(found.w, options.search.max_w)}
    polluted = judge.train.require_features()
    some = np.sort(np.random.default_rng(options.seed).permutation(len(polluted))[:MOST])
    choice = replace(Candidates(samples, polluted[some]).choose(context.trusted), by_data=found.w)
    w, fd = agree((choice.w, judge.frechet(samples[choice.w])))
    return replace(found, trusted=choice, w=w, fd=fd, samples=found.samples + count * len(samples))


def search_work(options: ImproveOptions, method: Method, expected: Expected) -> Work:
    """What a search counts: as it usually goes, and at most."""
    strengths, settings = method.strengths, replace(options.search, budget=None)
    assert isinstance(strengths, Continuous)
    budgets = _num_budgets(options, method)
    samples, cells = search_expected(settings, budgets, strengths)
    most = search_bound(settings, budgets, strengths.start)
    if options.trusted is not None:
        more = max(settings.rungs) * len(around(1.0, settings.max_w))
        samples, most = samples + more, most + more
    cost = expected.evaluations(method.networks)
    return Work(
        f"search {method.name}",
        evaluations=samples * cost,
        samples=samples,
        searched=samples,
        cells=cells,
        most=most * cost,
        leaves=(Leaves("features of samples", features=most),),
    )


def _num_budgets(options: ImproveOptions, method: Method) -> int:
    """How many budgets a search chooses from."""
    if method.budget == "snapshots":
        return len({*options.base.snapshots})
    return 1 if method.budget == "leader" or options.search.budget is not None else len({*options.auxiliary.budgets})
