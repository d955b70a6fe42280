"""The U-Net of improved-diffusion and guided-diffusion (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021).

Consistency models (Song et al. 2023) and flow matching (Lipman et al. 2024) were published with it too. ``adm_unet`` is
EDM's, which groups, attends and embeds otherwise. Parameters have the published names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.errors import UserError
from sims.networks.layers import Place, PositionalEmbedding, attend, dropped_labels, image_size, keyword_arguments, plan
from sims.networks.layout import arranged
from sims.networks.sizes import any_size

Resampling = Literal["block", "conv", "plain"]
Order = Literal["legacy", "new"]
_GROUPS = 32


class GuidedUNet(nn.Module):
    """Raw network F(x, c_noise, labels) on images: x (B, C, H, W) -> (B, out_channels, H, W).

    c_noise (B,) or (1,); labels (B,) int64, -1 = no class: ``null_class`` is a last row for that in the table of
    classes; without it, nothing is added. ``attention`` are the halvings (0 = none) at which it attends, with
    ``num_heads``, or as many as there are times ``head_channels``. ``resampling``: within residual blocks, by
    convolutions, or "plain". ``order``: q, k and v of each head, one head after the other ("legacy"), or all q, all k,
    all v. ``pointwise``: dimensions of the kernels of attention. Raises UserError for sizes that do not fit.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        out_channels: int | None = None,
        model_channels: int = 128,
        widths: Sequence[int] = (128, 256, 256, 256),
        num_blocks: int = 3,
        attention: Sequence[int] = (1, 2),
        num_heads: int = 4,
        head_channels: int | None = None,
        resampling: Resampling = "block",
        scale_shift: bool = True,
        order: Order = "legacy",
        pointwise: int = 1,
        null_class: bool = False,
        label_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(GuidedUNet, locals())
        channels, sides, self.multiple = image_size(data_shape, widths, num_blocks)
        self.num_classes, self.null_class, self.label_dropout = num_classes, null_class, label_dropout
        told = 4 * model_channels
        self.angles = PositionalEmbedding(model_channels)
        self.time_embed = nn.Sequential(nn.Linear(model_channels, told), nn.SiLU(), nn.Linear(told, told))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes + int(null_class), told)

        def block(place: Place) -> list[nn.Module]:
            """What stands at a place of the plan."""
            direction = place.role if place.role in ("up", "down") else None
            if direction and resampling != "block":
                convolved = place.cout if resampling == "conv" else 0
                return [_Down(convolved) if direction == "down" else _Up(convolved)]
            residual = _Residual(place.cin, place.cout, told, scale_shift, dropout, direction)
            if direction or (place.role == "block" and place.level not in attention):
                return [residual]
            return [residual, _Attention(place.cout, _heads(place.cout, num_heads, head_channels), order, pointwise)]

        encoder, decoder = plan(sides, channels, widths[0], widths, num_blocks)
        first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        self.input_blocks.extend(nn.ModuleList(block(place)) for place in encoder[1:])
        self.middle_block = nn.ModuleList([*block(decoder[0]), *block(decoder[1])[:1]])
        self.output_blocks = nn.ModuleList()
        for place in decoder[2:]:
            if place.role == "up":
                self.output_blocks[-1].extend(block(place))  # type: ignore[operator]
            else:
                self.output_blocks.append(nn.ModuleList(block(place)))
        final = nn.Conv2d(widths[0], out_channels or channels, 3, padding=1)
        self.out = nn.Sequential(_norm(widths[0]), nn.SiLU(), final)
        _to_zero(final)

    @any_size
    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        told = F.silu(self._embed(c_noise, labels))  # (B, E) or (1, E)
        h, skips = x, []
        for layers in self.input_blocks:
            h = arranged(_through(layers, h, told))  # type: ignore[arg-type]
            skips.append(h)
        h = _through(self.middle_block, h, told)
        for layers in self.output_blocks:
            h = _through(layers, torch.cat([h, skips.pop()], dim=1), told)  # type: ignore[arg-type]
        return self.out(h)  # type: ignore[no-any-return]

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        angles = self.angles(c_noise)  # (B, model_channels / 2)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))  # (B, E)
        if not self.num_classes:
            return embedding  # type: ignore[no-any-return]
        if labels is None:
            labels = torch.full((1,), -1, device=c_noise.device)
        if self.training and self.label_dropout:
            labels = dropped_labels(labels, self.label_dropout)
        vectors = self.label_emb(labels.where(labels >= 0, self.num_classes if self.null_class else 0))
        return embedding + (vectors if self.null_class else vectors * (labels >= 0)[:, None])  # type: ignore[no-any-return]


def _through(layers: nn.ModuleList, h: Tensor, told: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, told) if isinstance(layer, _Residual) else layer(h)
    return h


@torch.no_grad()
def _to_zero(layer: nn.Module) -> None:
    """Residuals, and the network, begin as nothing."""
    for weight in layer.parameters():
        weight.zero_()


def _norm(channels: int) -> nn.GroupNorm:
    if channels % _GROUPS:
        raise UserError(f"{channels} channels cannot be split into {_GROUPS} groups: choose other widths")
    return nn.GroupNorm(_GROUPS, channels)


def _heads(width: int, num_heads: int, head_channels: int | None) -> int:
    heads = width // head_channels if head_channels else num_heads
    if heads < 1 or width % heads or (head_channels and width % head_channels):
        each = f" of {head_channels} channels" if head_channels else ""
        raise UserError(f"{width} channels cannot be split into {heads} heads{each}: choose another number")
    return heads


def _resample(h: Tensor, direction: str | None) -> Tensor:
    if direction is None:
        return h
    return F.avg_pool2d(h, 2) if direction == "down" else F.interpolate(h, scale_factor=2.0, mode="nearest")


class _Residual(nn.Module):
    """Residual block, modulated by what the network is told; halved or doubled where there is a direction."""

    def __init__(
        self, cin: int, cout: int, embedding: int, scale_shift: bool, dropout: float, direction: str | None
    ) -> None:
        super().__init__()
        self.scale_shift, self.direction = scale_shift, direction
        self.in_layers = nn.Sequential(_norm(cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * cout if scale_shift else cout))
        last = nn.Conv2d(cout, cout, 3, padding=1)
        self.out_layers = nn.Sequential(_norm(cout), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)
        _to_zero(last)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        h = self.in_layers[2](_resample(self.in_layers[:2](x), self.direction))
        modulation = self.emb_layers[1](told)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.out_layers[1:](torch.addcmul(shift, self.out_layers[0](h), scale + 1))
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(_resample(x, self.direction)) + h  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Attention over pixels."""

    def __init__(self, width: int, heads: int, order: Order, pointwise: int) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        convolution = nn.Conv1d if pointwise == 1 else nn.Conv2d
        self.norm = _norm(width)
        self.qkv = convolution(width, 3 * width, 1)
        self.proj_out = convolution(width, width, 1)
        _to_zero(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2) if self.qkv.weight.ndim == 3 else x
        qkv = self.qkv(self.norm(pixels)).flatten(2)  # (B, 3 C, N)
        if self.order == "legacy":
            q, k, v = qkv.reshape(len(x), self.heads, 3, -1, qkv.shape[2]).unbind(2)  # (B, heads, c, N) each
        else:
            q, k, v = qkv.reshape(len(x), 3, self.heads, -1, qkv.shape[2]).unbind(1)
        return x + self.proj_out(attend(q, k, v).reshape(pixels.shape)).reshape(x.shape)  # type: ignore[no-any-return]


class _Down(nn.Module):
    """Half the sides, by a convolution where there are channels, else by means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if channels else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class _Up(nn.Module):
    """Twice the sides, and a convolution where there are channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_resample(x, "up"))  # type: ignore[no-any-return]
