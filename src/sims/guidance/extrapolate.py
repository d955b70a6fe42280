"""Guidance away from an auxiliary model: SIMS, autoguidance, and all that extrapolate from a worse model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sims.config import JSON
from sims.denoiser import Denoiser, Evaluate
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide


@dataclass(frozen=True, eq=False)
class Extrapolate(CorrectionGuide, kind="extrapolation"):
    """D = D_base + w (D_base - D_aux): guidance away from the auxiliary (SIMS: Alemohammad et al. 2024, section 3).

    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute the correction D_base - D_aux; None = everywhere

    w = 0 is the base, bit for bit and at its cost. Shapes, classes and noise levels are the base's; an auxiliary
    without classes is not given labels. Raises UserError if w is not finite or base and auxiliary do not match.

    >>> import dataclasses, sims
    >>> base, aux = sims.load(EXAMPLE), sims.load(OTHER)
    >>> guided = sims.Extrapolate(base.denoiser, aux.denoiser, w=1.0)
    >>> stronger = dataclasses.replace(guided, w=2.0)
    >>> base.with_denoiser(stronger).sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
    """

    children = ("base", "aux")
    guides_outputs = True

    base: Denoiser
    aux: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D_base - D_aux."""
        return denoised - others[0](x, sigma, labels)

    def fingerprint(self) -> JSON:
        """In the order and spelling by which models have been hashed from the first."""
        return [self.w, [str(level) for level in self.interval], self.cache.to_json() if self.cache else None]

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "kind": "extrapolation: base + w (base - aux)"}
