"""The U-Net of the library denoising-diffusion-pytorch (since its version 1.8): the one of Ho et al. 2020, grown on.

Attention is linear (Shen et al. 2021) but at the lowest resolution. Parameters have the library's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.errors import UserError
from sims.networks.layers import PositionalEmbedding, image_size, keyword_arguments
from sims.networks.sizes import any_size


class DDPUNet(nn.Module):
    """Raw network F(x, c_noise, labels) on images: x (B, C, H, W) -> (B, out_channels, H, W).

    c_noise (B,) or (1,); there are no classes. ``full_attention``: whether a resolution attends in full, else linearly.
    ``memory``: keys and values that attention has beside those of pixels. ``groups`` of group normalization; 0 = RMS
    normalization. Raises UserError for sizes that do not fit, and for classes.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        out_channels: int | None = None,
        model_channels: int = 64,
        first: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512),
        full_attention: Sequence[bool] = (False, False, False, True),
        heads: Sequence[int] = (4, 4, 4, 4),
        head_channels: Sequence[int] = (32, 32, 32, 32),
        memory: int = 4,
        groups: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(DDPUNet, locals())
        channels, _, self.multiple = image_size(data_shape, widths, 1)
        if num_classes:
            raise UserError(f"this U-Net knows no classes, and {num_classes} are asked for: choose another network")
        told = 4 * model_channels
        self.angles = PositionalEmbedding(model_channels, endpoint=True)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(model_channels, told), nn.GELU(), nn.Linear(told, told))
        self.init_conv = nn.Conv2d(channels, first, 7, padding=3)

        def block(cin: int, cout: int) -> nn.Module:
            return _Residual(cin, cout, told, groups, dropout)

        def attention(width: int, level: int, full: bool) -> nn.Module:
            return _Attention(width, heads[level], head_channels[level], memory, full)

        pairs, last = list(zip((first, *widths), widths)), len(widths) - 1
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (cin, cout) in enumerate(pairs):
            down = nn.Conv2d(cin, cout, 3, padding=1) if level == last else _down(cin, cout)
            attends = attention(cin, level, full_attention[level])
            self.downs.append(nn.ModuleList([block(cin, cin), block(cin, cin), attends, down]))
        width = widths[-1]
        self.mid_block1, self.mid_attn, self.mid_block2 = (
            block(width, width),
            attention(width, -1, True),
            block(width, width),
        )
        for level, (cin, cout) in reversed(list(enumerate(pairs))):
            up = _up(cout, cin) if level else nn.Conv2d(cout, cin, 3, padding=1)
            both = cin + cout
            attends = attention(cout, level, full_attention[level])
            self.ups.append(nn.ModuleList([block(both, cout), block(both, cout), attends, up]))
        self.final_res_block = block(2 * first, first)
        self.final_conv = nn.Conv2d(first, out_channels or channels, 1)

    @any_size
    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        angles = self.angles(c_noise)  # (B, model_channels / 2)
        told = self.time_mlp(torch.cat([angles.sin(), angles.cos()], dim=1))  # (B, T)
        first = h = self.init_conv(x)
        skips = []
        downs: Any = self.downs
        ups: Any = self.ups
        for one, two, attends, down in downs:
            h = one(h, told)
            skips.append(h)
            h = two(h, told)
            h = h + attends(h)
            skips.append(h)
            h = down(h)
        h = self.mid_block1(h, told)
        h = self.mid_block2(h + self.mid_attn(h), told)
        for one, two, attends, up in ups:
            h = one(torch.cat([h, skips.pop()], dim=1), told)
            h = two(torch.cat([h, skips.pop()], dim=1), told)
            h = up(h + attends(h))
        return self.final_conv(self.final_res_block(torch.cat([h, first], dim=1), told))  # type: ignore[no-any-return]


def _down(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * cin, cout, 1))


def _up(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(cin, cout, 3, padding=1))


class _RMSNorm(nn.Module):
    """Each pixel's channels at unit mean square (Zhang and Sennrich 2019), then scaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class _Half(nn.Module):
    """Convolution, normalization, and what the network is told."""

    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm = nn.GroupNorm(groups, cout) if groups else _RMSNorm(cout)

    def forward(self, x: Tensor, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h = self.norm(self.proj(x))
        return F.silu(h if modulation is None else torch.addcmul(modulation[1], h, modulation[0] + 1))


class _Residual(nn.Module):
    def __init__(self, cin: int, cout: int, told: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(told, 2 * cout))
        self.block1, self.block2 = _Half(cin, cout, groups), _Half(cout, cout, groups)
        self.res_conv = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.mlp(told)[:, :, None, None].chunk(2, dim=1)
        h = F.dropout(self.block1(x, (scale, shift)), self.dropout, self.training)
        return self.block2(h) + self.res_conv(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Attention over pixels and a few keys and values of its own; linear unless ``full``."""

    def __init__(self, width: int, heads: int, head_channels: int, memory: int, full: bool) -> None:
        super().__init__()
        self.heads, self.full = heads, full
        inner = heads * head_channels
        self.norm = _RMSNorm(width)
        if memory:
            place = (memory, head_channels) if full else (head_channels, memory)
            self.mem_kv = nn.Parameter(torch.randn(2, heads, *place))
        self.to_qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        out = nn.Conv2d(inner, width, 1)
        self.to_out = out if full else nn.Sequential(out, _RMSNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).reshape(len(x), 3, self.heads, -1, x.shape[2] * x.shape[3]).unbind(1)
        if hasattr(self, "mem_kv"):  # (B, heads, c, N) each, and (heads, c, memory)
            own = self.mem_kv.transpose(2, 3) if self.full else self.mem_kv
            k, v = (torch.cat([m.expand(len(x), -1, -1, -1), t], dim=3) for m, t in zip(own, (k, v)))
        if self.full:
            rows = (t.transpose(2, 3) for t in (q, k, v))
            out = F.scaled_dot_product_attention(*rows).transpose(2, 3)  # (B, heads, c, N)
        else:
            q = q.softmax(dim=2) * q.shape[2] ** -0.5
            out = (v @ k.softmax(dim=3).transpose(2, 3)) @ q
        return self.to_out(out.reshape(len(x), -1, *x.shape[2:]))  # type: ignore[no-any-return]
