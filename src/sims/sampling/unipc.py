"""UniPC of two estimates (Zhao et al. 2023, arXiv 2302.04867) in EDM's parameterization: alpha = 1, lambda = -ln sigma.

One evaluation a step, as in DPM-Solver++(2M), whose step predicts: the estimate that a step begins with also corrects
the step that led to it, which makes third order of second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from sims.sampling import multistep
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
    """Integrate x (B, *data_shape) from sigmas[0] to 0 with UniPC-2, Algorithms 1 and 2; third order, N evaluations.

    The last step, to 0, is best taken at first order: x = denoised.
    """
    before, levels, estimates = x, sigmas.tolist(), list[Tensor]()  # the last three estimates, the latest last
    for i, (t, t_next) in enumerate(itertools.pairwise(levels)):
        denoised = denoise(x, t)
        on_step(i, t, x, denoised)
        if t_next == 0:
            return denoised
        estimates = [*estimates, denoised][-3:]
        if i > 0:
            x = _corrected(before, levels[max(0, i - 2) : i + 1], estimates)
        before = x
        x = multistep.step(x, levels[max(0, i - 1) : i + 2], estimates[-2:])
    return x


def _corrected(x: Tensor, levels: Sequence[float], estimates: Sequence[Tensor]) -> Tensor:
    """The step from levels[-2] to levels[-1], by the estimates at all of these: UniC-1 (B2) of two, UniC-2 of three.

    UniC-2 is exact where the estimate is a polynomial of second degree in lambda. Estimate i belongs to levels[i].
    """
    t, t_next = levels[-2:]
    h = math.log(t / t_next)
    whole = -math.expm1(-h)  # the integral of e^-(h - tau) over tau from 0 to h
    weights = np.full(2, whole / 2)
    if len(estimates) == 3:
        moments = [whole, h - whole, h**2 - 2 * (h - whole)]  # of tau^0, tau^1, tau^2
        nodes = [math.log(t / level) for level in levels]
        weights = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
    x = (t_next / t) * x
    for weight, estimate in zip(weights.tolist(), estimates):
        x = x + weight * estimate
    return x
