"""What distribution control would cost, before it runs: its stages, in counts."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from functools import partial
from math import ceil

from sims.experiments.base_model import base_work, given_model
from sims.experiments.cost.described import described, of_model, stated
from sims.experiments.cost.estimate import estimate
from sims.experiments.cost.table import Estimate
from sims.experiments.job_sizes import sized_base
from sims.experiments.options import CommonOptions, ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.problem import given_classifiers, read_problem
from sims.experiments.shift.shift_result import SHOWN
from sims.methods import Expected, Settings
from sims.methods.distilled import distilled_work
from sims.runs.directory import Run
from sims.runs.work import Leaves, Sampling, Training, Work, training_work
from sims.scoring.reference import try_references

NOTES = (
    "as many rounds are counted as are allowed; the solver ends as soon as the target is met",
    "training the attribute's classifiers is not counted",
)


def estimate_shift(run: Run, options: ShiftOptions) -> Estimate:
    """What the job would cost on the device that is at hand; runs parts of it for half a minute.

    UserError for whatever the job refuses before it trains anything, but for data that are stated and not at hand.
    """
    shared = {entry.name: getattr(options, entry.name) for entry in fields(CommonOptions)}
    job = ImproveOptions(**shared, model=options.model, guidance=options.guidance)
    known, begin = stated(options.data), time.perf_counter()
    if known is None:
        problem = read_problem(run, options)
        given_classifiers(run, options, problem)
        try_references(problem.train, problem.test, options.evaluation)
        model = problem.model
        size = described(job, model, problem.base_data, problem.test, problem.train, time.perf_counter() - begin)
    else:
        model = given_model(
            options.model, options.sampler, run.device, weights=options.weights, download=options.download
        )
        size = of_model(known, model, job)
    if model is None:
        latent = size.codec.latents is not None
        job = sized_base(job, size.shape, latent, size.num_train)
        options = sized_base(options, size.shape, latent, size.num_train)
    estimated = estimate(job, size, model, partial(work_of_shift, options), run.device, run.num_processes)
    return replace(estimated, notes=[*estimated.notes, *NOTES])


def work_of_shift(options: ShiftOptions, sampling: Sampling) -> list[Work]:
    """The stages after the references, in order."""
    auxiliary, settings, baselines, distilled = options.auxiliary, options.solver, options.baselines, options.distilled
    size, own, guided, rows = settings.samples, sampling.nfe, sampling.guided, _rows(options, sampling)
    trained = Training("auxiliary", auxiliary.train)
    judged, further = options.evaluation.draws * options.evaluation.samples, settings.rounds - 1
    work = []
    if options.model is None:
        work.append(base_work(options, sampling.denoiser.data_shape))
    pools = ceil(auxiliary.max_candidates / auxiliary.candidates)
    most = auxiliary.max_candidates if pools > 1 else None
    work.append(_sampled("own samples", auxiliary.candidates, own, most, images=pools * auxiliary.candidates))
    expected = Expected(Settings(distilled=distilled), options.base.train, own, guided, foreign=sampling.foreign)
    images = auxiliary.images + expected.probe(auxiliary.train)
    work.append(training_work("train the auxiliary", trained, images, leaves="auxiliaries"))
    work.append(_sampled("measure it", settings.strengths * size, guided, features=(settings.strengths + 1) * size))
    if further:
        stage = "further rounds: train on"
        work.append(training_work(stage, trained, auxiliary.refine, leaves="auxiliaries", times=further))
        work.append(_sampled("further rounds: measure", further * size, guided, features=further * size))
    if options.guidance.cache_cost:
        work.append(_sampled("choose what to cache", options.guidance.pilot, guided))
    if distilled.samples:
        work.append(replace(distilled_work(expected), stage="distil"))
    if "classifier" in baselines.methods:
        drawn = len(baselines.scales) * size
        work.append(_sampled("scales of classifier guidance", drawn, 3 * own, features=drawn))
    if "fine-tuning" in baselines.methods:
        work.append(training_work("fine-tune the base", trained, auxiliary.images, leaves="auxiliaries"))
    kept = Leaves("features of samples", features=2 * judged * (len(rows) + 1))
    drawn = judged * len(rows)
    work.append(Work("judge", evaluations=judged * sum(rows), samples=drawn, searched=drawn, leaves=(kept,)))
    if "rejection" in baselines.methods:
        most = max(0, baselines.limit - judged)
        work.append(_sampled("rejection", 0, own, most, features=baselines.limit))
    results = Leaves("results", networks=2 + bool(distilled.samples))
    return [*work, Work("pictures", evaluations=SHOWN * sum(rows), leaves=(results,))]


def _sampled(
    stage: str, samples: int, cost: int, most: int | None = None, *, images: int = 0, features: int = 0
) -> Work:
    """Samples at a cost that are classified, at most so many; kept are images, and features by two extractors."""
    kept = (
        Leaves("own samples, before compression", samples=images),
        Leaves("features of samples", features=2 * features),
    )
    bound = None if most is None else most * cost
    return Work(stage, evaluations=samples * cost, samples=samples, searched=samples, most=bound, leaves=kept)


def _rows(options: ShiftOptions, sampling: Sampling) -> list[int]:
    """Evaluations of a sample of every contender that is sampled."""
    rows = [sampling.nfe, sampling.guided]
    if options.guidance.cache_cost:
        rows.append(round(options.guidance.cache_cost * sampling.nfe))
    rows += [sampling.nfe] * bool(options.distilled.samples)
    rows += [3 * sampling.nfe] * ("classifier" in options.baselines.methods)
    return rows + [sampling.nfe] * ("fine-tuning" in options.baselines.methods)
