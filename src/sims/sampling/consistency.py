"""Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, Algorithm 1): for consistency models.

Each step estimates the clean data and adds fresh noise of the next level to it; one step makes a sample too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sims.sampling.solver import Churn, Denoise, OnStep, RoundSigma, starts

STOCHASTIC = False
RENOISES = True
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
    """From x (B, *data_shape) at sigmas[0] to clean data, by noise that is removed and added; N evaluations."""
    assert step_noise is not None
    for i, (t, t_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        denoised = denoise(x, t)
        on_step(i, t, x, denoised)
        x = denoised + t_next * step_noise() if t_next > 0 else denoised
    return x
