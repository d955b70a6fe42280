"""The contract everything shares: a denoiser estimates E[x0 | x = x0 + sigma * n, labels].

Legend used throughout the package:

    x        (B, *data_shape) float    noisy data, in model space (images: [-1, 1])
    sigma    (B,) float > 0            noise level, standard deviation of the added Gaussian noise
    sigmas   (N + 1,) float64          noise levels of a sampling run, decreasing, the last one 0
    labels   (B,) int64 or None        class of each sample, -1 = no class
    denoised (B, *data_shape) float    the estimate of the clean data
    w        float                     strength of negative guidance, 0 = the base model
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sims.errors import UserError

Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Precision = Literal["fp32", "bf16", "fp16"]
_HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class Denoiser(Protocol):
    """Anything that denoises: a network with preconditioning, a guided pair, an exact mixture."""

    @property
    def data_shape(self) -> tuple[int, ...]:
        """(C, H, W) for images, (2,) for toys, (R, 2) for R replicas at once."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 = unconditional."""
        ...

    @property
    def sigma_min(self) -> float:
        """The lowest noise level it was trained for."""
        ...

    @property
    def sigma_max(self) -> float:
        """The highest noise level it was trained for."""
        ...

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level this denoiser knows; the identity for continuous models."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean data: x (B, *data_shape), sigma (B,), labels (B,) or None -> like x."""
        ...

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        """An evaluator for one sampling run that visits exactly these noise levels, in this order.

        State along a trajectory (cached guidance) lives in what is returned and nowhere else.
        Stateless denoisers return themselves.
        """
        ...

    def evaluations(self, sigmas: Tensor) -> int:
        """Network evaluations (NFE) per sample that a trajectory over these noise levels costs."""
        ...


class Stateless:
    """Defaults for denoisers without state along a trajectory that cost one evaluation a call."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        return self  # type: ignore[return-value]

    def evaluations(self, sigmas: Tensor) -> int:
        return len(sigmas)


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape sigma (B,) to (B, 1, ..., 1) so that it multiplies x (B, *data_shape)."""
    return sigma.reshape(-1, *([1] * (x.ndim - 1)))


def compile_networks(denoiser: object, graphs: bool = False) -> None:
    """Let torch compile the networks inside a denoiser, in place; an exact one has none. ``graphs``: CUDA graphs."""
    compiler = getattr(denoiser, "compile_networks", None)
    if callable(compiler):
        compiler(graphs)


def half_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """What torch.autocast is to compute in; None for fp32. Errors: UserError for an unknown name, fp16 on a CPU."""
    if precision not in _HALVES:
        raise UserError(f"precision is {precision!r}: it is one of {', '.join(_HALVES)}")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision is 'fp16': it needs a GPU, choose 'bf16' or 'fp32' on a CPU")
    return _HALVES[precision]


def device_of(denoiser: object) -> torch.device:
    """The device a denoiser computes on; the CPU where it has no weights."""
    parameters = getattr(denoiser, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device(getattr(denoiser, "device", "cpu")) if first is None else first.device
