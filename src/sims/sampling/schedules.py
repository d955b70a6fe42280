"""Noise levels of a sampling run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sims.errors import UserError

MOST_STEPS = 100_000


def edm_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels (num_steps + 1,) float64 of Karras et al. 2022, equation 5: decreasing, the last one 0.

    sigma_i = (sigma_max^(1/rho) + i / (num_steps - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.
    Raises UserError for fewer than one step or more than 100,000, levels out of order, or rho that is not positive.

    >>> import sims
    >>> [round(sigma, 3) for sigma in sims.edm_sigmas(4, 0.002, 80.0).tolist()]
    [80.0, 9.723, 0.47, 0.002, 0.0]
    """
    if num_steps != int(num_steps) or not 1 <= num_steps <= MOST_STEPS:
        raise UserError(f"steps must be a whole number, at least 1 and at most {MOST_STEPS:,}; got {num_steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UserError(f"noise levels need 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}")
    if not 0 < rho < math.inf:
        raise UserError(f"rho must be positive and finite; got {rho}")
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    return torch.cat([(start + ramp * (end - start)) ** rho, torch.zeros(1, dtype=torch.float64)])
