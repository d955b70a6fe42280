"""What a job does, stage by stage, in counts: training images, network evaluations, samples measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sims.experiments.cost.bounds import cheapest_bound, cheapest_expected, search_bound, search_expected
from sims.experiments.improve.outputs import GRID
from sims.experiments.improve.search import around
from sims.experiments.options import ImproveOptions
from sims.methods import METHODS, Continuous
from sims.runs.work import Leaves, Sampling, Training, Work, training_work

GUIDED = ("sims", "placebo", "autoguidance")  # two networks at every evaluation
SHARED = ("sims", "neon", "self-trained")  # of one auxiliary


def methods_of(options: ImproveOptions) -> list[str]:
    """The methods that this job can run: without real data, or snapshots of the base, some are left out."""
    real = options.data.path != "none"
    snapshots = options.model is None and bool(options.base.snapshots)
    possible = [name for name in options.methods if real or not METHODS[name].needs_real]
    return [name for name in possible if name != "autoguidance" or snapshots]


def is_judged(options: ImproveOptions) -> bool:
    """Whether there is anything to judge by."""
    return options.data.path != "none" or options.reference is not None


def work_of(options: ImproveOptions, sampling: Sampling) -> list[Work]:
    """The stages of a job after its references, in order."""
    work = []
    if options.model is None:
        snapshots = len({*options.base.snapshots}) + 1
        base = Training("base", options.base.train)
        work.append(training_work("train the base", base, options.base.images, leaves="base", snapshots=snapshots))
    for round_ in range(options.rounds):
        methods = methods_of(options)
        if round_:
            methods = [name for name in methods if name in ("base", "sims", "distilled")]
        mark = f" (round {round_ + 1})" if options.rounds > 1 else ""
        work += _round(options, methods, sampling, mark, first=round_ == 0)
    results = 2 * ("sims" in methods_of(options)) + ("distilled" in methods_of(options))
    rows = sum(sampling.guided if name in GUIDED else sampling.nfe for name in methods_of(options))
    others = 2 * sampling.guided + bool(options.guidance.cache_cost) * sampling.guided  # sims at other w; cached
    work.append(Work("grids and report", evaluations=GRID * (rows + others),
                     leaves=(Leaves("results", networks=results),)))  # fmt: skip
    return work


def _round(options: ImproveOptions, methods: Sequence[str], sampling: Sampling, mark: str, first: bool) -> list[Work]:
    """One round: preparation of every method, search, and evaluation."""
    auxiliary, longest, budgets = options.auxiliary, max(options.auxiliary.budgets), len({*options.auxiliary.budgets})
    trained = Training("auxiliary", auxiliary.train)
    work = []
    if set(methods) & set(SHARED):
        drawn = auxiliary.samples
        kept = Leaves("own samples, before compression", samples=drawn)
        work.append(Work(f"synthesize{mark}", evaluations=drawn * sampling.nfe, samples=drawn, leaves=(kept,)))
        work.append(
            training_work(f"train the auxiliary{mark}", trained, longest, leaves="auxiliary", snapshots=budgets)
        )
    if "placebo" in methods:
        work.append(training_work(f"train the placebo{mark}", trained, longest, leaves="placebo", snapshots=budgets))
    searches = {}
    for name in methods if is_judged(options) else ():
        if isinstance(METHODS[name].strengths, Continuous):
            searches[name] = _search(options, name, sampling, mark)
            work.append(searches[name])
    if "continued" in methods:
        spent = auxiliary.samples * sampling.nfe + (searches["sims"].evaluations if searches else 0)
        images = longest + spent // 3
        base = Training("base", options.base.train)
        work.append(training_work(f"continue the base{mark}", base, images, leaves="continued"))
    if "distilled" in methods:
        own = options.distilled
        student = Training("distilled", own.train, taught=True)
        taught = training_work(f"distil{mark}", student, own.images, leaves="distilled")
        kept = Leaves("guided samples, before compression", samples=own.samples)
        leaves = (kept, *taught.leaves)
        work.append(replace(taught, evaluations=own.samples * sampling.guided, samples=own.samples, leaves=leaves))
    return work + (_judging(options, methods, sampling, mark, first) if is_judged(options) else [])


def _search(options: ImproveOptions, name: str, sampling: Sampling, mark: str) -> Work:
    strengths = METHODS[name].strengths
    assert isinstance(strengths, Continuous)
    settings, budgets = replace(options.search, budget=None), budgets_of(options, name)
    cost = sampling.guided if name in GUIDED else sampling.nfe
    samples, cells = search_expected(settings, budgets, strengths)
    most = search_bound(settings, budgets, strengths.start)
    if options.trusted is not None:
        more = max(settings.rungs) * len(around(1.0, settings.max_w))
        samples, most = samples + more, most + more
    return Work(
        f"search {name}{mark}", evaluations=samples * cost, samples=samples, searched=samples, cells=cells,
        most=most * cost, leaves=(Leaves("features of samples", features=most),),
    )  # fmt: skip


def _judging(options: ImproveOptions, methods: Sequence[str], sampling: Sampling, mark: str, first: bool) -> list[Work]:
    """The cheapest sampler, and the draws of every row of the table."""
    cached = "sims" in methods and bool(options.guidance.cache_cost)
    work, selection = [], max(options.search.rungs)
    if "sims" in methods:
        after = sampling.nfe if "distilled" in methods else sampling.guided
        cost = most = selection * (sampling.nfe + after)
        settings = 2
        if cached:
            expected, tried = cheapest_expected(sampling.denoiser, sampling.options) if first else (0, 0)
            half = round(options.guidance.cache_cost * sampling.nfe)
            cost += options.guidance.pilot * sampling.guided + selection * (half + expected)
            most += (selection + options.guidance.pilot) * sampling.guided
            most += selection * cheapest_bound(sampling.denoiser, sampling.options) if first else 0
            settings += 1 + tried
        drawn = selection * settings
        stage = f"choose the sampler{mark}"
        work.append(Work(stage, evaluations=cost, samples=drawn, measured=drawn, cells=settings, most=most))
    draws, size = options.evaluation.draws, options.evaluation.samples
    rows = [sampling.guided if name in GUIDED else sampling.nfe for name in methods]
    most = draws * size * (sum(rows) + 2 * sampling.guided * cached)
    rows += [round(options.guidance.cache_cost * sampling.nfe)] * (1 + first) if cached else []
    drawn = draws * size * len(rows)
    evaluations = draws * size * sum(rows)
    kept = Leaves("features of samples", features=draws * size * (len(methods) + 2))
    work.append(
        Work(f"evaluate{mark}", evaluations=evaluations, samples=drawn, measured=drawn, draws=draws * len(rows),
             most=most if cached else None, leaves=(kept,))
    )  # fmt: skip
    return work


def budgets_of(options: ImproveOptions, name: str) -> int:
    """How many budgets a search chooses from."""
    if name == "placebo":  # it takes what sims chose
        return 1
    if name == "autoguidance":
        return len({*options.base.snapshots})
    return 1 if options.search.budget is not None else len({*options.auxiliary.budgets})
