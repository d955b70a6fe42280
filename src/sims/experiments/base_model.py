"""The model that an experiment starts from: one that is given, or one trained on the real data."""

from __future__ import annotations

from dataclasses import replace

import torch

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.latents import with_given_vae
from sims.experiments.options import CommonOptions, ImproveOptions
from sims.guidance import Guide
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.nvidia import import_model
from sims.methods import Base
from sims.model import Model, load
from sims.runs.directory import Run
from sims.runs.work import Training, Work, training_work
from sims.sampling import SamplerOptions
from sims.seeds import derive_seed
from sims.training.base import train_base


def given_model(options: ImproveOptions, device: torch.device | str) -> Model | None:
    """The model to improve, where one is given, with the sampler asked for; its own where that is the default."""
    if options.model is None:
        return None
    if options.model.is_file() and options.model.suffix == ".pkl":
        model = import_model(options.model).to(device)
    else:
        foreign = not (options.model / "model.json").is_file() and is_diffusers(options.model)
        model = load_diffusers(options.model).to(device) if foreign else load(options.model, device)
    if isinstance(model.denoiser, Guide):
        raise UserError(
            f"{options.model} is a guided model, and only a single network can be improved: "
            "give the folder 'distilled' of its run"
        )
    model = with_given_vae(model, options.vae)
    return model if options.sampler == SamplerOptions() else replace(model, sampler=options.sampler)


def base_of(run: Run, options: CommonOptions, real: Dataset | None, given: Model | None) -> Base:
    """The given model, or one trained on the real data."""
    seed, train = derive_seed("base", options.seed), options.base.train
    if given is not None:
        return Base(given, given.hash, seed=seed, train=train)
    assert real is not None
    images, folder = options.base.images, run.path / "base"
    with run.progress("train the base", images) as advance:
        trained = train_base(
            real,
            options.network,
            options.sampler,
            train,
            folder,
            images=images,
            seed=seed,
            snapshots=tuple(max(1, round(images * share)) for share in options.base.snapshots),
            accelerator=run.accelerator,
            advance=advance,
            log=run.log,
        )
    model = load(trained.last, run.device)
    earlier = {budget: path for budget, path in trained.snapshots.items() if budget < images}
    return Base(model, model.hash, earlier, folder, images, seed, train)


TRAIN_BASE = "train the base"


def base_work(options: CommonOptions) -> Work:
    """What training the base counts."""
    training, snapshots = Training("base", options.base.train), len({*options.base.snapshots}) + 1
    return training_work(TRAIN_BASE, training, options.base.images, leaves="base", snapshots=snapshots)
