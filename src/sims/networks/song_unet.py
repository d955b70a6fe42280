"""DDPM++ and NCSN++ (Song et al. 2021), with the refinements of EDM (Karras et al. 2022, appendix F.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.networks.layers import (
    BlockStyle,
    FourierEmbedding,
    Place,
    PositionalEmbedding,
    Resample,
    ResampleConv,
    UNetBlock,
    check_filter,
    class_vectors,
    dropped,
    group_norm,
    image_size,
    keyword_arguments,
    plan,
)
from sims.networks.layout import arranged
from sims.networks.sizes import any_size

_EPS = 1e-6


class SongUNet(nn.Module):
    """Raw network F(x, c_noise, labels, augment) on images: x (B, C, H, W) -> (B, out_channels, H, W).

    c_noise (B,) or (1,); labels (B,) int64, -1 = no class; augment (B, augment_dim), what was done to the images.
    DDPM++ is the default; NCSN++ has fourier embedding, residual encoder, channel_mult_noise 2, resample_filter
    [1, 3, 3, 1]. ``attn_resolutions`` are longer sides in pixels, of images padded and cut into patches of
    ``patch_size`` (``any_size``). Raises UserError for options or images that do not fit.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        out_channels: int | None = None,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.config = keyword_arguments(SongUNet, locals())
        channels, sides, self.multiple = image_size(data_shape, channel_mult, num_blocks, patch_size)
        self.space_to_depth = patch_size
        taps = check_filter(resample_filter)
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.encoder_type, self.decoder_type, self.last_block = encoder_type, decoder_type, num_blocks
        embedding, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        self.map_noise: nn.Module = (
            PositionalEmbedding(noise, endpoint=True) if embedding_type == "positional" else FourierEmbedding(noise)
        )
        self.map_label = nn.Linear(num_classes, noise) if num_classes else None
        self.map_augment = nn.Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

        widths = [model_channels * multiple for multiple in channel_mult]
        self.encoder, self.decoder = plan(sides, channels, model_channels, widths, num_blocks)
        style = BlockStyle(embedding, dropout, taps, _EPS, math.sqrt(0.5), False, True)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self._build_encoder(channels, style, attn_resolutions)
        self._build_decoder((out_channels or data_shape[0]) * patch_size**2, style, attn_resolutions)
        self._initialize()

    def _build_encoder(self, image: int, style: BlockStyle, attn_resolutions: Sequence[int]) -> None:
        """``image`` is the number of channels of the second path, which carries the image down the levels."""
        for place in self.encoder:
            if place.role == "conv":
                self.enc[place.name] = nn.Conv2d(place.cin, place.cout, 3, padding=1)
            elif place.role == "block":
                heads = int(place.is_at(attn_resolutions))
                self.enc[place.name] = UNetBlock(place.cin, place.cout, style, heads=heads)
            else:
                self.enc[place.name] = UNetBlock(place.cin, place.cout, style, "down")
                if self.encoder_type == "skip":
                    self.enc[_aux(place, "down")] = Resample(style.taps, "down")
                    self.enc[_aux(place, "skip")] = nn.Conv2d(image, place.cout, 1)
                elif self.encoder_type == "residual":
                    fused = ResampleConv(image, place.cout, 3, style.taps, "down", fused=True)
                    self.enc[_aux(place, "residual")] = fused
                    image = place.cout

    def _build_decoder(self, image: int, style: BlockStyle, attn_resolutions: Sequence[int]) -> None:
        """``image`` is the number of channels of the output."""
        deepest = self.decoder[0].level
        for place in self.decoder:
            last = place.role == "block" and place.index == self.last_block
            attention = (place.role == "in" and place.index == 0) or (last and place.is_at(attn_resolutions))
            direction: Literal["up"] | None = "up" if place.role == "up" else None
            self.dec[place.name] = UNetBlock(place.cin, place.cout, style, direction, int(attention))
            if last and (self.decoder_type == "skip" or place.level == 0):
                if self.decoder_type == "skip" and place.level < deepest:
                    self.dec[_aux(place, "up")] = Resample(style.taps, "up")
                self.dec[_aux(place, "norm")] = group_norm(place.cout, _EPS)
                self.dec[_aux(place, "conv")] = nn.Conv2d(place.cout, image, 3, padding=1)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Uniform (Glorot & Bengio 2010), no biases; the last layer of each residual close to zero."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                end = name.rpartition(".")[2]
                nearly_zero = end in ("conv1", "proj") or end.endswith("aux_conv")
                gain = 1e-5 if nearly_zero else math.sqrt(0.2) if end == "qkv" else 1.0
                nn.init.xavier_uniform_(layer.weight, gain)
                if layer.bias is not None:
                    layer.bias.zero_()

    @any_size
    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        embedding = self._embed(c_noise, labels, augment)  # (B, E)
        image, h, skips = x, x, []
        for place in self.encoder:
            block = self.enc[place.name]
            h = arranged(block(h)) if place.role == "conv" else block(h, embedding)  # (B, cout, H / 2^level, ...)
            if place.role == "down" and self.encoder_type == "skip":
                image = self.enc[_aux(place, "down")](image)  # (B, C, H / 2^level, W / 2^level)
                h = h + self.enc[_aux(place, "skip")](image)
            elif place.role == "down" and self.encoder_type == "residual":
                h = image = (h + self.enc[_aux(place, "residual")](image)) * math.sqrt(0.5)
            skips.append(h)
        return self._decode(h, skips, embedding)

    def _decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        output: Tensor | None = None
        for place in self.decoder:
            if place.role == "block":
                h = torch.cat([h, skips.pop()], dim=1)  # (B, cin, H / 2^level, W / 2^level)
            h = self.dec[place.name](h, embedding)  # (B, cout, H / 2^level, W / 2^level)
            if place.role == "block" and place.index == self.last_block and _aux(place, "conv") in self.dec:
                part = self.dec[_aux(place, "conv")](F.silu(self.dec[_aux(place, "norm")](h)))  # (B, out_channels, ...)
                output = part if output is None else part + self.dec[_aux(place, "up")](output)
        assert output is not None
        return output

    def _embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        angles = self.map_noise(c_noise)  # (B, noise / 2)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, noise)
        if self.map_label is not None:
            vectors = class_vectors(labels, self.num_classes, embedding)  # (B, classes)
            if self.training and self.label_dropout:
                vectors = dropped(vectors, self.label_dropout)
            embedding = embedding + self.map_label(vectors * math.sqrt(self.num_classes))
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        embedding = F.silu(self.map_layer0(embedding))  # (B, E)
        return F.silu(self.map_layer1(embedding))


def _aux(place: Place, what: str) -> str:
    """The name of a layer of the second path, beside a block, such as 16x16_aux_conv."""
    return f"{place.size}_aux_{what}"
