"""What distribution control would cost, before it runs: the stages, and what they leave on disk."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from sims.experiments.cost.described import Known
from sims.experiments.cost.disk import training_folder
from sims.experiments.cost.estimate import Estimate, estimate
from sims.experiments.improve.job import given_model
from sims.experiments.improve.outputs import GRID
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.problem import as_improve
from sims.methods.auxiliary import AuxiliarySettings
from sims.runs.work import Sampling, Training, Work, training_work

FEATURES = 2 * 4 * 64 + 16  # bytes that are kept of a measured sample: features of two small extractors, values


def estimate_shift(options: ShiftOptions, device: torch.device, processes: int = 1) -> Estimate:
    """What the job of ``options`` would cost on this device; runs pieces of it for half a minute, writes nothing.

    UserError where neither the data nor its shape is known.
    """
    auxiliary = options.auxiliary
    trained = AuxiliarySettings(samples=auxiliary.samples, budgets=(auxiliary.images,), train=auxiliary.train)
    job = replace(as_improve(options), auxiliary=trained)
    found = estimate(
        job,
        given_model(job, device),
        device,
        processes,
        plan=lambda _, sampling: work_of_shift(options, sampling),
        disk=lambda _, known, weights, work: disk_of_shift(options, known, weights),
    )
    notes = [
        "as many rounds are counted as are allowed; the solver ends as soon as the target is met",
        "training the attribute's classifiers is not counted",
    ]
    return replace(found, notes=found.notes + notes)


def work_of_shift(options: ShiftOptions, sampling: Sampling) -> list[Work]:
    """The stages after the references, in order."""
    auxiliary, settings, baselines = options.auxiliary, options.solver, options.baselines
    size, own, guided = settings.samples, sampling.nfe, sampling.guided

    def measured(stage: str, samples: int, cost: int, most: int | None = None) -> Work:
        return Work(stage, evaluations=samples * cost, samples=samples, searched=samples, most=most)

    work = []
    base, trained = Training("base", options.base.train), Training("auxiliary", auxiliary.train)
    if options.model is None:
        work.append(training_work("train the base", base, options.base.images, leaves="base"))
    most = auxiliary.max_candidates * own
    work.append(measured("own samples", auxiliary.candidates, own, most if most > auxiliary.candidates * own else None))
    work.append(training_work("train the auxiliary", trained, auxiliary.images, leaves="auxiliaries"))
    work.append(measured("measure it", settings.strengths * size, guided))
    if further := settings.rounds - 1:
        more = further * auxiliary.refine
        work.append(training_work("further rounds: train on", trained, more, leaves="auxiliaries"))
        work.append(measured("further rounds: measure", further * size, guided))
    if options.guidance.cache_cost:
        work.append(measured("choose what to cache", options.guidance.pilot, guided))
    if options.distilled.samples:
        student = Training("distilled", options.distilled.train, taught=True)
        taught = training_work("distil", student, options.distilled.images, leaves="distilled")
        drawn = options.distilled.samples
        work.append(replace(taught, evaluations=drawn * guided, samples=drawn))
    if "classifier" in baselines.methods:
        work.append(measured("scales of classifier guidance", len(baselines.scales) * size, 3 * own))
    if "fine-tuning" in baselines.methods:
        work.append(training_work("fine-tune the base", trained, auxiliary.images, leaves="auxiliaries"))
    judged = options.evaluation.draws * options.evaluation.samples
    rows = _rows(options, sampling)
    work.append(Work("judge", evaluations=judged * sum(rows), samples=judged * len(rows), searched=judged * len(rows)))
    if "rejection" in baselines.methods:
        work.append(measured("rejection", 0, own, max(0, baselines.limit - judged) * own))
    work.append(Work("pictures and report", evaluations=2 * GRID * sum(rows)))
    return work


def _rows(options: ShiftOptions, sampling: Sampling) -> list[int]:
    """Evaluations of a sample of every contender that is sampled."""
    rows = [sampling.nfe, sampling.guided]
    if options.guidance.cache_cost:
        rows.append(round(options.guidance.cache_cost * sampling.nfe))
    rows += [sampling.nfe] * bool(options.distilled.samples)
    rows += [3 * sampling.nfe] * ("classifier" in options.baselines.methods)
    return rows + [sampling.nfe] * ("fine-tuning" in options.baselines.methods)


def disk_of_shift(options: ShiftOptions, known: Known, weights: int) -> list[tuple[str, int]]:
    """Bytes of what a run leaves, at most, by kind."""
    auxiliary, baselines, image = options.auxiliary, options.baselines, known.values * known.itemsize
    parts = []
    if options.model is None:
        parts.append(("base", training_folder(options.base.train, options.base.images, 1, weights)))
    pools = math.ceil(auxiliary.max_candidates / auxiliary.candidates)
    parts.append(("own samples, before compression", pools * auxiliary.candidates * image))
    trained = options.solver.rounds + ("fine-tuning" in baselines.methods)
    parts.append(("auxiliaries", trained * training_folder(auxiliary.train, auxiliary.images, 1, weights)))
    if options.distilled.samples:
        own = options.distilled
        parts.append(("guided samples, before compression", own.samples * image))
        parts.append(("distilled", training_folder(own.train, own.images, 1, weights)))
    parts.append(("results", (2 + bool(options.distilled.samples)) * weights))
    judged = options.evaluation.draws * options.evaluation.samples
    seen = options.solver.samples * (options.solver.rounds + options.solver.strengths + len(baselines.scales))
    parts.append(("features of samples", FEATURES * (seen + 7 * judged + baselines.limit)))
    return parts
