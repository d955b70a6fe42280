"""What the U-Nets share: the plan of their blocks, embeddings, resampling, attention and class vectors.

The parts that EDM's two U-Nets have in common (Karras et al. 2022, appendix F) are here too. Parameters bear the names
of the published checkpoints, so that these load.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.config import JSON
from sims.errors import UserError
from sims.networks.sizes import rounded_up

Direction = Literal["up", "down"]
MOST_BLOCKS, MOST_TAPS = 1000, 64


def keyword_arguments(network: type[nn.Module], given: Mapping[str, object]) -> dict[str, JSON]:
    """What makes a network of this class again: its keyword arguments, of the ``locals()`` of its constructor."""
    parameters = inspect.signature(network).parameters.values()
    values = {p.name: given[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}  # type: ignore[misc]


# -- the plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a block stands in a U-Net: its level (0 = full resolution), its channels, and what it is there for.

    ``sides`` are height and width there, of the picture as it is padded.
    """

    role: Literal["conv", "down", "block", "in", "up"]
    sides: tuple[int, int]
    level: int
    index: int
    cin: int
    cout: int

    @property
    def size(self) -> str:
        """Height and width as names have them, such as 16x16."""
        return f"{self.sides[0]}x{self.sides[1]}"

    @property
    def name(self) -> str:
        """The block's name in checkpoints, such as 16x16_block0."""
        numbered = self.role in ("block", "in")
        return f"{self.size}_{self.role}{self.index if numbered else ''}"

    def is_at(self, resolutions: Sequence[int]) -> bool:
        """Whether it stands at one of these resolutions, by which a U-Net is told where to attend.

        A resolution is the longer side in pixels: no more pixels attend to each other than in a square of that side.
        """
        return max(self.sides) in resolutions


def plan(
    sides: tuple[int, int], inputs: int, first: int, widths: Sequence[int], num_blocks: int
) -> tuple[list[Place], list[Place]]:
    """The blocks of encoder and decoder, in order, for pictures of this height and width.

    ``inputs`` channels enter, the first convolution makes ``first`` of them, level i has ``widths[i]``. The decoder has
    one block more a level than the encoder, because each of its blocks takes one of the encoder's outputs.
    """
    encoder = [Place("conv", sides, 0, 0, inputs, first)]
    for level, width in enumerate(widths):
        size = sides[0] >> level, sides[1] >> level
        if level > 0:
            encoder.append(Place("down", size, level, 0, encoder[-1].cout, encoder[-1].cout))
        for index in range(num_blocks):
            encoder.append(Place("block", size, level, index, encoder[-1].cout, width))
    skips = [place.cout for place in encoder]
    decoder: list[Place] = []
    channels = encoder[-1].cout
    for level, width in reversed(list(enumerate(widths))):
        size = sides[0] >> level, sides[1] >> level
        if level == len(widths) - 1:
            decoder += [Place("in", size, level, index, channels, channels) for index in range(2)]
        else:
            decoder.append(Place("up", size, level, 0, channels, channels))
        for index in range(num_blocks + 1):
            decoder.append(Place("block", size, level, index, channels + skips.pop(), width))
            channels = width
    return encoder, decoder


def check_depth(blocks: int) -> None:
    """UserError for more blocks than networks have, before any is made."""
    if blocks > MOST_BLOCKS:
        raise UserError(f"a network of {blocks:,} blocks: at most {MOST_BLOCKS:,} are possible")


def image_size(
    data_shape: Sequence[int], channel_mult: Sequence[int], num_blocks: int, patch: int = 1
) -> tuple[int, tuple[int, int], int]:
    """Channels and sides of images as a U-Net sees them, padded and cut; what the padded sides are multiples of.

    Both are what ``any_size`` makes of them. UserError for what is no image, and for sides that are less than one pixel
    when cut into patches and halved for each level but the first.
    """
    if len(data_shape) != 3:
        raise UserError(f"data of shape {tuple(data_shape)} do not fit a U-Net: it takes images (C, H, W)")
    if not channel_mult or min(*channel_mult, num_blocks, patch) < 1:
        raise UserError(
            f"channel_mult {list(channel_mult)} with num_blocks {num_blocks} and patch_size {patch} make no U-Net: "
            "each must be at least 1"
        )
    check_depth(num_blocks * len(channel_mult))
    channels, height, width = data_shape
    multiple = patch * 2 ** (len(channel_mult) - 1)
    if min(height, width) < multiple:
        cut = f"cut into patches of {patch} pixels a side and " if patch > 1 else ""
        raise UserError(
            f"images of {height}x{width} pixels (height, width) are too small to be {cut}halved "
            f"{len(channel_mult) - 1} times: give sides of at least {multiple}, or fewer levels (a shorter option "
            "'network.channel_mult')"
        )
    sides = rounded_up((height, width), multiple)
    return channels * patch**2, (sides[0] // patch, sides[1] // patch), multiple


# -- what is embedded --------------------------------------------------------------------------------------------------


def class_vectors(labels: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """One-hot vectors (B, num_classes) of labels (B,), all zeros for -1; (1, num_classes) of zeros without labels."""
    if labels is None:
        return like.new_zeros(1, num_classes)
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[:, None] == classes).to(like.dtype)  # (B, num_classes)


def dropped(vectors: Tensor, probability: float) -> Tensor:
    """Class vectors (B, K), each set to zero (no class) with this probability."""
    keep = torch.rand(len(vectors), 1, device=vectors.device) >= probability
    return vectors * keep


def dropped_labels(labels: Tensor, probability: float) -> Tensor:
    """Labels (B,), each replaced by -1 (no class) with this probability."""
    return torch.where(torch.rand(len(labels), device=labels.device) < probability, -1, labels)


class PositionalEmbedding(nn.Module):
    """Angles of c_noise at frequencies from 1 to 1/10000, a geometric series (Ho et al. 2020): (B,) -> (B, size / 2).

    With ``endpoint`` the series includes 1/10000, without it ends one term before.
    """

    def __init__(self, size: int, endpoint: bool = False) -> None:
        super().__init__()
        self.count, self.steps = size // 2, size // 2 - int(endpoint)

    def forward(self, c_noise: Tensor) -> Tensor:
        # Computed each time and not kept: half precision would spoil them.
        exponents = torch.arange(self.count, dtype=torch.float32, device=c_noise.device) / self.steps
        return torch.outer(c_noise, (1 / 10000) ** exponents)  # (B, size / 2)


class FourierEmbedding(nn.Module):
    """Angles of c_noise at random frequencies (Song et al. 2021, appendix C): (B,) -> (B, size / 2)."""

    freqs: Tensor

    def __init__(self, size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(size // 2) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        return torch.outer(c_noise, 2 * math.pi * self.freqs)  # (B, size / 2)


# -- resampling --------------------------------------------------------------------------------------------------------


def filter_kernel(taps: Sequence[float]) -> Tensor:
    """The separable filter of these taps, normalized to sum 1: (1, 1, T, T)."""
    line = torch.tensor([float(tap) for tap in taps])
    return torch.outer(line, line)[None, None] / line.sum() ** 2


def check_filter(taps: Sequence[float]) -> list[float]:
    """The taps of a resampling filter; UserError unless their number is even, so that halving and doubling undo."""
    if not taps or len(taps) > MOST_TAPS or len(taps) % 2 or sum(taps) == 0:
        raise UserError(
            f"resample_filter {list(taps[:8])} must have an even number of taps, at most {MOST_TAPS}, and a sum "
            "that is not 0"
        )
    return list(taps)


def resample(x: Tensor, kernel: Tensor, direction: Direction, padding: int | None = None) -> Tensor:
    """Halve or double the sides of x (B, C, H, W) with a filter (1, 1, T, T), each channel by itself."""
    channels, taps = x.shape[1], kernel.shape[-1]
    padding = (taps - 1) // 2 if padding is None else padding
    if direction == "down":
        weight = kernel.to(x.dtype).expand(channels, 1, taps, taps)
        return F.conv2d(x, weight, stride=2, padding=padding, groups=channels)  # (B, C, H / 2, W / 2)
    weight = (4 * kernel).to(x.dtype).expand(channels, 1, taps, taps)  # 3 of 4 values it meets are zeros put between
    return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=channels)  # (B, C, 2 H, 2 W)


def is_box(taps: Sequence[float]) -> bool:
    """Whether a filter has two equal taps: halving is then a mean of 2x2 pixels, and doubling shows each four times."""
    return len(taps) == 2 and taps[0] == taps[1]


def resample_box(x: Tensor, direction: Direction) -> Tensor:
    """``resample`` with two equal taps: on a CPU in bf16 DDPM++ samples 1.2x and trains 1.1x as fast with it."""
    return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


class Resample(nn.Module):
    """Halve or double: (B, C, H, W) -> (B, C, H / 2, W / 2) or (B, C, 2 H, 2 W)."""

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], direction: Direction) -> None:
        super().__init__()
        self.register_buffer("resample_filter", filter_kernel(taps))
        self.direction: Direction = direction
        self.box = is_box(taps)

    def forward(self, x: Tensor) -> Tensor:
        return resample_box(x, self.direction) if self.box else resample(x, self.resample_filter, self.direction)


class ResampleConv(nn.Conv2d):
    """Halve or double, then convolve: (B, cin, H, W) -> (B, cout, H / 2, W / 2) or (B, cout, 2 H, 2 W).

    ``fused`` convolves first and keeps what the filter needs beyond the border (halving only).
    """

    resample_filter: Tensor

    def __init__(
        self, cin: int, cout: int, kernel: int, taps: Sequence[float], direction: Direction, fused: bool = False
    ) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        self.register_buffer("resample_filter", filter_kernel(taps))
        self.direction: Direction = direction
        self.fused, self.box = fused, is_box(taps)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            pointwise = self.direction == "up" and self.kernel_size == (1, 1)  # the same either way, at a quarter
            if self.fused or pointwise:
                return resample_box(super().forward(x), self.direction)
            return super().forward(resample_box(x, self.direction))
        if not self.fused:
            return super().forward(resample(x, self.resample_filter, self.direction))
        margin = (self.resample_filter.shape[-1] - 1) // 2
        x = F.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2 + margin)
        return resample(x, self.resample_filter, "down", padding=0)


# -- the block of EDM's U-Nets -----------------------------------------------------------------------------------------


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalization with up to 32 groups of at least 4 channels; UserError where they do not come out even."""
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise UserError(f"{channels} channels cannot be split into {groups} groups: choose other model_channels")
    return nn.GroupNorm(groups, channels, eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over pixels, scaled by 1/sqrt(c): each (B, heads, c, N) -> (B, heads, c, N)."""
    q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (B, heads, N, c)
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3)  # (B, heads, c, N)


@dataclass(frozen=True)
class BlockStyle:
    """How one U-Net's blocks differ from another's (Karras et al. 2022, table 7)."""

    embedding: int
    dropout: float
    taps: Sequence[float]
    eps: float
    skip_scale: float
    scale_and_shift: bool
    project_resampled: bool


class UNetBlock(nn.Module):
    """Residual block, modulated by the embedding, with attention if ``heads`` > 0 (Karras et al. 2022, appendix F.1).

    x (B, cin, H, W), embedding (B, E) -> (B, cout, H', W'), the sides halved or doubled if there is a ``direction``.
    """

    def __init__(
        self, cin: int, cout: int, style: BlockStyle, direction: Direction | None = None, heads: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.skip_scale = heads, style.dropout, style.skip_scale
        self.scale_and_shift = style.scale_and_shift
        self.norm0 = group_norm(cin, style.eps)
        self.conv0 = self._conv(cin, cout, 3, style, direction)
        self.affine = nn.Linear(style.embedding, 2 * cout if style.scale_and_shift else cout)
        self.norm1 = group_norm(cout, style.eps)
        self.conv1 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip: nn.Module | None = None
        if cin != cout or (direction is not None and style.project_resampled):
            self.skip = self._conv(cin, cout, 1, style, direction)
        elif direction is not None:
            self.skip = Resample(style.taps, direction)
        if heads:
            self.norm2 = group_norm(cout, style.eps)
            self.qkv = nn.Conv2d(cout, 3 * cout, 1)
            self.proj = nn.Conv2d(cout, cout, 1)

    @staticmethod
    def _conv(cin: int, cout: int, kernel: int, style: BlockStyle, direction: Direction | None) -> nn.Module:
        if direction is None:
            return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
        return ResampleConv(cin, cout, kernel, style.taps, direction)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))  # (B, cout, H', W')
        modulation = self.affine(embedding)[:, :, None, None]  # (B, cout or 2 cout, 1, 1)
        if self.scale_and_shift:
            scale, shift = modulation.chunk(2, dim=1)  # (B, cout, 1, 1) each
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))
        h = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (h + self._attention(h)) * self.skip_scale if self.heads else h

    def _attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm2(x))  # (B, 3 cout, H, W), ordered head, channel, q/k/v
        q, k, v = qkv.reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3]).unbind(3)  # (B, heads, c, N) each
        return self.proj(attend(q, k, v).reshape(x.shape))
