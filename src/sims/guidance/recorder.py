"""Recording corrections along full trajectories, from which a cache rule follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sims.denoiser import Evaluate
from sims.guidance.correction import CorrectionGuide, Records, Trajectory
from sims.guidance.guide import Guide


@dataclass(frozen=True, eq=False)
class Recorder(Guide):
    """A guided denoiser that, along trajectories, appends (sigma, correction) of every guided level to ``records``.

    ``CacheRule.from_pilot`` samples one batch with it.
    """

    base: CorrectionGuide
    records: Records
    w: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base.with_cache(None))  # everywhere
        object.__setattr__(self, "w", self.base.w)

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        return base(x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        return Trajectory(self.base, sigmas, self.records)
