"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024): every layer keeps unit variance. Equations: theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.errors import UserError
from sims.networks.layers import (
    Direction,
    Place,
    attend,
    check_filter,
    class_vectors,
    dropped,
    filter_kernel,
    image_size,
    is_box,
    keyword_arguments,
    plan,
    resample,
    resample_box,
)
from sims.networks.sizes import any_size

_EPS = 1e-4


# -- magnitude-preserving pieces ---------------------------------------------------------------------------------------


def normalize(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """x divided by its root mean square over these dimensions: pixel norm (equation 30), weights (equation 47)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    mean = norm * math.sqrt(norm.numel() / x.numel()) + _EPS  # the root of the mean square, not of the sum
    return x / mean.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square for normal x (equation 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, of the magnitude of a and b (equation 88)."""
    size = math.hypot(1 - t, t)
    return a * ((1 - t) / size) + b * (t / size)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenation along the channels in which b has share t of the magnitude (equation 103)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    weight_a, weight_b = scale * (1 - t) / math.sqrt(a.shape[1]), scale * t / math.sqrt(b.shape[1])
    return torch.cat([a * weight_a, b * weight_b], dim=1)  # (B, Ca + Cb, H, W)


class MPFourier(nn.Module):
    """Cosines of a number at random frequencies and phases (equation 75): (B,) -> (B, size)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(size))
        self.register_buffer("phases", 2 * math.pi * torch.rand(size))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = torch.outer(c_noise.to(self.freqs.dtype), self.freqs) + self.phases  # (B, size)
        return angles.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """Convolution (k x k; linear for k = 0) with weights of unit norm and without bias (equations 47 and 66).

    In training the stored weights are normalized too, at every use, so that the learning rate alone says how fast they
    turn (section 2.3, forced weight normalization).
    """

    def __init__(self, cin: int, cout: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, *([kernel, kernel] if kernel else [])))
        self.forced = True
        """Whether training normalizes the stored weights here, or whoever holds them elsewhere."""

    @staticmethod
    def normalized(weight: Tensor) -> Tensor:
        """Weights (rows, ...) with every row of unit root mean square."""
        return normalize(weight, tuple(range(1, weight.ndim)))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        if self.training and self.forced:
            with torch.no_grad():
                self.weight.copy_(self.normalized(self.weight))
        weight = self.normalized(self.weight) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)  # (B, cout)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)  # (B, cout, H, W)


# -- blocks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MPStyle:
    """What all blocks of a network have in common."""

    resample_filter: Sequence[float]
    channels_per_head: int
    dropout: float
    res_balance: float
    attn_balance: float
    clip_act: float | None


class MPBlock(nn.Module):
    """Residual block with attention where the network's plan has it (figure 21 of the paper).

    x (B, cin, H, W), embedding (B, E) -> (B, cout, H', W'), halved or doubled by the roles down and up.
    """

    resample_filter: Tensor

    def __init__(self, place: Place, decoding: bool, embedding: int, style: MPStyle, attention: bool) -> None:
        super().__init__()
        cin, cout = place.cin, place.cout
        self.style, self.decoding = style, decoding
        self.direction: Literal["up", "down"] | None = place.role if place.role in ("up", "down") else None  # type: ignore[assignment]
        self.heads = cout // style.channels_per_head if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(cin if decoding else cout, cout, 3)
        self.emb_linear = MPConv(embedding, cout, 0)
        self.conv_res1 = MPConv(cout, cout, 3)
        self.conv_skip = MPConv(cin, cout, 1) if cin != cout else None
        if self.heads:
            self.attn_qkv = MPConv(cout, 3 * cout, 1)
            self.attn_proj = MPConv(cout, cout, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        style = self.style
        if self.direction is not None:
            x = self._resample(x, self.direction)  # (B, cin, H', W')
        if not self.decoding:
            x = x if self.conv_skip is None else self.conv_skip(x)  # (B, cout, H', W')
            x = normalize(x, 1)
        h = self.conv_res0(mp_silu(x))  # (B, cout, H', W')
        modulation = self.emb_linear(embedding, self.emb_gain) + 1  # (B, cout)
        h = mp_silu(h * modulation[:, :, None, None].to(h.dtype))
        h = self.conv_res1(F.dropout(h, style.dropout, self.training))
        if self.decoding and self.conv_skip is not None:
            x = self.conv_skip(x)  # (B, cout, H', W')
        x = mp_sum(x, h, style.res_balance)
        if self.heads:
            x = mp_sum(x, self._attention(x), style.attn_balance)
        return x if style.clip_act is None else x.clip(-style.clip_act, style.clip_act)

    def _resample(self, x: Tensor, direction: Direction) -> Tensor:
        taps = self.style.resample_filter
        if is_box(taps):
            return resample_box(x, direction)
        return resample(x, filter_kernel(taps).to(x.device), direction)

    def _attention(self, x: Tensor) -> Tensor:
        """Attention of cosines: queries, keys and values have unit magnitude."""
        qkv = self.attn_qkv(x)  # (B, 3 cout, H, W), ordered head, channel, q/k/v
        qkv = qkv.reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3])  # (B, heads, c, 3, N)
        q, k, v = normalize(qkv, 2).unbind(3)  # (B, heads, c, N) each
        return self.attn_proj(attend(q, k, v).reshape(x.shape))


class EDM2UNet(nn.Module):
    """Raw network F(x, c_noise, labels) on images or latents: x (B, C, H, W) -> the same shape.

    c_noise (B,) or (1,); labels (B,) int64, -1 = no class. ``attn_resolutions`` are longer sides in pixels, of images
    padded and cut into patches of ``patch_size`` (``any_size``). UserError for options or images that do not fit.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
        patch_size: int = 1,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(EDM2UNet, locals())
        channels, sides, self.multiple = image_size(data_shape, channel_mult, num_blocks, patch_size)
        self.space_to_depth = patch_size
        if channels_per_head < 1:
            raise UserError(f"channels_per_head is {channels_per_head}: it must be at least 1")
        taps = check_filter(resample_filter)
        style = MPStyle(taps, channels_per_head, dropout, res_balance, attn_balance, clip_act)
        self.num_classes, self.label_balance, self.concat_balance = num_classes, label_balance, concat_balance
        self.label_dropout = label_dropout
        widths = [model_channels * multiple for multiple in channel_mult]
        noise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        embedding = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, embedding, 0)
        self.emb_label = MPConv(num_classes, embedding, 0) if num_classes else None

        # One more input channel, all ones, stands in for biases.
        self.encoder, self.decoder = plan(sides, channels + 1, widths[0], widths, num_blocks)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for blocks, places in ((self.enc, self.encoder), (self.dec, self.decoder)):
            for place in places:
                attention = (place.role == "in" and place.index == 0) or (
                    place.role == "block" and place.is_at(attn_resolutions)
                )
                blocks[place.name] = (
                    MPConv(place.cin, place.cout, 3)
                    if place.role == "conv"
                    else MPBlock(place, blocks is self.dec, embedding, style, attention)
                )
        self.out_conv = MPConv(widths[0], channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    @any_size
    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self._embed(c_noise, labels)  # (B, E)
        h, skips = torch.cat([x, torch.ones_like(x[:, :1])], dim=1), []  # (B, C + 1, H, W)
        for place in self.encoder:
            block = self.enc[place.name]
            h = block(h) if place.role == "conv" else block(h, embedding)  # (B, cout, H / 2^level, W / 2^level)
            skips.append(h)
        for place in self.decoder:
            if place.role == "block":
                h = mp_cat(h, skips.pop(), self.concat_balance)  # (B, cin, H / 2^level, W / 2^level)
            h = self.dec[place.name](h, embedding)  # (B, cout, H / 2^level, W / 2^level)
        return self.out_conv(h, self.out_gain)  # (B, C, H, W)

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(c_noise))  # (B, E)
        if self.emb_label is not None:
            vectors = class_vectors(labels, self.num_classes, embedding)  # (B, classes)
            if self.training and self.label_dropout:
                vectors = dropped(vectors, self.label_dropout)
            named = self.emb_label(vectors * math.sqrt(self.num_classes))
            embedding = mp_sum(embedding, named, self.label_balance)
        return mp_silu(embedding)


class LossHead(nn.Module):
    """The log-variance u(sigma) of the denoising error, for the loss alone (equation 21): c_noise (B,) -> (B,)."""

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        self.fourier = MPFourier(size)
        self.linear = MPConv(size, 1, 0)

    def forward(self, c_noise: Tensor) -> Tensor:
        return self.linear(self.fourier(c_noise)).flatten()  # (B,)
