"""Train: a new model on a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from sims.config import JSON
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.limits import free_memory
from sims.model import Model, make_network
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.training.augment import augment_dim
from sims.training.trainer import Trained, Trainer, TrainOptions

TRAINED = 20  # bytes of a parameter in training: itself, its gradient, its average, and Adam's two moments


def new_model(
    data: Dataset, options: NetworkOptions, sampler: SamplerOptions, seed: int, train: TrainOptions | None = None
) -> Model:
    """A model with freshly drawn weights for this data; class-conditional if the data has labels.

    ``train`` says what the network must be able to be told of augmentations.
    """
    width = augment_dim(train.augment_transforms) if train is not None and train.augment else 0
    if not options.sigma_data:
        data.require_varied()
    sigma_data = options.sigma_data or max(round(data.std(), 4), 1e-4)
    settled = options.settled(data.data_shape, data.codec.latents is not None)
    network, precond = settled.tables(sigma_data, width)
    _require_memory(data, network, precond)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = make_network(data.data_shape, data.num_classes, network, precond)
    denoiser.class_shares = data.class_shares
    provenance: dict[str, JSON] = {"data": data.name, "data_fingerprint": data.fingerprint, "seed": seed}
    if train is not None and train.lr is not None:
        provenance["lr"] = train.lr
    return Model(denoiser, data.codec, sampler, data.class_names, provenance)


def _require_memory(data: Dataset, network: dict[str, JSON], precond: dict[str, JSON]) -> None:
    """UserError for a network that this machine cannot hold, before it is made; on a CPU, not train either."""
    with torch.device("meta"):
        made = make_network(data.data_shape, data.num_classes, dict(network), dict(precond))
    count, free = sum(weight.numel() for weight in made.parameters()), free_memory()
    there, what = (4, "hold") if torch.cuda.is_available() else (TRAINED, "train")
    if there * count > free:
        raise UserError(
            f"a network of {count / 1e6:,.1f} million parameters takes {there * count / 1e9:,.1f} GB to {what}, and "
            f"{free / 1e9:,.1f} GB of memory are free: give a smaller option 'network.width' or 'network.blocks'"
        )


def train_base(
    data: Dataset,
    network: NetworkOptions,
    sampler: SamplerOptions,
    options: TrainOptions,
    folder: Path,
    *,
    images: int,
    seed: int,
    snapshots: tuple[int, ...] = (),
    accelerator: Accelerator | None = None,
    advance: Callable[[int], None] | None = None,
    log: Callable[[str], None] = print,
) -> Trained:
    """Train a new model for ``images`` images, keeping ``snapshots`` on the way; continues what was interrupted."""
    start = new_model(data, network, sampler, seed, options)
    trainer = Trainer(
        start, data, options, folder, images=images, seed=seed, snapshots=snapshots, accelerator=accelerator
    )
    return trainer.run(advance, log)
