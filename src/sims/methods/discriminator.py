"""Discriminator guidance: a small network that tells data from the base's own samples steers (arXiv 2211.17091)."""

from __future__ import annotations

import dataclasses

import torch

from sims.config import JSON, to_dict
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.guidance.density_ratio import DensityRatio
from sims.methods.auxiliary import own_samples, samples_cost, samples_folder, with_samples
from sims.methods.contract import Artefact, Base, Continuous, Method
from sims.methods.settings import Expected, Settings
from sims.model import Model, make_network
from sims.networks.options import NetworkOptions
from sims.networks.usual import usual
from sims.preconditioning import RatioPrecond
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.work import Training, Work, training_work
from sims.seeds import derive_seed
from sims.training.discrimination import RealAndOwn, discriminator_loss
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer, read_trained


def new_discriminator(base: Model, real: Dataset, seed: int) -> Model:
    """A discriminator with freshly drawn weights: an MLP up to 12 pixels, above that a small convolutional network."""
    row = usual(base.data_shape, machine="cpu")
    options = NetworkOptions(row.type, row.width, 1, row.blocks, channel_mult=row.channel_mult, attention=())  # type: ignore[arg-type]
    network, _ = options.tables(sigma_data=1.0)
    ratio: dict[str, JSON] = {"type": RatioPrecond.kind, "sigma_data": max(round(real.std(), 4), 1e-4)}
    ratio |= {"sigma_min": base.sigma_min, "sigma_max": base.sigma_max}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make_network(base.data_shape, base.num_classes, network, ratio)
    return dataclasses.replace(base, denoiser=made, provenance={"seed": seed})


def training_of(settings: Settings) -> TrainOptions:
    """That of the auxiliary, of a new network: at the usual rate, on images as they are."""
    return dataclasses.replace(settings.auxiliary.train, lr=None, augment=0.0)


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    assert real is not None
    budgets, train = sorted(settings.auxiliary.budgets), training_of(settings)
    seed = derive_seed("discriminator", settings.seed, settings.round)
    own = samples_folder(base, settings, run)[0].name
    folder = run.artefact("discriminator", base.key, real.fingerprint, own, to_dict(train), budgets, seed)
    trained = read_trained(folder)
    if trained is None:
        start = new_discriminator(base.model, real, seed)
        trainer = Trainer(
            start, RealAndOwn(real, own_samples(base, settings, run)), train, folder,
            images=budgets[-1], seed=seed, snapshots=tuple(budgets), objective=discriminator_loss,
            accelerator=run.accelerator,
        )  # fmt: skip
        with run.progress("train the discriminator", budgets[-1]) as advance:
            trained = trainer.run(advance, run.log)
    return Artefact(folder.name, trained.snapshots, samples_cost(base, settings) + Cost(budgets[-1]))


def _work(expected: Expected) -> Work:
    budgets = {*expected.settings.auxiliary.budgets}
    training = Training("auxiliary", training_of(expected.settings))
    trained = training_work("", training, max(budgets), leaves="discriminator", snapshots=len(budgets))
    return with_samples(trained, expected)


def _guided(base: Model, aux: Model, w: float) -> Denoiser:
    return DensityRatio(base.denoiser, aux.denoiser, w)


DISCRIMINATOR = Method(
    "discriminator",
    "guided by what tells its samples from data",
    Look("Discriminator guidance", "#5a6b00", "#b5cc3d", "s"),
    Continuous(),
    _prepare,
    _guided,
    _work,
    needs_real=True,
    networks=3,  # its own, and a pass of the discriminator and back
    prepared_as="discriminator",
    default=False,
)
