"""DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095) in EDM's parameterization: alpha = 1, lambda = -ln sigma.

One evaluation a step: each step extrapolates the denoised estimate from those of the steps before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

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
    levels, previous = sigmas.tolist(), list[Tensor]()  # the estimate of the step before
    for i, (t, t_next) in enumerate(itertools.pairwise(levels)):
        denoised = denoise(x, t)
        on_step(i, t, x, denoised)
        if t_next == 0:
            return denoised
        x = step(x, levels[max(0, i - 1) : i + 2], [*previous, denoised])
        previous = [denoised]
    return x


def step(x: Tensor, levels: Sequence[float], estimates: Sequence[Tensor]) -> Tensor:
    """From levels[-2] to levels[-1], by the estimates at the levels before the last; a first step has but one."""
    t, t_next = levels[-2:]
    h = math.log(t / t_next)  # lambda_i - lambda_{i-1}
    extrapolated = denoised = estimates[-1]
    if len(estimates) > 1:
        r = math.log(levels[-3] / t) / h
        extrapolated = denoised + (denoised - estimates[-2]) / (2 * r)
    return (t_next / t) * x - math.expm1(-h) * extrapolated
