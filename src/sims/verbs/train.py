"""Train: a new model on a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import Model, make_network
from sims.sampling import SamplerOptions
from sims.training.augment import augment_dim
from sims.training.loop import Trained, Trainer, TrainOptions

NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpmpp": ("song_unet", {}),
    "ncsnpp": ("song_unet", {**NCSNPP, "resample_filter": (1, 3, 3, 1)}),
    "adm": ("adm_unet", {}),
    "edm2": ("edm2_unet", {}),
}


@dataclass(frozen=True)
class NetworkOptions:
    """The network and its preconditioning."""

    type: Literal["mlp", "ddpmpp", "ncsnpp", "adm", "edm2"] = "mlp"
    """Architecture: mlp (tiny images and points), or the U-Nets DDPM++, NCSN++, ADM and EDM2."""
    width: int = 256
    """Width of the residual stream; channels at full resolution of a U-Net."""
    blocks: int = 3
    """Number of residual blocks; of a U-Net, per resolution."""
    embedding: int = 64
    """Width of the embedding of noise level and class (mlp)."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Channels at each resolution of a U-Net, from full to lowest, in units of width."""
    attention: tuple[int, ...] = (8,)
    """Resolutions (pixels a side) at which a U-Net attends."""
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

    def tables(self, sigma_data: float, augment_dim: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tables of network and preconditioning that ``make_network`` takes."""
        precond = {"type": "edm", "sigma_data": sigma_data, "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        if self.type == "mlp":
            if augment_dim:
                raise UserError("the network mlp cannot be told of augmentations: set base.train.augment to 0")
            own = {"width": self.width, "blocks": self.blocks, "embedding": self.embedding, "dropout": self.dropout}
            return {"type": "mlp", **own}, precond
        kind, more = UNETS[self.type]
        table: dict[str, Any] = {"type": kind, **more, "model_channels": self.width, "num_blocks": self.blocks}
        table |= {"channel_mult": self.channel_mult, "attn_resolutions": self.attention, "dropout": self.dropout}
        if self.type == "edm2":
            precond["type"] = "edm2"
            if augment_dim:
                raise UserError("the network edm2 cannot be told of augmentations: set base.train.augment to 0")
        elif augment_dim:
            table["augment_dim"] = augment_dim
        return table, precond


def new_model(
    data: Dataset, options: NetworkOptions, sampler: SamplerOptions, seed: int, train: TrainOptions | None = None
) -> Model:
    """A model with freshly drawn weights for this data; class-conditional if the data has labels.

    ``train`` says what the network must be able to be told of augmentations.
    """
    width = augment_dim(train.augment_transforms) if train is not None and train.augment else 0
    network, precond = options.tables(options.sigma_data or round(data.std(), 4), width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = make_network(data.data_shape, data.num_classes, network, precond)
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
    start = new_model(data, network, sampler, seed, options)
    trainer = Trainer(
        start, data, options, folder, images=images, seed=seed, snapshots=snapshots, accelerator=accelerator
    )
    return trainer.run(advance, log)
