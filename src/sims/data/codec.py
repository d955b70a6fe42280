"""The codec: how stored values (pixels, latents, points) become model space and come back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError

KINDS = ("pixels", "identity")


@dataclass(frozen=True)
class Codec:
    """Maps raw values to model space and back.

    `pixels` maps [low, high] to [-1, 1]; `identity` (toys, latents) keeps the values, and low and high
    only say what range to show. `dtype` is the numpy dtype of the raw values.
    """

    kind: str
    low: float
    high: float
    dtype: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"codec kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise UserError(
                f"value range [{self.low}, {self.high}] is empty or not finite: give a low end below the high end"
            )
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise UserError(f"codec dtype {self.dtype!r} is unknown: use a numpy dtype such as uint8") from error

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
        if self.kind == "identity":
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
        if self.kind == "identity" or channels not in (1, 3, 4):
            x = x[:, : 3 if channels >= 3 else 1]
        x = x.detach().cpu().to(torch.float32)
        if self.kind == "identity":
            x = (x - self.low) / self.half - 1
        x = (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return x.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able description; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> Codec:
        """The codec that `to_json` described; raises UserError for anything else."""
        try:
            return cls(str(obj["kind"]), float(obj["low"]), float(obj["high"]), str(obj["dtype"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{obj!r} describes no codec: it needs kind, low, high and dtype") from error


UINT8 = Codec("pixels", 0.0, 255.0, "uint8")
