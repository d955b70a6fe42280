"""The model that an experiment starts from: one that is given, or one trained on the real data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.latent_space import with_given_vae
from sims.experiments.options import CommonOptions
from sims.guidance import Guide
from sims.interop.opening import fetched, open_model
from sims.interop.reading import said
from sims.methods import Base
from sims.model import Model, load
from sims.preconditioning import Preconditioned
from sims.runs.directory import Run
from sims.runs.work import Training, Work, training_work
from sims.sampling import SamplerOptions
from sims.seeds import derive_seed
from sims.training import arithmetic
from sims.training.base import train_base


def given_model(
    path: Path | None,
    sampler: SamplerOptions,
    device: torch.device | str,
    vae: Path | None = None,
    weights: Path | None = None,
    download: bool = False,
) -> Model | None:
    """The model to improve, where one is given, with the sampler asked for; its own where that is the default."""
    if path is None:
        return None
    model = open_model(fetched(path, download), weights).to(device)
    if isinstance(model.denoiser, Guide):
        raise UserError(
            f"{path} is a guided model, and only a single network can be improved: "
            "give the folder 'distilled' of its run"
        )
    model = with_given_vae(model, vae)
    return with_sampler(model, sampler)


def with_sampler(model: Model, sampler: SamplerOptions) -> Model:
    """A given model with the sampler asked for; with its own where that is the default."""
    return model if sampler == SamplerOptions() else replace(model, sampler=sampler)


def require_shape(model: Model | None, given: Path | None, shape: tuple[int, ...], path: str) -> None:
    """UserError where a given model makes data of another shape than the data at ``path`` have."""
    if model is not None and model.data_shape != shape:
        raise UserError(
            f"the model {given} makes data of shape {model.data_shape}, {path} has {shape}: give the data it was "
            "trained on (data.source.size and data.source.grayscale change pictures)"
        )


def base_of(run: Run, options: CommonOptions, real: Dataset | None, given: Model | None) -> Base:
    """The given model, which draws classes in the shares that it knows, else in those of the data; or one trained."""
    seed, train = derive_seed("base", options.seed), options.base.train
    if arithmetic.has_bf16(run.device):
        run.log(f"arithmetic of training, where it is auto: {arithmetic.said(run.device)}")
    if given is not None:
        for line in said(given):
            run.log(line)
        if real is not None and given.num_classes == real.num_classes and not given.class_shares:
            assert isinstance(given.denoiser, Preconditioned)
            given.denoiser.class_shares = real.class_shares
            run.log(
                "the model does not say how often it saw each class: classes are drawn as often as the data have them"
            )
        return Base(given, given.hash, seed=seed, train=train)
    assert real is not None
    latent, folder = real.codec.latents is not None, run.path / "base"
    images = options.base.length(real.data_shape, latent)
    run.log(f"network: {options.network.settled(real.data_shape, latent).said()}; trained on {images:,} images")
    with run.progress("train the base", images) as advance:
        trained = train_base(
            real, options.network, options.sampler, train, folder, images=images, seed=seed,
            snapshots=tuple(max(1, round(images * share)) for share in options.base.snapshots),
            accelerator=run.accelerator, advance=advance, log=run.log,
        )  # fmt: skip
    model = load(trained.last, run.device)
    earlier = {budget: path for budget, path in trained.snapshots.items() if budget < images}
    return Base(model, model.hash, earlier, folder, images, seed, train)


TRAIN_BASE = "train the base"


def base_work(options: CommonOptions, data_shape: Sequence[int], latent: bool = False) -> Work:
    """What training the base counts."""
    training, snapshots = Training("base", options.base.train), len({*options.base.snapshots}) + 1
    return training_work(
        TRAIN_BASE, training, options.base.length(data_shape, latent), leaves="base", snapshots=snapshots
    )
