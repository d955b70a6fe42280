"""What every solver is: a plan of noise levels and a pure function of a state; and the churn it may add."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sims.errors import UserError

RoundSigma = Callable[[Tensor], Tensor]
Denoise = Callable[[Tensor, float], Tensor]  # state (B, *data_shape), its noise level -> estimate of x0
OnStep = Callable[[int, float, Tensor, Tensor], None]  # number of the step, its noise level, state, estimate of x0


@dataclass(frozen=True)
class SamplingStep:
    """What a ``callback`` is told at every step, before the state moves on.

    index, num_steps   the step, from 0, and how many there are
    sigma              its noise level, churn included
    x, denoised        the state and the estimate of the clean data, each (B, *data_shape) float32, copies
    first              position of the batch's first sample among the seeds
    """

    index: int
    num_steps: int
    sigma: float
    x: Tensor
    denoised: Tensor
    first: int = 0


@dataclass(frozen=True)
class Churn:
    """How much noise each step adds before removing it again (Karras et al. 2022, Algorithm 2): see SamplerOptions."""

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("s_churn", "s_noise"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} must be finite and at least 0; got {value}")
        if not 0 <= self.s_min <= self.s_max:
            raise UserError(f"churn needs 0 <= s_min <= s_max; got {self.s_min} and {self.s_max}")

    def levels(self, sigmas: Tensor, round_sigma: RoundSigma) -> Tensor:
        """The level t_hat (N,) to which each step first raises the noise, one the denoiser knows (line 5)."""
        starts = sigmas[:-1]
        gamma = min(self.s_churn / len(starts), math.sqrt(2) - 1)
        churned = (self.s_min <= starts) & (starts <= self.s_max) & (gamma > 0)
        raised = round_sigma(starts * (1 + gamma)).to(starts)
        # Rounding must not lower the level: noise can only be added.
        return torch.where(churned, torch.maximum(raised, starts), starts)


def starts(sigmas: Tensor, churn: Churn, round_sigma: RoundSigma) -> Tensor:
    """The plan (N,) of a solver that evaluates once a step, at its start."""
    return sigmas[:-1]


class Solver(Protocol):
    """A module with these two functions and two facts."""

    STOCHASTIC: bool  # whether it takes churn
    RENOISES: bool  # whether every step adds noise

    def planned(self, sigmas: Tensor, churn: Churn, round_sigma: RoundSigma) -> Tensor:
        """Noise levels of the evaluations that solve() will make, in order: (evaluations,) float64."""
        ...

    def solve(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        churn: Churn,
        round_sigma: RoundSigma,
        step_noise: Callable[[], Tensor] | None,
        on_step: OnStep,
    ) -> Tensor:
        """Carry the state x (B, *data_shape) from noise level sigmas[0] to 0; on_step() sees every step's start."""
        ...
