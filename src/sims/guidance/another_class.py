"""Guidance away from the same network told another class: classifier-free guidance without a class for none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide
from sims.guidance.guide import TWICE
from sims.seeds import derive_seed


@dataclass(frozen=True, eq=False)
class AnotherClass(CorrectionGuide, kind="another-class"):
    """D(y) + w (D(y) - D(y')): independent condition guidance (Sadat et al. 2024, arXiv 2407.02687).

    y' is another class than y, a different one at each noise level: over a trajectory their mean stands for no class.
    It follows from y and the level alone, so that a sample depends on its seed alone. For networks with two classes or
    more, whether or not they know what to do without one. ``base`` is evaluated twice.

    interval  (low, high]: the noise levels at which to guide
    cache     where along a trajectory to recompute the correction; None = everywhere

    Errors: UserError for a base of fewer classes, and for labels that are missing.

    >>> import sims
    >>> from sims.guidance import AnotherClass
    >>> model = sims.load(EXAMPLE)
    >>> sims.nfe(model.with_denoiser(AnotherClass(model.denoiser, w=0.5)), sims.SamplerOptions(steps=4))
    14
    """

    calls = TWICE

    base: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base.num_classes < 2:
            raise UserError(
                f"guidance away from another class needs a base with 2 classes or more: it has {self.base.num_classes}"
            )

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D(y) - D(y')."""
        if labels is None:
            raise UserError("guidance away from another class needs the labels of its samples: give labels")
        return denoised - others[0](x, sigma, self.other(labels, sigma))

    def other(self, labels: Tensor, sigma: Tensor) -> Tensor:
        """y' for labels (B,) at noise levels (B,); a sample without a class stays without."""
        classes = self.base.num_classes
        levels = sigma.tolist()
        steps = {level: 1 + derive_seed("another class", f"{level:.6g}") % (classes - 1) for level in set(levels)}
        further = torch.tensor([steps[level] for level in levels], dtype=labels.dtype, device=labels.device)
        return torch.where(labels < 0, labels, (labels + further) % classes)
