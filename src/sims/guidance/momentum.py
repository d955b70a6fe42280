"""Guidance by what the same trajectory estimated before: momentum of the denoised estimates, at the base's cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, expand
from sims.errors import UserError
from sims.guidance.interval import IntervalGuide


@dataclass(frozen=True, eq=False)
class Momentum(IntervalGuide, kind="momentum"):
    """D + w (D - m), where m is the mean of the trajectory's own estimates so far, the later ones weighing more.

    Momentum guidance (arXiv 2602.20360), history-guided sampling (2509.22300), and, for a short memory, self-guidance
    by the estimate before (2412.05827). Nothing is trained or evaluated beyond the base.

    memory    over how many e-folds of the noise level m forgets: dm / d(-ln sigma) = (D - m) / memory, m = D at first
    interval  (low, high]: the noise levels at which to guide; all are remembered

    The mean is one over noise levels, not evaluations: D is taken to be linear in ln sigma between two levels, so that
    the number of steps and the solver change m as little as they change the trajectory, and Heun's two evaluations at
    one level count as one, the later. ``sims.sample`` says which levels come; a single estimate has no history, and is
    the base's. Errors: UserError for a memory that is no positive number.

    >>> import sims
    >>> from sims.guidance import Momentum
    >>> model = sims.load(EXAMPLE)
    >>> guided = model.with_denoiser(Momentum(model.denoiser, w=0.5, memory=2.0))
    >>> sims.nfe(guided, sims.SamplerOptions(steps=4)), guided.sample(seeds=range(2)).shape
    (7, torch.Size([2, 1, 8, 8]))
    """

    of_trajectory: ClassVar[bool] = True

    base: Denoiser
    w: float
    memory: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.memory < math.inf:
            raise UserError(f"the memory of momentum is {self.memory}: give a positive number of e-folds, such as 1")

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        """The base's: a single estimate has no history."""
        return base(x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        """A fresh evaluator for one run over these levels; it holds the mean and the estimates it is made of."""
        return self.base.trajectory(sigmas) if self.w == 0 else _Remembering(self, sigmas)


class _Remembering:
    """One sampling run: the position along the plan, and at some levels the estimate and the mean."""

    def __init__(self, guide: Momentum, sigmas: Tensor) -> None:
        self._guide, self._base = guide, guide.base.trajectory(sigmas)
        self._levels: list[float] = sigmas.tolist()
        self._before = [_before(self._levels, i) for i in range(len(self._levels))]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # estimate and mean, of the evaluations still needed
        self._position = 0

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        i = self._position
        assert i < len(self._levels), "more evaluations than levels were planned"
        self._position += 1
        denoised = self._base(x, sigma, labels)
        before = self._before[i]
        mean = denoised if before is None else self._mean(denoised, i, before)
        needed = self._before[i + 1 :]
        self._known = {j: kept for j, kept in self._known.items() if j in needed}
        if i in needed:
            self._known[i] = denoised, mean
        guided = expand(self._guide.is_guided(sigma), x)
        return torch.where(guided, denoised + self._guide.w * (denoised - mean), denoised)

    def _mean(self, denoised: Tensor, i: int, before: int) -> Tensor:
        """The mean at level i: exact where the estimate is linear in ln sigma since the level before."""
        earlier, mean = self._known[before]
        h = math.log(self._levels[before] / self._levels[i]) / self._guide.memory
        kept = math.exp(-h)
        slope = -math.expm1(-h) / h  # the mean of exp over the step
        return kept * mean + (slope - kept) * earlier + (1 - slope) * denoised


def _before(levels: list[float], i: int) -> int | None:
    """The last evaluation before i at a higher level; None for the first."""
    return next((j for j in reversed(range(i)) if levels[j] > levels[i]), None)
