"""The autoencoder of a latent model: pictures to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.denoiser import device_of
from sims.errors import UserError
from sims.files import atomic_path, digest

LATENTS = Codec("identity", -3.0, 3.0, "float32")  # how latents are stored: as they are


class LatentCodec:
    """Pictures (N, 3, H, W) uint8 to latents (N, C, h, w) float32 and back, with an AutoencoderKL of diffusers.

    Latents are (z - shift_factor) * scaling_factor of the posterior's mean z, or with the statistics of each channel
    (latents_mean, latents_std) where the autoencoder has them; no random draw, so that latents are reproducible.
    """

    def __init__(self, vae: nn.Module, batch_size: int = 16) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.batch_size = batch_size
        config: Any = vae.config
        self.channels, self.reduction = int(config.in_channels), 2 ** (len(config.block_out_channels) - 1)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self.shift = float(config.get("shift_factor") or 0.0) if mean is None else _per_channel(mean)
        scale = float(config.get("scaling_factor") or 1.0)
        self.scale = scale if std is None else scale / _per_channel(std)

    @property
    def hash(self) -> str:
        """Content hash of the autoencoder's weights and scaling."""
        parts: list[Any] = [[torch.as_tensor(v).flatten().tolist() for v in (self.shift, self.scale)]]
        for name, tensor in self.vae.state_dict().items():
            parts += [name, tensor.cpu().contiguous().numpy().tobytes()]
        return digest(*parts)[:16]

    @torch.no_grad()
    def encode(self, raw: np.ndarray) -> Tensor:
        """Pictures (N, C, H, W) uint8 to latents (N, c, h, w) float32, on the CPU; UserError for a size that is odd."""
        if raw.ndim != 4 or raw.shape[1] != self.channels or any(size % self.reduction for size in raw.shape[2:]):
            raise UserError(
                f"pictures of shape {raw.shape[1:]} cannot be encoded: the autoencoder takes {self.channels} channels, "
                f"height and width multiples of {self.reduction}; resize or convert them"
            )
        device = device_of(self.vae)
        parts = []
        for start in range(0, len(raw), self.batch_size):
            pictures = UINT8.encode(raw[start : start + self.batch_size]).to(device)
            mean = self.vae.encode(pictures).latent_dist.mode()  # type: ignore[operator]
            parts.append(((mean - _on(self.shift, mean)) * _on(self.scale, mean)).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (N, c, h, w) to pictures (N, C, H, W) uint8."""
        device = device_of(self.vae)
        parts = []
        for start in range(0, len(latents), self.batch_size):
            z = latents[start : start + self.batch_size].to(device, torch.float32)
            z = z / _on(self.scale, z) + _on(self.shift, z)
            parts.append(UINT8.decode(self.vae.decode(z).sample))  # type: ignore[operator]
        return np.concatenate(parts)

    def to_images(self, latents: Tensor) -> np.ndarray:
        """Latents to pictures to look at, (N, H, W, C) uint8."""
        return np.ascontiguousarray(self.decode(latents).transpose(0, 2, 3, 1))

    def dataset(self, pictures: Dataset, cache: Path | None = None) -> Dataset:
        """The latents of a data set, with its labels; kept in the folder ``cache`` and found again there."""
        file = None if cache is None else cache / f"latents-{digest(self.hash, pictures.fingerprint)[:16]}.safetensors"
        if file is not None and file.is_file():
            latents = load_file(file)["latents"]
        else:
            latents = self.encode(pictures.raw)
            if file is not None:
                with atomic_path(file) as temporary:
                    save_file({"latents": latents}, temporary)
        return Dataset(latents.numpy(), pictures.labels, LATENTS, pictures.class_names, pictures.name)


def _per_channel(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


def _on(value: float | Tensor, like: Tensor) -> float | Tensor:
    return value.to(like) if isinstance(value, Tensor) else value
