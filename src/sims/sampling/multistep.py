"""DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095) in EDM's parameterization: alpha = 1, lambda = -ln sigma.

One evaluation a step: each step extrapolates the denoised estimate from those of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sims.sampling.solver import Churn, Denoise, OnStep, RoundSigma, starts

STOCHASTIC = False
RENOISES = False
planned = starts


def solve(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    churn: Churn,
    round_sigma: RoundSigma,
    step_noise: Callable[[], Tensor] | None,
    on_step: OnStep,
) -> Tensor:
    """Integrate x (B, *data_shape) from sigmas[0] to 0 with DPM-Solver++(2M), Algorithm 2; N evaluations.

    The first step has no history, and the last, to 0, is best taken at first order: x = denoised.
    """
    previous: tuple[float, Tensor] | None = None  # the step before: its length h and its denoised estimate
    for i, (t, t_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        denoised = denoise(x, t)
        on_step(i, t, x, denoised)
        if t_next == 0:
            return denoised
        h = math.log(t / t_next)  # lambda_i - lambda_{i-1}
        extrapolated = denoised
        if previous is not None:
            r = previous[0] / h
            extrapolated = denoised + (denoised - previous[1]) / (2 * r)
        x = (t_next / t) * x - math.expm1(-h) * extrapolated
        previous = h, denoised
    return x
