"""Heun's method with stochastic churn: Karras et al. 2022, Algorithm 2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sims.sampling.solver import Churn, Denoise, OnStep, RoundSigma

STOCHASTIC = True
RENOISES = False


def planned(sigmas: Tensor, churn: Churn, round_sigma: RoundSigma) -> Tensor:
    """Noise levels (2N - 1,) of the evaluations, in order: t_hat of each step, then its end unless that is 0."""
    pairs = torch.stack([churn.levels(sigmas, round_sigma), sigmas[1:]], dim=1).flatten()
    return pairs[pairs > 0]


def solve(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    churn: Churn,
    round_sigma: RoundSigma,
    step_noise: Callable[[], Tensor] | None,
    on_step: OnStep,
) -> Tensor:
    """Integrate x (B, *data_shape) from sigmas[0] to 0; second order, 2N - 1 evaluations.

    step_noise() gives standard normal noise like x; None adds none.
    """
    raised = churn.levels(sigmas, round_sigma)
    for i, (t, t_hat, t_next) in enumerate(zip(sigmas[:-1].tolist(), raised.tolist(), sigmas[1:].tolist())):
        if step_noise is not None:  # drawn at every step, so that s_min and s_max never change what comes later
            noise = step_noise()
            if t_hat > t:
                x = x + (t_hat**2 - t**2) ** 0.5 * churn.s_noise * noise  # line 6

        denoised = denoise(x, t_hat)
        on_step(i, t_hat, x, denoised)
        slope = (x - denoised) / t_hat  # line 7: dx/dt at t_hat
        x_next = x + (t_next - t_hat) * slope  # line 8: Euler step
        if t_next > 0:
            slope_next = (x_next - denoise(x_next, t_next)) / t_next  # line 10
            x_next = x + (t_next - t_hat) * (slope + slope_next) / 2  # line 11: trapezoid
        x = x_next
    return x
