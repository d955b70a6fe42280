"""Train: a new model on a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import Model, make_network
from sims.sampling import SamplerOptions
from sims.training.loop import Trained, Trainer, TrainOptions


@dataclass(frozen=True)
class NetworkOptions:
    """The network and its preconditioning."""

    type: Literal["mlp"] = "mlp"
    """Architecture: mlp (tiny images and points)."""
    width: int = 256
    """Width of the residual stream."""
    blocks: int = 3
    """Number of residual blocks."""
    embedding: int = 64
    """Width of the embedding of noise level and class."""
    dropout: float = 0.0
    """Dropout probability in training."""
    sigma_data: float | None = None
    """Standard deviation of the data in model space; measured if not given."""
    sigma_min: float = 0.002
    """Lowest noise level."""
    sigma_max: float = 80.0
    """Highest noise level."""

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.embedding) < 1 or not 0 <= self.dropout < 1:
            raise UserError("network: width, blocks and embedding must be at least 1, dropout at least 0 and below 1")


def new_model(data: Dataset, options: NetworkOptions, sampler: SamplerOptions, seed: int) -> Model:
    """A model with freshly drawn weights for this data; class-conditional if the data has labels."""
    settings = asdict(options)
    sigma_data = settings.pop("sigma_data") or round(data.std(), 4)
    sigmas = {name: settings.pop(name) for name in ("sigma_min", "sigma_max")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        precond = {"type": "edm", "sigma_data": sigma_data, **sigmas}
        denoiser = make_network(data.data_shape, data.num_classes, settings, precond)
    provenance = {"data": data.name, "data_fingerprint": data.fingerprint, "seed": seed}
    return Model(denoiser, data.codec, sampler, data.class_names, provenance)


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
    start = new_model(data, network, sampler, seed)
    trainer = Trainer(
        start, data, options, folder, images=images, seed=seed, snapshots=snapshots, accelerator=accelerator
    )
    return trainer.run(advance, log)
