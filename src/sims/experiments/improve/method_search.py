"""The search for a method's budget and strength: on the selection seeds, kept in files."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from sims.config import convert, to_dict
from sims.experiments.improve.improvement import Context
from sims.experiments.improve.search import Arm, Features, Search, Searched, around, search_bound, search_expected
from sims.experiments.improve.selection import distance, with_change
from sims.experiments.improve.trusted import MOST, Candidates
from sims.experiments.options import ImproveOptions
from sims.files import digest
from sims.guidance.guide import limited
from sims.methods import Artefact, Base, Continuous, Expected, Method
from sims.model import Model
from sims.processes import agree
from sims.runs.measure import draw_and_measure, parts_of, sampled
from sims.runs.work import Leaves, Work
from sims.sampling import nfe
from sims.scoring.judge import Draw
from sims.seeds import seed_range


def built(context: Context, method: Method, base: Base, artefact: Artefact, arm: Arm, w: float) -> Model:
    """The base with a method at strength w; the guidance interval applies to whatever guides."""
    aux = None if method.budget == "none" else artefact.load(arm.budget, context.run.device)
    denoiser = method.build(base.model, aux, w, arm.extra)
    return base.model.with_denoiser(limited(denoiser, base.model.denoiser, context.interval))


def search_method(
    context: Context, method: Method, base: Base, artefact: Artefact, budgets: list[int], round_: int
) -> Searched:
    """Choose (budget, w) of one method, and its extra setting if it has one."""
    run, judge, options, name = context.run, context.needed_judge, context.options, method.name
    strengths, settings, size = method.strengths, options.search, options.batch_size
    assert isinstance(strengths, Continuous)
    seeds = seed_range("selection", options.seed, max(settings.rungs), round_)
    trusted = None if context.trusted is None else np.ascontiguousarray(context.trusted).tobytes()
    key: list[object] = [
        artefact.key,
        base.key,
        budgets,
        to_dict(settings),
        judge.key,
        to_dict(base.model.sampler),
        size,
    ]
    key += [
        name,
        [seeds.start, seeds.stop],
        [str(level) for level in context.interval],
        *([trusted] if trusted else []),
        *([list(method.extra.values)] if method.extra else []),
    ]
    folder = run.path / "search" / f"{name}-{digest(*key)[:12]}"
    if method.budget in ("snapshots", "only", "none"):  # a fixed budget is the auxiliary's
        settings = replace(settings, budget=None)
    evaluations = 0

    def choose() -> dict[str, object]:
        def features(arm: Arm, w: float, first: int, last: int) -> np.ndarray:
            nonlocal evaluations
            model = built(context, method, base, artefact, arm, w)
            evaluations += (last - first) * nfe(model, model.sampler)
            kept = draw_and_measure(
                run, folder / _cell(arm, w), parts_of(seeds[first:last], size),
                lambda part: sampled(model, part, batch_size=size),
                lambda samples: judge.only_features(samples.x, samples.labels), Draw, advance,
            )  # fmt: skip
            return with_change(context, kept, first)

        # Every process must see the same distances to the last bit, or their ways would part.
        arms = [Arm(budget, extra) for budget in budgets for extra in _extras(method)]
        search = Search(features, lambda x: agree(distance(context, x)), arms, strengths, settings, name)
        searched = replace(search.run(), extra_name=method.extra.name if method.extra else "")
        if context.trusted is not None:
            searched = _by_trusted(context, searched, features, len(seeds))
        return asdict(replace(searched, evaluations=evaluations))

    file = folder / "chosen.json"
    with run.progress(f"choose budget and w ({name})", 8 * sum(settings.rungs)) as advance:
        return convert(run.once(file, choose, together=True), Searched, str(file), "entry")  # type: ignore[no-any-return]


def _extras(method: Method) -> tuple[float | None, ...]:
    return method.extra.values if method.extra else (None,)


def _cell(arm: Arm, w: float) -> str:
    """The folder of a cell."""
    return f"{arm.budget}-{w:g}" if arm.extra is None else f"{arm.budget}-{w:g}-{arm.extra:g}"


def _by_trusted(context: Context, searched: Searched, features: Features, count: int) -> Searched:
    """The strength chosen anew, by the trusted images; the budget stays."""
    judge, options = context.needed_judge, context.options
    assert context.trusted is not None
    arm = Arm(searched.budget, searched.extra)
    samples = {w: features(arm, w, 0, count) for w in around(searched.w, options.search.max_w)}
    polluted = judge.train.require_features()
    some = np.sort(np.random.default_rng(options.seed).permutation(len(polluted))[:MOST])
    choice = replace(Candidates(samples, polluted[some]).choose(context.trusted), by_data=searched.w)
    w, fd = agree((choice.w, judge.frechet(samples[choice.w])))
    return replace(searched, trusted=choice, w=w, fd=fd, samples=searched.samples + count * len(samples))


def search_work(options: ImproveOptions, method: Method, expected: Expected) -> Work:
    """What a search counts: as it usually goes, and at most."""
    strengths, settings = method.strengths, replace(options.search, budget=None)
    assert isinstance(strengths, Continuous)
    arms = _num_budgets(options, method) * len(_extras(method))
    samples, cells = search_expected(settings, arms, strengths)
    most = search_bound(settings, arms, strengths)
    if options.trusted is not None:
        more = max(settings.rungs) * len(around(1.0, settings.max_w))
        samples, most = samples + more, most + more
    cost = expected.evaluations(method.networks)
    return Work(
        f"search {method.name}", evaluations=samples * cost, samples=samples, searched=samples, cells=cells,
        most=most * cost, leaves=(Leaves("features of samples", features=most),),
    )  # fmt: skip


def _num_budgets(options: ImproveOptions, method: Method) -> int:
    """How many budgets a search chooses from."""
    if method.budget == "snapshots":
        return len({*options.base.snapshots})
    single = method.budget in ("leader", "only", "none") or options.search.budget is not None
    return 1 if single else len({*options.auxiliary.budgets})
