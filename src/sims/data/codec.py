"""The codec: how stored values (pixels, latents, points) become model space and come back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sims.config import JSON, convert, to_dict
from sims.errors import UserError

KINDS = ("pixels", "identity", "latents")


@dataclass(frozen=True)
class Latents:
    """What latents in model space are: (z - shift) * scale of an autoencoder's latents z.

    shift, scale   one number per channel, or one for all of them
    pixels         the values that the autoencoder takes for black and white
    vae, vae_hash  folder and content hash of the autoencoder that decodes them; None where none was named
    """

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    pixels: tuple[float, float] = (-1.0, 1.0)
    vae: str | None = None
    vae_hash: str | None = None

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "pixels"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        values = [*self.shift, *self.scale, *self.pixels]
        if not self.shift or not self.scale or not np.isfinite(values).all() or 0.0 in self.scale:
            raise UserError(
                f"latents with shift {list(self.shift)} and scale {list(self.scale)}: give finite numbers, one for "
                "each channel or one for all, and no scale of 0"
            )


# What EDM2's networks for 512x512 take (Karras et al. 2024): each channel standardized, then scaled to 0.5. Their
# autoencoder, sd-vae-ft-mse, is given pixels from 0 to 1 there, not from -1 to 1 as elsewhere.
EDM2_LATENTS = Latents(
    shift=(5.81, 3.25, 0.12, -2.15), scale=(0.5 / 4.17, 0.5 / 4.62, 0.5 / 3.71, 0.5 / 3.28), pixels=(0.0, 1.0)
)


@dataclass(frozen=True)
class Codec:
    """Maps raw values to model space and back.

    `pixels` maps [low, high] to [-1, 1]; `identity` (toys) and `latents` keep the values, and low and high only say
    what range to show. `dtype` is the numpy dtype of the raw values; `latents` says what an autoencoder made them with.
    """

    kind: str
    low: float
    high: float
    dtype: str
    latents: Latents | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"codec kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise UserError(
                f"value range [{self.low}, {self.high}] is empty or not finite: give a low end below the high end"
            )
        try:
            known = np.dtype(self.dtype).kind in "fiub"
        except (TypeError, ValueError, SyntaxError):
            known = False
        if not known:
            raise UserError(f"codec dtype {self.dtype[:40]!r} is unknown: use one of numbers, such as uint8")
        if (self.kind == "latents") != (self.latents is not None):
            raise UserError(
                f"a codec of kind {self.kind!r} with latents {self.latents}: they go together, or not at all"
            )

    @property
    def half(self) -> float:
        """Half the value range: one unit of model space in raw values."""
        return (self.high - self.low) / 2

    @property
    def integer(self) -> bool:
        """Whether raw values are whole numbers."""
        return np.dtype(self.dtype).kind in "iu"

    def encode(self, raw: np.ndarray | Tensor) -> Tensor:
        """Raw values (any shape) to model space, float32."""
        # numpy values are copied, because memory maps are read-only
        values = raw if isinstance(raw, Tensor) else torch.from_numpy(np.array(raw, dtype=np.float32))
        x = values.to(torch.float32)
        if self.kind != "pixels":
            return x
        return (x - self.low) / self.half - 1

    def decode(self, x: Tensor) -> np.ndarray:
        """Model space to raw values in the raw dtype.

        Pixels are clipped to [low, high]; whole numbers are rounded half up, as EDM's generate.py does.
        """
        x = x.detach().cpu()
        x = x if x.dtype == torch.float64 else x.to(torch.float32)
        offset = 0.5 if self.integer else 0.0
        if self.kind == "pixels":
            x = x * self.half + (self.low + self.half + offset)
            values = (x.floor() if self.integer else x).clamp(self.low, self.high).numpy()
        else:
            values = ((x + offset).floor() if self.integer else x).numpy()
        return values.astype(self.dtype)

    def to_images(self, x: Tensor) -> np.ndarray:
        """Model space (N, C, H, W) to uint8 (N, H, W, C) to look at: C is 1, 3 or 4, else the first 3 or 1."""
        if x.ndim != 4:
            raise UserError(
                f"data of shape {tuple(x.shape[1:])} are not images: only (C, H, W) can be shown as pictures"
            )
        channels = x.shape[1]
        if self.kind != "pixels" or channels not in (1, 3, 4):
            x = x[:, : 3 if channels >= 3 else 1]
        x = x.detach().cpu().to(torch.float32)
        if self.kind != "pixels":
            x = (x - self.low) / self.half - 1
        x = (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)

    def to_json(self) -> dict[str, JSON]:
        """A JSON-able description; `from_json` reads it back."""
        described = to_dict(self)
        if self.latents is None:
            del described["latents"]
        return described

    @property
    def identity(self) -> dict[str, JSON]:
        """Its description without the place where an autoencoder lies, for content hashes."""
        return replace(self, latents=replace(self.latents, vae=None)).to_json() if self.latents else self.to_json()

    @classmethod
    def from_json(cls, obj: JSON) -> Codec:
        """The codec that `to_json` described; raises UserError for anything else."""
        return convert(obj, cls, "codec", what="entry")  # type: ignore[no-any-return]


ABSURD = 1e3  # what a value that is not finite becomes: as far away as any figure needs it to be


def finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (n, ...) with finite values, and which (n,) had others: bad samples, whose values lie far away."""
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    return (x.nan_to_num(ABSURD, ABSURD, -ABSURD) if bad.any() else x), bad


UINT8 = Codec("pixels", 0.0, 255.0, "uint8")
