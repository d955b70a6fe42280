"""Guidance by a discriminator that was trained on noised data: towards what is real."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, compile_networks
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide


@dataclass(frozen=True, eq=False)
class DensityRatio(CorrectionGuide, kind="density ratio"):
    """D = D_base + w sigma^2 grad_x log(d / (1 - d)): discriminator guidance (Kim et al. 2023, arXiv 2211.17091).

    ratio     of the discriminator's logit log(d / (1 - d)) as a denoiser: x + sigma^2 grad_x logit (``RatioPrecond``)
    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute the gradient; None = everywhere

    With w = 1 and a discriminator that tells the base's samples from data as well as can be at every noise level, it
    is the denoiser of the data. A gradient counts as two evaluations: the discriminator's pass, and the way back.
    """

    children = (*CorrectionGuide.children, "ratio")

    base: Denoiser
    ratio: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """sigma^2 grad_x log(d / (1 - d))."""
        return others[0](x, sigma, labels) - x

    def compile_networks(self, graphs: bool = False) -> None:
        """Let torch compile both networks; without CUDA graphs, which know nothing of gradients."""
        for name in self.children:
            compile_networks(getattr(self, name), graphs=False)
