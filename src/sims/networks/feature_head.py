"""A light head on what a layer of another network gives: an output like that network's, from half of its work."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.config import JSON
from sims.errors import UserError
from sims.networks.mlp import Fourier

WAVES = 32  # numbers that a noise level is told by
CHANNELS = 16  # of the layers at full size
SHUFFLED = 512  # channels that become pixels, at most


class FeatureHead(nn.Module):
    """F(c_in x, ln sigma, features): x (B, *data_shape), levels (B,), what ``layer`` gives (B, *shape) -> like x.

    ``shape`` is (C, h, w), (N, C) or (C,). Of pictures, or tokens that are one, channels become the pixels around each
    place; beside the noisy picture, two shallow convolutions make the output. All else are vectors, tokens their mean,
    and the output comes of a perceptron of one layer. Errors: UserError for shapes that are neither, and for features
    of another shape.
    """

    kind = "feature_head"

    def __init__(self, data_shape: tuple[int, ...], num_classes: int, layer: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        if not 1 <= len(shape) <= 3 or min(shape) < 1 or math.prod(shape) > 1 << 28:
            raise UserError(f"a head on features of shape {tuple(shape)}: give (C, h, w), (N, C) or (C,)")
        self.data_shape, self.layer, self.shape = tuple(data_shape), layer, tuple(shape)
        channels = shape[0] if len(shape) == 3 else shape[-1]
        self.grid = _grid(self.shape, self.data_shape)
        self.fourier = Fourier(WAVES)
        if self.grid is None:
            size, width = math.prod(data_shape), max(CHANNELS, channels // 4)
            self.read: nn.Module = nn.Linear(channels, width)
            self.look: nn.Module = nn.Linear(size, width)
            self.write: nn.Module = nn.Linear(width, size)
        else:
            around = math.prod(self._around(self.grid))
            width, given = CHANNELS, data_shape[0]
            inner = min(CHANNELS, max(2, SHUFFLED // around))
            self.read = nn.Conv2d(channels, inner * around, 1)
            self.look = nn.Conv2d(inner + given, width, 3, padding=1)
            self.write = nn.Conv2d(width, given, 3, padding=1)
        self.modulate = nn.Linear(WAVES, 2 * width)
        nn.init.zeros_(self.write.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.write.bias)  # type: ignore[arg-type]

    @property
    def config(self) -> dict[str, JSON]:
        return {"layer": self.layer, "shape": list(self.shape)}

    def forward(self, x: Tensor, level: Tensor, features: Tensor) -> Tensor:
        if features.shape[1:] != self.shape:
            raise UserError(
                f"layer {self.layer!r} gives {tuple(features.shape[1:])} for a sample, and this head reads "
                f"{self.shape}: it was trained on another base"
            )
        x, features = x.float(), features.float()
        scale, shift = self.modulate(self.fourier(level.float())).chunk(2, dim=1)  # (B, width) each
        if self.grid is None:
            h = features.flatten(2).mean(2) if len(self.shape) == 3 else features
            h = h.mean(1) if len(self.shape) == 2 else h  # (B, C)
            h = self.read(F.layer_norm(h, h.shape[1:])) + self.look(x.flatten(1))  # (B, width)
            return self.write(F.silu(torch.addcmul(shift, h, scale + 1))).reshape(x.shape)  # type: ignore[no-any-return]
        h = self.look(torch.cat([self._pixels(features, self.grid), x], dim=1))  # (B, width, H, W)
        h = F.silu(torch.addcmul(shift[:, :, None, None], h, scale[:, :, None, None] + 1))
        return self.write(h)  # type: ignore[no-any-return]

    def _around(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Pixels, down and across, that each place of the grid stands for."""
        return -(-self.data_shape[1] // grid[0]), -(-self.data_shape[2] // grid[1])

    def _pixels(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (B, inner, H, W) of every pixel, of those of the places; a padded border is cut off."""
        rows, columns = grid
        if features.ndim == 3:  # tokens, of which others than places come first
            features = features[:, -rows * columns :].transpose(1, 2).reshape(len(features), -1, rows, columns)
        h = features / (features.square().mean(1, keepdim=True) + 1e-6).sqrt()
        down, across = self._around(grid)
        h = self.read(h).reshape(len(h), -1, down, across, rows, columns)
        h = h.permute(0, 1, 4, 2, 5, 3).reshape(len(h), -1, rows * down, columns * across)
        height, width = self.data_shape[1:]
        top, left = (rows * down - height) // 2, (columns * across - width) // 2
        return h[:, :, top : top + height, left : left + width]


def _grid(shape: tuple[int, ...], data_shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of features of pictures; None where they are no picture, or the data is none."""
    if len(data_shape) != 3 or len(shape) == 1:
        return None
    if len(shape) == 3:
        return shape[1], shape[2]
    height, width = data_shape[1:]
    for patch in range(1, max(height, width) + 1):
        rows, columns = -(-height // patch), -(-width // patch)
        if 0 <= shape[0] - rows * columns <= 2:  # one more token for the time, one for the class
            return rows, columns
    return None
