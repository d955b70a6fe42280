"""ADM (Dhariwal & Nichol 2021), as EDM trains it (Karras et al. 2022, appendix F.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.networks.layers import (
    BlockStyle,
    PositionalEmbedding,
    UNetBlock,
    class_vectors,
    dropped,
    group_norm,
    image_size,
    keyword_arguments,
    plan,
)
from sims.networks.layout import arranged
from sims.networks.sizes import any_size

_HEAD = 64  # channels of an attention head; blocks of fewer have no attention


class DhariwalUNet(nn.Module):
    """Raw network F(x, c_noise, labels, augment) on images: x (B, C, H, W) -> (B, out_channels, H, W).

    c_noise (B,) or (1,); labels (B,) int64, -1 = no class; augment (B, augment_dim), what was done to the images.
    ``attn_resolutions`` are longer sides in pixels, of images padded and cut into patches of ``patch_size``
    (``any_size``).
    Raises UserError for options or images that do not fit.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        out_channels: int | None = None,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(DhariwalUNet, locals())
        channels, sides, self.multiple = image_size(data_shape, channel_mult, num_blocks, patch_size)
        self.space_to_depth = patch_size
        self.num_classes, self.label_dropout = num_classes, label_dropout
        embedding = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(num_classes, embedding, bias=False) if num_classes else None

        widths = [model_channels * multiple for multiple in channel_mult]
        self.encoder, self.decoder = plan(sides, channels, widths[0], widths, num_blocks)
        style = BlockStyle(embedding, dropout, (1, 1), 1e-5, 1.0, True, False)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for blocks, places in ((self.enc, self.encoder), (self.dec, self.decoder)):
            for place in places:
                if place.role == "conv":
                    blocks[place.name] = nn.Conv2d(place.cin, place.cout, 3, padding=1)
                    continue
                direction: Literal["up", "down"] | None = place.role if place.role in ("up", "down") else None  # type: ignore[assignment]
                attention = (place.role == "in" and place.index == 0) or (
                    place.role == "block" and place.is_at(attn_resolutions)
                )
                heads = place.cout // _HEAD if attention else 0
                blocks[place.name] = UNetBlock(place.cin, place.cout, style, direction, heads)
        self.out_norm = group_norm(widths[0])
        self.out_conv = nn.Conv2d(widths[0], (out_channels or data_shape[0]) * patch_size**2, 3, padding=1)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """torch's own, but for zeros in the last layer of each residual, and class vectors of unit variance."""
        for name, layer in self.named_modules():
            if name.rpartition(".")[2] in ("conv1", "proj", "out_conv", "map_augment"):
                for weight in layer.parameters():
                    weight.zero_()
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    @any_size
    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        embedding = self._embed(c_noise, labels, augment)  # (B, E)
        h, skips = x, []
        for place in self.encoder:
            block = self.enc[place.name]
            h = arranged(block(h)) if place.role == "conv" else block(h, embedding)  # (B, cout, H / 2^level, ...)
            skips.append(h)
        for place in self.decoder:
            if place.role == "block":
                h = torch.cat([h, skips.pop()], dim=1)  # (B, cin, H / 2^level, W / 2^level)
            h = self.dec[place.name](h, embedding)  # (B, cout, H / 2^level, W / 2^level)
        return self.out_conv(F.silu(self.out_norm(h)))  # (B, out_channels, H, W)

    def _embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        angles = self.map_noise(c_noise)  # (B, model_channels / 2)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, model_channels)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))  # (B, E)
        if self.map_label is not None:
            vectors = class_vectors(labels, self.num_classes, embedding)  # (B, classes)
            if self.training and self.label_dropout:
                vectors = dropped(vectors, self.label_dropout)
            embedding = embedding + self.map_label(vectors)
        return F.silu(embedding)
