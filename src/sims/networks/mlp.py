"""A residual multilayer perceptron for small data: tiny images and 2-D points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.networks.layers import check_depth, dropped_labels
from sims.networks.linear import Linear


class Fourier(nn.Module):
    """Sines and cosines of c_noise at geometrically spaced frequencies (Tancik et al. 2020): (B,) -> (B, size)."""

    frequencies: Tensor

    def __init__(self, size: int, lowest: float = 0.25, highest: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(math.log10(lowest), math.log10(highest), size // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies * (2 * math.pi)  # (B, size / 2)
        return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, size)


class Block(nn.Module):
    """Pre-norm residual block, modulated by the embedding as in adaLN (Peebles & Xie 2023)."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = Linear(embedding, 2 * width)
        self.expand = Linear(width, 2 * width)
        self.contract = Linear(2 * width, width)
        self.dropout = dropout
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=1)  # (B, width) each
        u = torch.addcmul(shift, self.norm(h), scale + 1)
        u = F.silu(self.expand(u))  # (B, 2 * width)
        return h + self.contract(F.dropout(u, self.dropout, self.training))


class MLP(nn.Module):
    """Raw network F(x, c_noise, labels) on flattened data; x (B, *data_shape) -> the same shape."""

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        width: int = 256,
        blocks: int = 3,
        embedding: int = 64,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_depth(blocks)
        self.config = {"width": width, "blocks": blocks, "embedding": embedding, "dropout": dropout}
        self.config |= {"label_dropout": label_dropout} if label_dropout else {}
        self.label_dropout = label_dropout
        size = math.prod(data_shape)
        self.fourier = Fourier(embedding)
        self.embed = Linear(embedding, embedding)
        self.classes = nn.Embedding(num_classes, embedding) if num_classes else None
        self.read = Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, embedding, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = Linear(width, size)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.embed(self.fourier(c_noise))  # (B, embedding)
        if self.classes is not None and labels is not None:
            if self.training and self.label_dropout:
                labels = dropped_labels(labels, self.label_dropout)
            known = (labels >= 0).to(embedding.dtype)[:, None]  # label -1 adds nothing: no class
            embedding = embedding + self.classes(labels.clamp(min=0)) * known
        embedding = F.silu(embedding)
        h = self.read(x.flatten(1))  # (B, width)
        for block in self.blocks:
            h = block(h, embedding)
        return self.write(self.norm(h)).reshape(x.shape)
