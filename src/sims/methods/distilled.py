"""Distilled: one network that has learned the best guided denoiser, at the base's sampling cost.

The student starts as a copy of the base and learns D_guided(x + sigma n, sigma) on guided samples x: the
distillation of guidance (Meng et al. 2023, arXiv 2210.03142). A rule that lives on what a trajectory remembers has no
estimate apart from it; of such a one the student learns what it estimates along its own trajectories.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import torch

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.guidance import of_trajectory
from sims.methods.contract import Artefact, Base, Fixed, Method
from sims.methods.guided import replace
from sims.methods.settings import Expected, Settings
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.measure import parts_of, steps_of
from sims.runs.synthesize import synthesize
from sims.runs.work import Leaves, Training, Work, training_work
from sims.sampling import nfe
from sims.seeds import derive_seed, seed_range
from sims.training.loss import denoising_loss
from sims.training.on_trajectories import Steps, Trajectories
from sims.training.trainer import Trainer, read_trained


def _guided_key(base: Base, seeds: range, settings: Settings) -> list[object]:
    assert settings.leader is not None
    teacher = settings.leader.model
    return [base.key, teacher.hash, to_dict(teacher.sampler), [seeds.start, seeds.stop], settings.batch_size]


def guided_samples(base: Base, seeds: range, settings: Settings, run: Run) -> tuple[Path, Callable[[], Dataset]]:
    """Samples of the leader's model: where they lie, and what draws them, once."""
    leader, folder = settings.leader, run.artefact("guided", *_guided_key(base, seeds, settings))
    assert leader is not None

    def data() -> Dataset:
        with run.progress("guided samples", len(seeds)) as advance:
            return synthesize(
                leader.model, folder, seeds, method=leader.label, w=leader.w,
                batch_size=settings.batch_size, accelerator=run.accelerator, advance=advance,
            )  # fmt: skip

    return folder, data


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    assert settings.leader is not None
    options, teacher = settings.distilled, settings.leader.model
    if options.samples < 2 or options.images < 1:
        raise UserError(
            f"distilling from {options.samples} samples for {options.images} images: at least 2 and 1 are needed"
        )
    seeds = seed_range("distillation", settings.seed, options.samples, settings.round)
    seed = derive_seed("distilled", settings.seed, settings.round)
    key, remembers = _guided_key(base, seeds, settings), of_trajectory(teacher.denoiser)
    guided, data = guided_samples(base, seeds, settings, run)
    denoiser = None if remembers else teacher.denoiser
    rated = with_rate(base.model, data, guided.name, options.train, seed, run, denoiser)
    kind = ["trajectories"] if remembers else []
    folder = run.artefact("distilled", *key, *kind, to_dict(rated.options), options.images, seed)
    trained = read_trained(folder)
    if trained is None:
        ways = _trajectories(base, seeds, settings, run) if remembers else None
        trainer = Trainer(
            base.model, ways or data(), rated.options, folder,
            images=options.images, seed=seed, teacher=teacher.denoiser, accelerator=run.accelerator,
            objective=ways.loss if ways else denoising_loss,
        )  # fmt: skip
        with run.progress("distill", options.images) as advance:
            trained = trainer.run(advance, run.log)
    # Beyond the student's own pass, every training image costs one of each of the teacher's networks.
    images = options.images + rated.images
    asked = 0 if denoiser is None else images * denoiser.evaluations(torch.ones(1))
    cost = Cost(images, options.samples * nfe(teacher, teacher.sampler) + asked)
    said = ", ".join(text for text in (f"of {settings.leader.label}", rated.said) if text)
    return Artefact(folder.name, {options.images: trained.last}, cost, said)


def _trajectories(base: Base, seeds: range, settings: Settings, run: Run) -> Trajectories:
    """The ways of the leader's samples, drawn once: as many as give every training image a step of its own."""
    leader, size = settings.leader, settings.batch_size
    assert leader is not None
    steps = len(leader.model.sampler.sigmas(leader.model)) - 1
    seeds = seeds[: max(2, min(len(seeds), math.ceil(settings.distilled.images / steps)))]
    folder = run.artefact("trajectories", *_guided_key(base, seeds, settings))

    def file(part: range) -> Path:
        return folder / f"{part.start}-{part.stop}.safetensors"

    parts = parts_of(seeds, size)
    with run.progress("guided trajectories", len(seeds)) as advance:

        def work(part: range) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            steps_of(leader.model, part, size).save(file(part))
            advance(len(part) * run.num_processes)

        run.spread(parts, file, work)
    return Trajectories([Steps.load(file(part)) for part in parts])


def distilled_work(expected: Expected) -> Work:
    """What preparing the student counts."""
    options = expected.settings.distilled
    training = Training("distilled", options.train, taught=True)
    images = options.images + expected.probe(options.train)
    trained = training_work("", training, images, leaves="distilled")
    kept = Leaves("guided samples, before compression", samples=options.samples)
    evaluations = options.samples * expected.guided
    return dataclasses.replace(
        trained, evaluations=evaluations, samples=options.samples, leaves=(kept, *trained.leaves)
    )


DISTILLED = Method(
    "distilled",
    "the best of them in one network",
    Look("Distilled", "#6d45c9", "#ab90ff", "D"),
    Fixed(1.0),
    _prepare,
    replace,
    distilled_work,
    prepared_as="distilled",
    budget="only",
    follows_leader=True,
    of_leader=True,
    later_rounds=True,
    saved=True,
)
