"""Geometric augmentation whose parameters the network is told, so that nothing of it leaks into samples.

Karras et al. 2022 (EDM), appendix F.2, table 6. With all labels zero the network models the data as they are.

Transforms, constants, order, labels and signs are those of the published implementation (NVlabs/edm, augment.py), with
which the published networks were trained. Where it says more than the table, it counts: the axes of the anisotropy are
turned in half of the cases only. Two things differ on purpose: the resampling filter is
sym6's symmetric sibling (see ``wavelet``), and the mirror images beyond an image's edges have no end, where EDM adds at
most one on each side and leaves zeros beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sims.errors import UserError
from sims.model import Model
from sims.training.training_noise import AugmentNoise

Transform = Literal["xflip", "yflip", "scale", "rotation", "anisotropy", "translation"]
TRANSFORMS: tuple[Transform, ...] = get_args(Transform)
SCALE = 2.0**0.2  # A_scale: standard deviation of the size, as a factor
ANISOTROPY = 2.0**0.2  # A_aniso: standard deviation of the stretch, as a factor
TRANSLATION = 1 / 8  # A_trans: standard deviation of the shift, as a share of the image
TURNED = 0.5  # how often an anisotropy has turned axes, rather than those of the image

_LABELS: dict[str, int] = dict(zip(TRANSFORMS, (1, 1, 1, 2, 2, 2)))
_MOMENTS = 6  # vanishing moments of the wavelet, as sym6 has
_RADIUS = 14  # taps kept on either side: what is cut off is below 1e-6


def augment_dim(transforms: Sequence[str] = TRANSFORMS) -> int:
    """The number of labels that tell a network of these transforms; 9 for all of them."""
    return sum(_LABELS[name] for name in transforms)


class Augment:
    """Transforms training images and says how; sample i of the run depends on (seed, i) alone.

    Each of the ``transforms`` is applied with ``probability``, except xflip, which always gets its even chance
    (the labels make it harmless); probability 0 leaves everything as it is, bit for bit.
    """

    def __init__(self, seed: int, probability: float, transforms: Sequence[str] = TRANSFORMS) -> None:
        self.probability = probability
        self.transforms = tuple(name for name in TRANSFORMS if name in transforms)
        self.noise = AugmentNoise(seed, uniforms=len(TRANSFORMS) + 5, normals=4)

    @property
    def dim(self) -> int:
        """The number of labels."""
        return augment_dim(self.transforms)

    def __call__(self, images: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), samples ``start``, start + 1, ... of the run -> images, labels (B, dim) float32."""
        parameters = self.parameters(start, len(images))
        return transform(images, parameters), self.labels(parameters).to(images.device)

    def parameters(self, start: int, count: int) -> Tensor:
        """a_0 ... a_7 of table 6, zero where a transform is off: (count, 8) float64.

        xflip, yflip, scale, rotation, angle and amount of the anisotropy, translation right and down.
        """
        uniform, normal = self.noise.draw(start, count)
        toss, rest = np.split(uniform, [len(TRANSFORMS)], axis=1)
        limits = [self._probability(name) for name in TRANSFORMS]
        on = (toss < limits).repeat([1, 1, 1, 1, 2, 2], axis=1)  # (count, 8)
        flips, angles = rest[:, :2] < 0.5, (2 * rest[:, 2:4] - 1) * math.pi
        angles[:, 1] *= rest[:, 4] < TURNED
        drawn = np.column_stack([flips, normal[:, 0], angles, normal[:, 1:]])  # (count, 8)
        return torch.from_numpy(np.where(on, drawn, 0.0))

    def _probability(self, name: str) -> float:
        if name not in self.transforms or self.probability <= 0:
            return 0.0
        return 1.0 if name == "xflip" else self.probability

    def labels(self, parameters: Tensor) -> Tensor:
        """What the network is told of parameters (B, 8): (B, dim) float32, zero = nothing was done."""
        xflip, yflip, scale, rotation, angle, amount, right, down = parameters.unbind(1)
        told = {
            "xflip": [xflip],
            "yflip": [yflip],
            "scale": [scale],
            "rotation": [rotation.cos() - 1, rotation.sin()],
            "anisotropy": [amount * angle.cos(), amount * angle.sin()],
            "translation": [right, down],
        }
        return torch.stack([value for name in self.transforms for value in told[name]], dim=1).float()


@torch.no_grad()
def transform(images: Tensor, parameters: Tensor) -> Tensor:
    """Images (B, C, H, W), H and W at least 2, with their parameters (B, 8) applied in the order of the table.

    Flips only move pixels. All else happens in one step, on twice the resolution; images without it are not touched.
    """
    device = images.device
    for column, axis in ((0, 3), (1, 2)):
        chosen = parameters[:, column] != 0
        if chosen.any():
            images = torch.where(chosen.to(device)[:, None, None, None], images.flip(axis), images)
    moved = (parameters[:, 2:] != 0).any(dim=1).nonzero()[:, 0]
    if len(moved) == 0:
        return images
    matrices = backward(parameters[moved], *images.shape[2:]).to(device, images.dtype)
    moved = moved.to(device)
    return images.index_copy(0, moved, _warp(images[moved], matrices))


def backward(parameters: Tensor, height: int, width: int) -> Tensor:
    """Where a pixel comes from: (B, 2, 3) maps (right, down, 1), in pixels from the centre, to (right, down).

    The inverse of translate · anisotropy · rotate · scale.
    """
    _, _, scale, rotation, angle, amount, right, down = parameters.unbind(1)
    stretch = ANISOTROPY**amount
    turned = _rotation(-angle) @ torch.diag_embed(torch.stack([stretch, 1 / stretch], dim=1)) @ _rotation(angle)
    forward = turned @ _rotation(-rotation) * (SCALE**scale)[:, None, None]  # (B, 2, 2)
    inverse = torch.linalg.inv(forward)
    shift = torch.stack([right * TRANSLATION * width, down * TRANSLATION * height], dim=1)[:, :, None]  # (B, 2, 1)
    return torch.cat([inverse, -inverse @ shift], dim=2)


def _rotation(angle: Tensor) -> Tensor:
    """Rotation matrices (B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Look every pixel up at its origin: 2x up, bilinear, 2x down (Karras et al. 2020, ADA, appendix B).

    The image goes on beyond its edges as its mirror image, without end.
    """
    height, width = images.shape[2:]
    up_y, down_y = _filters(height, images.device)
    up_x, down_x = _filters(width, images.device)
    fine = up_y @ images @ up_x.T  # (B, C, 2H - 1, 2W - 1): samples at every half pixel, from first to last
    y = _half_pixels(height, images)[None, :, None]
    x = _half_pixels(width, images)[None, None, :]
    m = matrices[:, :, :, None, None]
    # grid_sample counts from -1 to 1 over the distance of the first and the last sample
    right = (m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]) * (2 / (width - 1))
    down = (m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]) * (2 / (height - 1))
    grid = torch.stack([right, down], dim=3)  # (B, 2H - 1 + 2R, 2W - 1 + 2R, 2)
    found = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return down_y @ found @ down_x.T  # (B, C, H, W)


def _half_pixels(size: int, like: Tensor) -> Tensor:
    """Coordinates of the fine samples that the result needs, in pixels from the centre: (2 size - 1 + 2R,)."""
    count = 2 * size - 1 + 2 * _RADIUS
    return (torch.arange(count, device=like.device, dtype=like.dtype) - (count - 1) / 2) / 2


@lru_cache(maxsize=16)
def _filters(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices along one axis: up (2 size - 1, size), down (size, 2 size - 1 + 2R), float32."""
    taps = wavelet() * math.sqrt(2)
    up = np.zeros((2 * size - 1, size))
    down = np.zeros((size, 2 * size - 1 + 2 * _RADIUS))
    period = 2 * (size - 1)
    for fine in range(2 * size - 1):
        for offset in range(-_RADIUS, _RADIUS + 1):
            if (fine - offset) % 2 == 0:
                pixel = (fine - offset) // 2 % period  # the mirror images repeat
                up[fine, min(pixel, period - pixel)] += taps[offset + _RADIUS]
    for pixel in range(size):
        down[pixel, 2 * pixel : 2 * pixel + 2 * _RADIUS + 1] = taps / 2
    return torch.from_numpy(up).float().to(device), torch.from_numpy(down).float().to(device)


def wavelet() -> np.ndarray:
    """The low-pass filter, (2R + 1,) float64: the frequency response of sym6, without its phase.

    sym6's own 12 taps are not symmetric: a rotation would turn their delay into a shift. The symmetric filter of the
    same magnitude (the square root of the maximally flat half-band filter: Daubechies 1992, section 6.1) is orthonormal
    too, so 2x up and 2x down is the identity, and the same from all four sides.
    """
    points = 1024
    y = np.sin(np.pi * np.arange(points) / points) ** 2
    series = sum(math.comb(_MOMENTS - 1 + k, k) * y**k for k in range(_MOMENTS))
    response = np.sqrt(2 * (1 - y) ** _MOMENTS * series)
    half = np.fft.ifft(response).real[: _RADIUS + 1]
    return np.concatenate([half[:0:-1], half])


class Mirrored:
    """Training data and, after them, the mirror image of each: x-flips for networks that are told nothing."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2 * len(self.data)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        """The samples at ``indices`` (B,): x (B, C, H, W), labels (B,) or None."""
        index = np.asarray(indices)
        images, labels = self.data.batch(index % len(self.data))
        flipped = torch.from_numpy(index >= len(self.data))
        return torch.where(flipped[:, None, None, None], images.flip(3), images), labels


def check_augmentation(augment: Augment | None, model: Model) -> None:
    """Errors: UserError where the model's data cannot be mirrored, or its network cannot be told of ``augment``."""
    shape = model.data_shape
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise UserError(
            f"augmentation of data of shape {shape}: it needs images (C, H, W) of at least 2x2, turn it off"
        )
    if augment is None:
        return
    config = getattr(getattr(model.denoiser, "network", None), "config", {})
    takes = config.get("augment_dim", 0)
    if takes != augment.dim:
        able = "augment_dim" in config
        remedy = f"make the network with augment_dim {augment.dim}" if able else "use xflip, which needs none"
        raise UserError(
            f"the network takes {takes} augmentation labels, and {', '.join(augment.transforms)} have {augment.dim}: "
            f"{remedy}, or set augment to 0"
        )
