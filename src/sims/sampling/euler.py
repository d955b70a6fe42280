"""Euler's method, DDIM (Song et al. 2021, arXiv 2010.02502) in EDM's parameterization: for distilled models."""

from __future__ import annotations

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
    """Integrate x (B, *data_shape) from sigmas[0] to 0; first order, N evaluations."""
    for i, (t, t_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        denoised = denoise(x, t)
        on_step(i, t, x, denoised)
        x = denoised + t_next / t * (x - denoised)
    return x
