"""The network that is asked for: architecture, sizes and noise levels, as options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sims.config import JSON
from sims.errors import UserError
from sims.networks.usual import attended, usual

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

    type: Literal["auto", "mlp", "ddpmpp", "ncsnpp", "adm", "edm2", "dit"] = "auto"
    """Architecture: mlp (points and pictures up to 12 pixels), the U-Nets DDPM++, NCSN++, ADM and EDM2, the transformer dit; auto: by the data and the machine, as are the sizes that are not given."""  # noqa: E501
    width: int | None = None
    """Width of the residual stream; channels at full resolution of a U-Net."""
    patch: int | None = None
    """Height and width of the patches that are one token each (dit; 2), or one pixel of a U-Net (1, or as is usual)."""
    blocks: int | None = None
    """Number of residual blocks; of a U-Net, per resolution."""
    embedding: int = 64
    """Width of the embedding of noise level and class (mlp)."""
    channel_mult: tuple[int, ...] | None = None
    """Channels at each resolution of a U-Net, from full to lowest, in units of width."""
    attention: tuple[int, ...] | None = None
    """Resolutions (pixels a side; of the longer side, padded; each patch a pixel) at which a U-Net attends."""
    dropout: float = 0.0
    """Dropout probability in training."""
    label_dropout: float = 0.0
    """Share of the training images whose class is not told (class-conditional models); above 0 (0.1 is usual) the model can be told no class, which classifier-free guidance needs."""  # noqa: E501
    sigma_data: float | None = None
    """Standard deviation of the data in model space; measured if not given."""
    sigma_min: float = 0.002
    """Lowest noise level."""
    sigma_max: float = 80.0
    """Highest noise level."""

    def __post_init__(self) -> None:
        given = [size for size in (self.width, self.blocks, self.patch) if size is not None]
        if min([*given, self.embedding]) < 1:
            raise UserError("network: width, blocks, embedding and patch must be at least 1")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"network.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise UserError(f"network.sigma_data is {self.sigma_data}: give a positive number, or leave it out")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(
                f"network.sigma_min and sigma_max are {self.sigma_min} and {self.sigma_max}: "
                "noise levels need 0 < sigma_min < sigma_max, such as 0.002 and 80"
            )

    def settled(self, data_shape: Sequence[int], latent: bool = False) -> NetworkOptions:
        """These options with all that was left open, by the table of ``sims.networks.usual``."""
        row = usual(data_shape, latent, kind=self.type)
        sizes = ("type", "width", "blocks", "channel_mult", "patch")
        made = replace(self, **{name: getattr(row, name) for name in sizes if getattr(self, name) in (None, "auto")})
        if self.channel_mult is None and made.channel_mult and len(data_shape) == 3:  # the shorter side can be halved
            levels = max(1, (min(data_shape[1:]) // (made.patch or 1)).bit_length())
            made = replace(made, channel_mult=made.channel_mult[:levels])
        if self.attention is None:
            seen = (data_shape[0], *(-(-side // (made.patch or 1)) for side in data_shape[1:]))
            made = replace(made, attention=attended(seen, made.channel_mult or (), row.attention))
        return made

    def said(self) -> str:
        """In words, of options that are settled."""
        sizes = f"{self.type}, width {self.width}, {self.blocks} blocks"
        if self.type == "mlp":
            return sizes
        sizes = f"{sizes}, patches of {self.patch}" if (self.patch or 1) > 1 else sizes
        if self.type == "dit":
            return sizes
        mult, at = (",".join(map(str, values or ())) for values in (self.channel_mult, self.attention))
        return f"{sizes} at each of {mult} times that width, attention at {at} pixels"

    def tables(self, sigma_data: float, augment_dim: int = 0) -> tuple[dict[str, JSON], dict[str, JSON]]:
        """The tables of network and preconditioning that ``make_network`` takes, of options that are settled."""
        assert self.width is not None and self.blocks is not None
        if augment_dim and self.type in ("mlp", "edm2", "dit"):
            raise UserError(f"the network {self.type} cannot be told of augmentations: set base.train.augment to 0")
        kind = "edm2" if self.type == "edm2" else "edm"
        limits: dict[str, JSON] = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        precond: dict[str, JSON] = {"type": kind, "sigma_data": sigma_data, **limits}
        dropped: dict[str, JSON] = {"dropout": self.dropout}
        dropped |= {"label_dropout": self.label_dropout} if self.label_dropout else {}
        if self.type == "mlp":
            sizes: dict[str, JSON] = {"width": self.width, "blocks": self.blocks, "embedding": self.embedding}
            return {"type": "mlp", **sizes, **dropped}, precond
        if self.type == "dit":
            heads = next(n for n in range(max(1, self.width // _HEAD), 0, -1) if self.width % n == 0)
            sizes = {"hidden_size": self.width, "depth": self.blocks, "num_heads": heads, "patch_size": self.patch or 2}
            return {"type": "dit", **sizes, **dropped}, precond
        network, more = UNETS[self.type]
        table: dict[str, JSON] = {"type": network, **more, "model_channels": self.width, "num_blocks": self.blocks}
        table |= {} if (self.patch or 1) == 1 else {"patch_size": self.patch}
        table |= {"channel_mult": list(self.channel_mult or ()), "attn_resolutions": list(self.attention or ())}
        return {**table, **dropped, **({"augment_dim": augment_dim} if augment_dim else {})}, precond
