"""Guidance by a temperature: every step goes a little too far, or not quite as far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, expand
from sims.errors import UserError
from sims.guidance.interval import IntervalGuide


@dataclass(frozen=True, eq=False)
class Temperature(IntervalGuide, kind="temperature"):
    """x + r (D - x): the score times r, by which the noise that a step removes is more or less than it should be.

    scale     None: r = 1 + w everywhere, as epsilon scaling (Ning et al. 2024, arXiv 2308.15321), whose factor of the
              noise is r. A number s: r = (s^2 + sigma^2) / (s^2 / (1 + w) + sigma^2), which does much at low noise and
              nothing at high: temporal score rescaling (arXiv 2510.01184) with k = 1 + w
    interval  (low, high]: the noise levels at which to rescale

    w > 0 sharpens, -1 < w < 0 flattens. For Gaussian data of standard deviation s the second is exactly the denoiser of
    Gaussian data of s / sqrt(1 + w). Nothing is evaluated beyond the base. Errors: UserError for w of -1 or less, and a
    scale that is no positive number.

    >>> import sims
    >>> from sims.guidance import Temperature
    >>> model = sims.load(EXAMPLE)
    >>> model.with_denoiser(Temperature(model.denoiser, w=0.05, scale=0.3)).sample(seeds=range(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    base: Denoiser
    w: float
    scale: float | None = None
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w <= -1:
            raise UserError(f"the score is rescaled by 1 + w, and w is {self.w:g}: it must be above -1")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise UserError(f"the scale of the data is {self.scale}: give a positive number, or none (all alike)")

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        """The rescaled estimate, each sample at its own level."""
        denoised = base(x, sigma, labels)
        guided = expand(self.is_guided(sigma), x)
        return torch.where(guided, denoised + expand(self._excess(sigma), x) * (denoised - x), denoised)

    def _excess(self, sigma: Tensor) -> Tensor:
        """r - 1 at noise levels (B,), without cancellation."""
        if self.scale is None:
            return torch.full_like(sigma, self.w)
        k = 1 + self.w
        return self.w / (1 + k * (sigma / self.scale) ** 2)
