"""Classifier guidance as a denoiser: the rival of an auxiliary wherever a classifier has gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, compile_networks, expand
from sims.errors import UserError
from sims.guidance.guide import Guide

_STREAM = 0x76616C7565  # of wanted values


@dataclass(frozen=True, eq=False)
class GradientGuide(Guide):
    """D(x) + sigma^2 w grad_x log p(value | D(x)): classifier guidance (Dhariwal and Nichol 2021, eq. 14).

    The classifier was made for clean images, so it sees the denoised estimate, and the gradient runs through the base
    (Bansal et al. 2023, universal guidance). Where log p is linear in the clean data and these are Gaussian, the result
    is exactly the denoiser of the data tilted by p^w. ``noisy`` is for a classifier that was trained on noisy
    images: log_probs(x, sigma); with w = 1 and an exact one the result is the exact conditional denoiser.

    log_probs  images (B, *data_shape), of the denoised estimate -> log-probabilities (B, K), with gradient
    target     wanted proportions (K,); ``wanted`` draws a value for every seed from them

    Labels are wanted values, 0 .. K - 1, -1 = unguided; for a base with classes, value + K * class (class 0 .. C - 1).
    Raises UserError for a classifier without gradients, and where w or target are no use. It cannot be stored, because
    a classifier is any function.
    """

    base: Denoiser
    log_probs: Callable[..., Tensor | None]
    target: Sequence[float]
    w: float
    noisy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = torch.as_tensor(self.target, dtype=torch.float64)
        if shares.ndim != 1 or len(shares) < 2 or not (shares >= 0).all() or abs(float(shares.sum()) - 1) > 1e-6:
            raise UserError(f"the target {shares.tolist()} must be at least two shares >= 0 that sum to 1")

    @property
    def num_values(self) -> int:
        return len(self.target)

    @property
    def num_classes(self) -> int:
        return self.num_values * max(1, self.base.num_classes)

    @property
    def class_shares(self) -> tuple[float, ...]:
        return ()  # its labels are wanted values

    def wanted(self, seeds: Sequence[int], classes: Tensor | None = None) -> Tensor:
        """Labels (n,) int64 to sample these seeds with: the value of seed i follows from seed i alone.

        classes (n,) are the base's, where it has any.
        """
        if (classes is None) != (self.base.num_classes == 0):
            raise UserError(f"the base has {self.base.num_classes} classes: give one for each seed, or none if 0")
        # Another generator than that of the sample's noise, which a wanted value must not depend on.
        uniform = torch.tensor([np.random.default_rng((seed, _STREAM)).random() for seed in seeds], dtype=torch.float64)
        shares = torch.as_tensor(self.target, dtype=torch.float64)
        values = torch.searchsorted(shares.cumsum(0)[:-1], uniform, right=True)
        return values if classes is None else values + self.num_values * classes

    def unguided(self, base: Evaluate) -> Evaluate:
        return lambda x, sigma, labels: base(x, sigma, self._parted(labels)[1])

    def evaluations(self, sigmas: Tensor) -> int:
        """Network evaluations per sample: a gradient through the base costs two more; the classifier is not counted."""
        own = self.base.evaluations(sigmas)
        return own if self.w == 0 or self.noisy else 3 * own

    def compile_networks(self, graphs: bool = False) -> None:
        """Let torch compile the base; without CUDA graphs, which know nothing of gradients."""
        compile_networks(self.base, graphs=False)

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        """Each sample guided towards its own value, labels (B,)."""
        values, classes = self._parted(labels)
        if values is None or bool((values < 0).all()):
            return base(x, sigma, classes)
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            denoised = base(x if self.noisy else given, sigma, classes)
            finite = denoised.nan_to_num(0.0, 1e3, -1e3)  # a classifier need not take what has diverged
            log_probs = self.log_probs(given, sigma) if self.noisy else self.log_probs(finite)
            if log_probs is None or not log_probs.requires_grad:
                raise UserError(
                    "the classifier has no gradient with respect to the image: classifier guidance needs one that "
                    "gives differentiable logits; choose another baseline"
                )
            if log_probs.shape != (len(x), self.num_values):
                raise UserError(
                    f"the classifier gives {tuple(log_probs.shape)} for {len(x)} images: it must give log-"
                    f"probabilities ({len(x)}, {self.num_values})"
                )
            chosen = log_probs.gather(1, values.clamp(min=0)[:, None]).squeeze(1)  # (B,)
            # Samples do not see each other, so the gradient of the sum holds that of each.
            gradient = torch.autograd.grad((chosen * (values >= 0)).sum(), given)[0]
        return denoised.detach() + self.w * expand(sigma, x).square() * gradient

    def _parted(self, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Wanted values (B,) and the base's classes (B,), both from the labels (B,)."""
        if labels is None or self.base.num_classes == 0:
            return labels, None
        known = labels >= 0
        values = torch.where(known, labels % self.num_values, -1)
        return values, torch.where(known, labels.div(self.num_values, rounding_mode="floor"), -1)
