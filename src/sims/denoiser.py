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
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

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


class Wrapped:
    """Shape, classes, noise levels, estimate and cost of another denoiser, the one that is ``inside``."""

    @property
    def inside(self) -> Denoiser:
        raise NotImplementedError

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.inside.data_shape)

    @property
    def num_classes(self) -> int:
        return self.inside.num_classes

    @property
    def class_shares(self) -> tuple[float, ...]:
        return class_shares_of(self.inside)

    @property
    def sigma_min(self) -> float:
        return self.inside.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.inside.sigma_max

    @property
    def networks(self) -> list[nn.Module]:
        return networks_of(self.inside)

    @property
    def device(self) -> torch.device:
        return device_of(self.inside)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.inside.round_sigma(sigma)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.inside(x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        return self.inside.trajectory(sigmas)

    def evaluations(self, sigmas: Tensor) -> int:
        return self.inside.evaluations(sigmas)

    def compile_networks(self, graphs: bool = False) -> None:
        compile_networks(self.inside, graphs)


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape sigma (B,) to (B, 1, ..., 1) so that it multiplies x (B, *data_shape)."""
    return sigma.reshape(-1, *([1] * (x.ndim - 1)))


@dataclass(frozen=True, eq=False)
class _Function(Stateless):
    """What as_denoiser makes."""

    function: Callable[..., Tensor]
    data_shape: tuple[int, ...]
    num_classes: int
    sigma_min: float
    sigma_max: float

    @property
    def networks(self) -> list[nn.Module]:
        return networks_of(self.function)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        denoised = self.function(x, sigma) if labels is None else self.function(x, sigma, labels)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            given = tuple(denoised.shape) if isinstance(denoised, Tensor) else f"a {type(denoised).__name__}"
            raise UserError(f"the function gives {given} for {tuple(x.shape)}: it must give a tensor of x's shape")
        return denoised


def as_denoiser(
    function: Callable[..., Tensor],
    data_shape: tuple[int, ...],
    *,
    num_classes: int = 0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Denoiser:
    """A denoiser of any callable D(x, sigma) or D(x, sigma, labels), which gives the estimate of the clean data.

    x (B, *data_shape), sigma (B,), labels (B,) int64, left out where there are none; sampling starts at ``sigma_max``
    and ends its steps at ``sigma_min`` by default. Errors: UserError for levels out of order, and at a call that gives
    another shape than x.

    >>> import sims
    >>> def shrink(x, sigma):  # E[x0 | x] for standard normal data
    ...     return x / (1 + sigma[:, None] ** 2)
    >>> denoiser = sims.as_denoiser(shrink, (2,))
    >>> x, labels = sims.sample_seeds(denoiser, range(4), sims.SamplerOptions(steps=8))
    >>> x.shape
    torch.Size([4, 2])
    """
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"noise levels need 0 < sigma_min < sigma_max; got {sigma_min} and {sigma_max}")
    shape = (data_shape,) if isinstance(data_shape, int) else tuple(data_shape)
    return _Function(function, shape, num_classes, sigma_min, sigma_max)


def class_shares_of(denoiser: object) -> tuple[float, ...]:
    """The classes' shares of what a denoiser was trained on, by which they are drawn; () where it does not know."""
    return tuple(getattr(denoiser, "class_shares", ()))


def networks_of(denoiser: Any) -> list[nn.Module]:
    """The networks inside a denoiser, those of its children too; an exact one has none."""
    return [denoiser] if isinstance(denoiser, nn.Module) else list(getattr(denoiser, "networks", ()))


def weights_of(denoiser: Any) -> list[nn.Parameter]:
    """The weights of all its networks, once each; also those that stay as they are and are another file's."""
    found = [weight for network in networks_of(denoiser) for weight in network.parameters()]
    found += [weight for network in networks_of(denoiser) for weight in getattr(network, "frozen_weights", ())]
    return list({id(weight): weight for weight in found}.values())


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
    weights = (weight for network in networks_of(denoiser) for weight in network.parameters())
    first = next(weights, None)
    return torch.device(getattr(denoiser, "device", "cpu")) if first is None else first.device
