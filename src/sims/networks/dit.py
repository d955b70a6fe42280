"""The diffusion transformer with adaLN-Zero (Peebles & Xie 2023), which SiT (Ma et al. 2024) is made of too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.errors import UserError
from sims.networks.layers import PositionalEmbedding, dropped_labels, keyword_arguments
from sims.networks.linear import Linear
from sims.networks.sizes import any_size, rounded_up

_FREQUENCIES = 256  # numbers that a time is told by


class DiT(nn.Module):
    """Raw network F(x, c_noise, labels): x (B, C, H, W) -> (B, out_channels, H, W).

    c_noise (B,) or (1,); labels (B,) int64, -1 = no class. With ``null_class`` the table of classes has a last row for
    that, which classes are replaced by in training with probability ``label_dropout``. Sides that are no multiples of
    the patches' are padded (``any_size``). Parameters have the published names. Raises UserError for sizes that do not
    fit, and for labels of -1 without that row.
    """

    pos_embed: Tensor  # (1, T, hidden_size)

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        out_channels: int | None = None,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        null_class: bool = True,
        label_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(DiT, locals())
        _check(data_shape, patch_size, hidden_size, num_heads)
        channels, height, width = data_shape[0], *rounded_up(data_shape[1:], patch_size)
        self.out_channels, self.patch_size, self.multiple = out_channels or channels, patch_size, patch_size
        self.num_classes, self.null_class, self.label_dropout = num_classes, null_class, label_dropout
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, hidden_size, patch_size, stride=patch_size)})
        self.register_buffer("pos_embed", _positions(height // patch_size, width // patch_size, hidden_size)[None])
        self.angles = PositionalEmbedding(_FREQUENCIES)
        self.t_embedder = nn.ModuleDict({"mlp": _perceptron(_FREQUENCIES, hidden_size)})
        if num_classes:
            table = nn.Embedding(num_classes + int(null_class), hidden_size)
            self.y_embedder = nn.ModuleDict({"embedding_table": table})
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads, mlp_ratio, dropout) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": Linear(hidden_size, patch_size**2 * self.out_channels),
                "adaLN_modulation": _modulation(hidden_size, 2),
            }
        )
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Zeros in every modulation and in the last layer, so that each block begins as the identity (section 3.2)."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            if "embedder" in name and isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            if "adaLN_modulation.1" in name or name == "final_layer.linear":
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    @any_size
    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        grid = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed  # (B, T, D)
        told = F.silu(self._embed(c_noise, labels))  # (B, D) or (1, D)
        for block in self.blocks:
            h = block(h, told)
        modulation: Any = self.final_layer["adaLN_modulation"]
        shift, scale = _parts(modulation[1](told), 2)
        h = self.final_layer["linear"](_modulated(h, shift, scale))  # (B, T, p p out_channels)
        h = h.reshape(len(x), *grid, self.patch_size, self.patch_size, self.out_channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, *x.shape[2:])

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        angles = self.angles(c_noise)  # (B, frequencies / 2)
        embedding = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=1))  # (B, D)
        if not self.num_classes:
            return embedding  # type: ignore[no-any-return]
        if labels is None:
            labels = torch.full((1,), -1, device=c_noise.device)
        if self.training and self.label_dropout and self.null_class:
            labels = dropped_labels(labels, self.label_dropout)
        if not self.null_class and bool((labels < 0).any()):
            raise UserError("this network knows nothing for 'no class': give a label for every sample")
        return embedding + self.y_embedder["embedding_table"](labels.where(labels >= 0, self.num_classes))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Attention and a perceptron, each shifted, scaled and gated by what the network is told (figure 3)."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attn = nn.ModuleDict({"qkv": Linear(width, 3 * width), "proj": Linear(width, width)})
        inner = int(width * ratio)
        self.mlp = nn.ModuleDict({"fc1": Linear(width, inner), "fc2": Linear(inner, width)})
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _parts(self.adaLN_modulation[1](told), 6)
        h = h + gate * self._attend(_modulated(h, shift, scale))
        inner = F.gelu(self.mlp["fc1"](_modulated(h, shift_mlp, scale_mlp)), approximate="tanh")
        return h + gate_mlp * self.mlp["fc2"](F.dropout(inner, self.dropout, self.training))

    def _attend(self, h: Tensor) -> Tensor:
        qkv = self.attn["qkv"](h).reshape(*h.shape[:2], 3, self.heads, -1)  # (B, T, 3, heads, c)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, T, c) each
        return self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape))  # type: ignore[no-any-return]


def _check(data_shape: Sequence[int], patch_size: int, hidden_size: int, num_heads: int) -> None:
    if len(data_shape) != 3 or patch_size < 1 or min(data_shape[1:]) < patch_size:
        raise UserError(
            f"data of shape {tuple(data_shape)} cannot be cut into patches of {patch_size} pixels a side: give images "
            "(C, H, W) with sides of at least that, or another option 'network.patch'"
        )
    if num_heads < 1 or hidden_size % num_heads or hidden_size % 4:
        raise UserError(f"a width of {hidden_size} with {num_heads} heads: give a multiple of 4 and of the heads")


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(Linear(inputs, width), nn.SiLU(), Linear(width, width))


def _modulation(width: int, parts: int) -> nn.Sequential:
    """The layer that makes ``parts`` vectors of what the network is told; its nonlinearity is applied once for all."""
    return nn.Sequential(nn.SiLU(), Linear(width, parts * width))


def _parts(modulation: Tensor, count: int) -> tuple[Tensor, ...]:
    return modulation[:, None].chunk(count, dim=2)  # (B, 1, D) each


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), scale + 1)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of column, then of row, at frequencies from 1 towards 1/10000: (rows columns, width)."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    grids = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [grid.reshape(-1, 1) * frequencies for grid in reversed(grids)]  # (T, width / 4) each
    return torch.cat([f(one) for one in angles for f in (torch.sin, torch.cos)], dim=1).to(torch.get_default_dtype())
