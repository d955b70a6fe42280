"""Recording corrections along full trajectories, from which a cache rule follows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, Wrapped
from sims.guidance.correction import CorrectionGuide, Records, Trajectory


@dataclass(frozen=True, eq=False)
class Recorder(Wrapped):
    """A guided denoiser that, along trajectories, appends (sigma, correction) of every guided level to ``records``.

    ``CacheRule.from_pilot`` samples one batch with it.
    """

    base: CorrectionGuide
    records: Records

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base.with_cache(None))  # everywhere

    @property
    def inside(self) -> Denoiser:
        return self.base

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        return Trajectory(self.base, sigmas, self.records)
