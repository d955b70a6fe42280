"""The autoencoder of a latent model: pictures to latents and back.

A model knows by its codec (kind "latents") what its latents are; the autoencoder itself is opened when pixels are asked
for. Its folder is one of diffusers (AutoencoderKL), as `stabilityai/sd-vae-ft-mse` or the `vae` of a pipeline is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sims.config import JSON, convert, read_as
from sims.data.codec import UINT8, Codec, Latents
from sims.data.dataset import Dataset
from sims.data.mapped import mapped, say
from sims.denoiser import device_of
from sims.errors import UserError
from sims.files import digest, digest_file
from sims.interop.diffusers_weights import pretrained

_BATCH = 16  # pictures that the autoencoder works on at once
_REMEDY = "give the folder of an AutoencoderKL of diffusers with option 'vae'"


@dataclass(frozen=True)
class Settings:
    """What counts of an autoencoder's configuration, under the names that it has there, with the library's defaults."""

    in_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    scaling_factor: float | None = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.block_out_channels) > 16 or 0.0 in (self.latents_std or ()):
            raise UserError("AutoencoderKL: block_out_channels has at most 16 entries, and latents_std no 0")

    @classmethod
    def of(cls, config: Mapping[str, JSON]) -> Settings:
        """The settings of a configuration. Errors: UserError for a value of another type."""
        told = {entry.name: config[entry.name] for entry in fields(cls) if entry.name in config}
        return convert(told, cls, "AutoencoderKL", what="setting")  # type: ignore[no-any-return]

    @property
    def reduction(self) -> int:
        """Pixels to a latent, along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def latents(self) -> Latents:
        """How latents are scaled for a model."""
        factor = self.scaling_factor or 1.0
        shift = (self.shift_factor or 0.0,) if self.latents_mean is None else self.latents_mean
        scale = (factor,) if self.latents_std is None else tuple(factor / value for value in self.latents_std)
        return Latents(shift, scale)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape (c, h, w) of the latents of pictures (C, H, W); UserError for pictures that cannot be encoded."""
        step = self.reduction
        if len(shape) != 3 or shape[0] != self.in_channels or any(size % step for size in shape[1:]):
            raise UserError(
                f"pictures of shape {tuple(shape)} cannot be encoded: the autoencoder takes {self.in_channels} "
                f"channels, height and width multiples of {step}; resize or convert them (option 'source.size')"
            )
        return self.latent_channels, shape[1] // step, shape[2] // step


class Autoencoder:
    """Pictures (N, C, H, W) uint8 to latents (N, c, h, w) float32 in model space and back.

    ``latents`` says how model space follows from the autoencoder's own latents; without it, its configuration does
    (scaling_factor and shift_factor, or latents_mean and latents_std). Encoding takes the mean of the posterior and
    draws nothing, so that latents are reproducible.
    """

    def __init__(self, vae: nn.Module, latents: Latents | None = None, batch_size: int = _BATCH) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.batch_size = batch_size
        self.settings = Settings.of(vae.config)  # type: ignore[arg-type]
        self.latents = latents or self.settings.latents
        self.shift, self.scale = (_per_channel(values) for values in (self.latents.shift, self.latents.scale))
        low, high = self.latents.pixels
        self._centre, self._half = (high + low) / 2, (high - low) / 2

    @torch.no_grad()
    def encode(self, raw: np.ndarray) -> Tensor:
        """Pictures (N, C, H, W) uint8 to latents (N, c, h, w) float32, on the CPU; UserError for a size that is odd."""
        self.settings.latent_shape(raw.shape[1:])
        device = device_of(self.vae)
        parts = []
        for start in range(0, len(raw), self.batch_size):
            pictures = UINT8.encode(raw[start : start + self.batch_size]).to(device) * self._half + self._centre
            z = self.vae.encode(pictures).latent_dist.mode()  # type: ignore[operator]
            parts.append(((z - self.shift.to(z)) * self.scale.to(z)).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (N, c, h, w) to pictures (N, C, H, W) uint8."""
        device = device_of(self.vae)
        parts = []
        for start in range(0, len(latents), self.batch_size):
            z = latents[start : start + self.batch_size].to(device, torch.float32)
            z = z / self.scale.to(z) + self.shift.to(z)
            pictures = (self.vae.decode(z).sample - self._centre) / self._half  # type: ignore[operator]
            parts.append(UINT8.decode(pictures))
        return np.concatenate(parts)

    @property
    def hash(self) -> str:
        """Content hash of the autoencoder and of how latents are scaled."""
        codec = Codec("latents", -3.0, 3.0, "float32", self.latents)
        return digest(codec.identity)[:16]

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents to pictures (N, C, H, W) float32 in [-1, 1] on the CPU, rounded to 8 bits: as metrics see them."""
        return UINT8.encode(self.decode(latents))

    def pixel_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the picture that latents of a shape (c, h, w) decode to."""
        return self.settings.in_channels, *(size * self.settings.reduction for size in shape[1:])

    def to_images(self, latents: Tensor) -> np.ndarray:
        """Latents to pictures to look at, (N, H, W, C) uint8."""
        return np.ascontiguousarray(self.decode(latents).transpose(0, 2, 3, 1))

    def dataset(self, pictures: Dataset, codec: Codec, cache: Path, log: Callable[[str], None] = say) -> Dataset:
        """The latents of a data set, with its labels, on disk in the folder ``cache``; encoded once, then found there.

        Their name is a hash of pictures and autoencoder, and an interrupted encoding continues.
        """
        if pictures.codec != UINT8:
            raise UserError(
                f"{pictures.name} holds values of type {pictures.codec.dtype}, and the autoencoder takes 8-bit pictures"
            )
        shape = (len(pictures), *self.settings.latent_shape(pictures.data_shape))
        raw = mapped(
            cache,
            lambda: f"latents-{digest('latents', codec.identity, pictures.fingerprint)[:24]}",
            shape,
            np.dtype("float32"),
            lambda part: self.encode(pictures.raw[part.start : part.stop]).numpy(),
            block=256,
            what=f"encoding {len(pictures):,} pictures of {pictures.name} as latents",
            log=log,
        )
        return replace(pictures, raw=raw, codec=codec)


def latent_codec(folder: Path | str, latents: Latents | None = None) -> Codec:
    """The codec of latents that the autoencoder in ``folder`` makes and decodes.

    ``latents`` says how a model scales them, where that is not as the autoencoder's configuration has it. Reads the
    configuration and hashes the weights; UserError where there is no AutoencoderKL.
    """
    folder = _folder(folder)
    settings = Settings.of(_config(folder))
    named = replace(latents or settings.latents, vae=str(folder), vae_hash=_content(folder))
    if {len(named.shift), len(named.scale)} - {1, settings.latent_channels}:
        raise UserError(
            f"the autoencoder in {folder} has {settings.latent_channels} channels, and the model's latents "
            f"{max(len(named.shift), len(named.scale))}: give the one that the model was trained with"
        )
    return Codec("latents", -3.0, 3.0, "float32", named)


def with_vae(codec: Codec, folder: Path | str, data_shape: tuple[int, ...]) -> Codec:
    """The codec of a latent model with the autoencoder that decodes it; UserError where that one does not fit."""
    if codec.kind == "pixels" or len(data_shape) != 3:
        raise UserError("this model makes its samples itself, without an autoencoder: leave out option 'vae'")
    channels = Settings.of(_config(_folder(folder))).latent_channels
    if channels != data_shape[0]:
        raise UserError(
            f"the autoencoder in {folder} has latents of {channels} channels, and the model makes {data_shape[0]}: "
            "give the one that it was trained with"
        )
    named = latent_codec(folder, codec.latents and replace(codec.latents, vae=None, vae_hash=None))
    if codec.latents and codec.latents.vae_hash not in (None, named.latents and named.latents.vae_hash):
        raise UserError(
            f"the autoencoder in {folder} is another one than the model was made with ({codec.latents.vae}): "
            "give that one, or leave out option 'vae'"
        )
    return replace(codec, kind="latents", latents=named.latents)


def has_vae(codec: Codec) -> bool:
    """Whether the codec is of latents, and says which autoencoder makes pixels of them."""
    return codec.latents is not None and codec.latents.vae is not None


def open_vae(codec: Codec, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder that a codec names; UserError where it names none, or the folder holds another one by now."""
    if codec.latents is None or codec.latents.vae is None:
        raise UserError(f"these are latents, and no autoencoder that decodes them is known: {_REMEDY}")
    return _open(codec.latents, str(device))


def to_images(codec: Codec, x: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """Samples to pictures to look at, (N, H, W, C) uint8: decoded where the autoencoder is known."""
    return open_vae(codec, device).to_images(x) if has_vae(codec) else codec.to_images(x)


def latent_shape(codec: Codec, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (c, h, w) of the latents of pictures; UserError where the autoencoder cannot take these."""
    assert codec.latents is not None and codec.latents.vae is not None
    return Settings.of(_config(_folder(codec.latents.vae))).latent_shape(data_shape)


@functools.lru_cache(maxsize=2)
def _open(latents: Latents, device: str) -> Autoencoder:
    folder = _folder(str(latents.vae))
    if _content(folder) != latents.vae_hash:
        raise UserError(f"the autoencoder in {folder} has changed since it was named: restore it, or {_REMEDY}")
    return Autoencoder(pretrained("AutoencoderKL", folder)[0].to(device), latents)


def _folder(given: Path | str) -> Path:
    """The folder of an autoencoder, or of a pipeline that has one."""
    folder = Path(given).expanduser().resolve()
    inside = folder / "vae"
    folder = inside if not (folder / "config.json").is_file() and (inside / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise UserError(f"no autoencoder at {given}: {_REMEDY}")
    return folder


def _config(folder: Path) -> dict[str, JSON]:
    config = read_as(folder / "config.json", dict[str, JSON])
    if (kind := config.get("_class_name")) != "AutoencoderKL":
        raise UserError(f"{folder} holds a {str(kind)[:40]!a}, and no AutoencoderKL: {_REMEDY}")
    # A file says only what is not the library's default, and a content hash has these three.
    return {"latent_channels": 4, "block_out_channels": [64], "scaling_factor": 0.18215, **config}


def _content(folder: Path) -> str:
    """Content hash of an autoencoder: weights and configuration."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} has no weights as safetensors: copy it whole, or write it with save_pretrained")
    config = {key: value for key, value in _config(folder).items() if not key.startswith("_")}
    return digest(config, *[digest_file(file) for file in weights])[:16]


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
