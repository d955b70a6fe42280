"""Guided away from a light head on the base's middle layer, trained on its own samples (like SSG, arXiv 2607.29122)."""

from __future__ import annotations

from dataclasses import replace

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.guidance.head_guide import HeadGuide
from sims.heads import new_head
from sims.methods.auxiliary import own_samples, samples_cost, samples_folder, with_samples
from sims.methods.contract import Artefact, Base, Continuous, Method
from sims.methods.settings import AuxiliarySettings, Expected, Settings
from sims.model import Model
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.work import Work
from sims.seeds import derive_seed
from sims.training.options import LEARNING_RATE, TrainOptions
from sims.training.trainer import Trainer, read_trained

PASSES = 2  # of the base, that a training image costs at most: its own, and the head forth and back, 0.01 to 0.3 of one


def _options(settings: AuxiliarySettings) -> TrainOptions:
    """The auxiliary's training, but for what a small network that is drawn anew has no use for."""
    return replace(settings.train, lr=LEARNING_RATE, augment=0.0, shard=False)


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    options, budgets = _options(settings.auxiliary), sorted(settings.auxiliary.budgets)
    seed = derive_seed("head", settings.seed, settings.round)
    start = base.model.with_denoiser(new_head(base.model.denoiser, seed))
    own = samples_folder(base, settings, run)[0].name
    folder = run.artefact("head", base.key, own, start.hash, to_dict(options), budgets, seed)
    trained = read_trained(folder)
    if trained is None:
        trainer = Trainer(
            start, own_samples(base, settings, run), options, folder,
            images=budgets[-1], seed=seed, snapshots=tuple(budgets), accelerator=run.accelerator,
        )  # fmt: skip
        with run.progress("train the head", budgets[-1]) as advance:
            trained = trainer.run(advance, run.log)
    cost = samples_cost(base, settings) + Cost(evaluations=PASSES * budgets[-1])
    return Artefact(folder.name, trained.snapshots, cost)


def _work(expected: Expected) -> Work:
    return with_samples(Work("", evaluations=PASSES * max(expected.settings.auxiliary.budgets)), expected)


def _guided(base: Model, aux: Model, w: float) -> Denoiser:
    return HeadGuide(base.denoiser, aux.denoiser, w)


HEAD = Method(
    "head",
    "guided away from a light head on its middle layer, in one pass",
    Look("Light head", "#0f7f6d", "#4fcdb8", "h"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    _prepare,
    _guided,
    _work,
    prepared_as="head",
    default=False,
)
