"""Classifier-free guidance: away from what the same network says when it is told no class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide
from sims.guidance.guide import TWICE, innermost

JOINED_ON_CPU = 4  # samples; above, one pass of twice the batch can take up to 1.5 times as long as two


def knows_no_class(denoiser: Denoiser) -> bool:
    """Whether a network was trained for label -1 too: labels were dropped, or one of its classes stands for none."""
    network: Any = getattr(innermost(denoiser), "network", None)
    dropout = getattr(network, "label_dropout", None)
    trained = getattr(network, "null_class", None) not in (None, False) if dropout is None else dropout > 0
    return denoiser.num_classes > 0 and trained


@dataclass(frozen=True, eq=False)
class ClassifierFree(CorrectionGuide, kind="classifier-free"):
    """D = D(y) + w (D(y) - D(none)): classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute the correction D(y) - D(none); None = everywhere

    w = 0 is the base: their guidance scale is 1 + w. ``base`` is evaluated twice. Errors: UserError where the base has
    no classes or was never told of none, and for labels that are missing.

    >>> import sims, torch
    >>> from sims.guidance import ClassifierFree
    >>> net, call = torch.nn.Embedding(4, 2), lambda net, x, t, y: net(y)
    >>> how = {"prediction": "x0", "schedule": "rectified_flow", "num_classes": 3, "null_class": 3, "call": call}
    >>> model = sims.wrap(net, data_shape=(2,), **how)
    >>> sims.nfe(ClassifierFree(model.denoiser, w=0.5), sims.SamplerOptions(steps=4))  # 7 without guidance
    14
    """

    calls = TWICE

    base: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not knows_no_class(self.base):
            raise UserError(
                "classifier-free guidance needs a network with classes that also knows what to do without one: one "
                "trained with label_dropout, or with a null_class"
            )

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D(y) - D(none)."""
        return denoised - others[0](x, sigma, _none(labels))

    def together(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate
    ) -> tuple[Tensor, Tensor]:
        """D(y) and D(y) - D(none), in one batch of both where that is faster and nothing lives along a trajectory."""
        none = _none(labels)
        if base is not others[0] or labels is None or not faster_joined(x):
            return super().together(x, sigma, labels, base, *others)
        told = torch.cat([labels, none])
        denoised, without = base(torch.cat([x, x]), sigma.expand(len(x)).repeat(2), told).chunk(2)
        return denoised, denoised - without


def _none(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise UserError("classifier-free guidance needs the labels of its samples: give labels")
    return torch.full_like(labels, -1)


def faster_joined(x: Tensor) -> bool:
    """Whether one pass of twice the batch is faster than two: on a CPU up to 1.9 times (benchmarks/two_passes.py)."""
    return x.device.type != "cpu" or len(x) <= JOINED_ON_CPU
