"""Small image classifiers whose last activations serve as features (trained in sims.training.classifier)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sims.errors import UserError

NUM_FEATURES = 64
LARGEST = 32  # longer sides are area-averaged down to this many pixels
SLOPE = 0.1
VARIANTS = ("a", "b")


def shrink(x: Tensor, largest: int) -> Tensor:
    """Area-average images (B, C, H, W) down to at most `largest` pixels a side; smaller sides stay as they are."""
    size = (min(x.shape[2], largest), min(x.shape[3], largest))
    return x if x.shape[2:] == size else functional.adaptive_avg_pool2d(x, size)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _variant_a(channels: int, size: tuple[int, int], width: int) -> list[nn.Module]:
    """3x3 convolutions, halving the longer side until it is at most 4; then one hidden layer."""
    layers = _convolution(channels, width, stride=2 if max(size) > 16 else 1)
    height, length = (-(-side // 2) for side in size) if max(size) > 16 else size
    while max(height, length) > 4:
        layers += _convolution(width if len(layers) == 3 else 2 * width, 2 * width, stride=2)
        height, length = -(-height // 2), -(-length // 2)
    layers += _convolution(width if len(layers) == 3 else 2 * width, 2 * width)
    return [*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width * height * length, NUM_FEATURES)]


def _variant_b(channels: int, size: tuple[int, int], width: int) -> list[nn.Module]:
    """A perceptron with two hidden layers on at most 16x16 pixels: no convolution in common with variant a."""
    inputs = channels * min(size[0], 16) * min(size[1], 16)
    hidden = 16 * width
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (inputs, hidden):
        layers += [nn.Linear(before, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2)]
    return [*layers, nn.Linear(hidden, NUM_FEATURES)]


class ConvClassifier(nn.Module):
    """Images (B, C, H, W) in model space [-1, 1] -> logits (B, num_classes); H, W >= 4, square or not.

    The 64 features are the activations before the last linear layer, after a leaky ReLU (slope 0.1: none can die).
    Variant "a" is convolutional, variant "b" a perceptron, to check claims with features that no selection has seen.
    Sides above 32 (b: 16) pixels are area-averaged down. UserError where a setting does not fit.
    """

    def __init__(self, data_shape: tuple[int, ...], num_classes: int, width: int = 32, variant: str = "a") -> None:
        super().__init__()
        if len(data_shape) != 3 or min(data_shape[1:]) < 4:
            raise UserError(f"Image shape {tuple(data_shape)}; the classifier needs (C, H, W), H and W of 4 or more.")
        if num_classes < 2:
            raise UserError(f"{num_classes} class(es); a classifier needs at least 2: use the PCA extractor instead.")
        if variant not in VARIANTS:
            raise UserError(f"Classifier variant {variant!r} is not one of {', '.join(VARIANTS)}.")
        if width < 1:
            raise UserError(f"Classifier width {width} must be at least 1.")
        channels, height, length = data_shape
        self.data_shape = (channels, height, length)
        self.num_classes, self.width, self.variant = num_classes, width, variant
        self.largest = LARGEST if variant == "a" else 16
        build = _variant_a if variant == "a" else _variant_b
        size = (min(height, self.largest), min(length, self.largest))
        self.body = nn.Sequential(*build(channels, size, width))
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, 64)."""
        if tuple(x.shape[1:]) != self.data_shape:
            raise UserError(f"Images of shape {tuple(x.shape[1:])} for a classifier of {self.data_shape}.")
        return functional.leaky_relu(self.body(shrink(x, self.largest)), SLOPE)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Multiply all features by a factor > 0 and leave the logits as they are."""
        last = self.body[-1]
        assert isinstance(last, nn.Linear) and factor > 0
        last.weight.mul_(factor)  # leaky ReLU passes positive factors through
        last.bias.mul_(factor)
        self.head.weight.div_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
