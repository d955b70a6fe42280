"""The network that is asked for: architecture, sizes and noise levels, as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sims.config import JSON
from sims.errors import UserError

NCSNPP: dict[str, JSON] = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
UNETS: dict[str, tuple[str, dict[str, JSON]]] = {
    "ddpmpp": ("song_unet", {}),
    "ncsnpp": ("song_unet", {**NCSNPP, "resample_filter": [1, 3, 3, 1]}),
    "adm": ("adm_unet", {}),
    "edm2": ("edm2_unet", {}),
}
_HEAD = 64  # channels of an attention head of a transformer


@dataclass(frozen=True)
class NetworkOptions:
    """The network and its preconditioning."""

    type: Literal["mlp", "ddpmpp", "ncsnpp", "adm", "edm2", "dit"] = "mlp"
    """Architecture: mlp (tiny images and points), the U-Nets DDPM++, NCSN++, ADM and EDM2, or the transformer dit."""
    width: int = 256
    """Width of the residual stream; channels at full resolution of a U-Net."""
    patch: int = 2
    """Height and width of the patches that are one token each (dit)."""
    blocks: int = 3
    """Number of residual blocks; of a U-Net, per resolution."""
    embedding: int = 64
    """Width of the embedding of noise level and class (mlp)."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Channels at each resolution of a U-Net, from full to lowest, in units of width."""
    attention: tuple[int, ...] = (8,)
    """Resolutions (pixels a side; of the longer side, padded) at which a U-Net attends."""
    dropout: float = 0.0
    """Dropout probability in training."""
    sigma_data: float | None = None
    """Standard deviation of the data in model space; measured if not given."""
    sigma_min: float = 0.002
    """Lowest noise level."""
    sigma_max: float = 80.0
    """Highest noise level."""

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.embedding, self.patch) < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "network: width, blocks, embedding and patch must be at least 1, dropout at least 0 and below 1"
            )

    def tables(self, sigma_data: float, augment_dim: int = 0) -> tuple[dict[str, JSON], dict[str, JSON]]:
        """The tables of network and preconditioning that ``make_network`` takes."""
        if augment_dim and self.type in ("mlp", "edm2", "dit"):
            raise UserError(f"the network {self.type} cannot be told of augmentations: set base.train.augment to 0")
        kind = "edm2" if self.type == "edm2" else "edm"
        limits: dict[str, JSON] = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        precond: dict[str, JSON] = {"type": kind, "sigma_data": sigma_data, **limits}
        if self.type == "mlp":
            sizes: dict[str, JSON] = {"width": self.width, "blocks": self.blocks, "embedding": self.embedding}
            return {"type": "mlp", **sizes, "dropout": self.dropout}, precond
        if self.type == "dit":
            heads = next(n for n in range(max(1, self.width // _HEAD), 0, -1) if self.width % n == 0)
            sizes = {"hidden_size": self.width, "depth": self.blocks, "num_heads": heads, "patch_size": self.patch}
            return {"type": "dit", **sizes, "dropout": self.dropout}, precond
        network, more = UNETS[self.type]
        table: dict[str, JSON] = {"type": network, **more, "model_channels": self.width, "num_blocks": self.blocks}
        table |= {"channel_mult": list(self.channel_mult), "attn_resolutions": list(self.attention)}
        return {**table, "dropout": self.dropout, **({"augment_dim": augment_dim} if augment_dim else {})}, precond
