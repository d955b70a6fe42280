"""Guidance away from the same network told of more noise than there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, Wrapped
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide
from sims.guidance.guide import TWICE


@dataclass(frozen=True, eq=False)
class TimeShift(CorrectionGuide, kind="time-shift"):
    """D(x, sigma) + w (D(x, sigma) - D(x, factor sigma)): away from the estimate for another noise level.

    Self-guidance (arXiv 2412.05827) and time-step guidance (2407.02687): the network that is told too much noise
    smooths too much. Nothing is trained; ``base`` is evaluated twice.

    factor    by how much the level that is told is too high (below 1: too low); it stays within the base's own levels
    interval  (low, high]: the noise levels at which to guide
    cache     where along a trajectory to recompute the correction; None = everywhere

    Errors: UserError for a factor that is no positive number, or 1.

    >>> import sims
    >>> from sims.guidance import TimeShift
    >>> model = sims.load(EXAMPLE)
    >>> sims.nfe(model.with_denoiser(TimeShift(model.denoiser, w=0.5, factor=1.5)), sims.SamplerOptions(steps=4))
    14
    """

    calls = TWICE

    base: Denoiser
    w: float
    factor: float = 1.25
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < math.inf or self.factor == 1:
            raise UserError(f"the factor of the noise level is {self.factor}: give a positive number, such as 1.25")

    def counted(self) -> list[Denoiser]:
        return [self.base, _Told(self.base, self.factor)]

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D(x, sigma) - D(x, factor sigma)."""
        return denoised - others[0](x, sigma, labels)


@dataclass(frozen=True, eq=False)
class _Told(Wrapped):
    """A denoiser that is told another noise level than there is."""

    base: Denoiser
    factor: float

    @property
    def inside(self) -> Denoiser:
        return self.base

    def _told(self, sigma: Tensor) -> Tensor:
        return self.base.round_sigma((self.factor * sigma).clamp(self.base.sigma_min, self.base.sigma_max))

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.base(x, self._told(sigma), labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        evaluate = self.base.trajectory(self._told(sigmas))
        return lambda x, sigma, labels: evaluate(x, self._told(sigma), labels)

    def evaluations(self, sigmas: Tensor) -> int:
        return self.base.evaluations(self._told(sigmas))
