"""Averages of the weights: exponential with a half-life, or with a power-function profile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sims.errors import UserError
from sims.training.sharding import local

WIDEST = 12**-0.5  # sigma_rel of the plain average of all weights, gamma = 0


def ema_decay(batch: int, seen: int, halflife: float, rampup: float) -> float:
    """Decay factor of one update: half-life min(halflife, rampup * seen) images (Karras et al. 2022, appendix F.2)."""
    effective = min(halflife, rampup * seen) if rampup > 0 else halflife
    return 0.5 ** (batch / max(effective, 1e-8))


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the profile tau^gamma on [0, t] whose standard deviation is sigma_rel t.

    Errors: UserError outside 0 < sigma_rel <= 0.2887, the width of the plain average.
    """
    if not 0 < sigma_rel <= WIDEST * (1 + 1e-12):
        raise UserError(
            f"the relative width of an average is {sigma_rel:g}: choose one above 0 and up to {WIDEST:.4f}, "
            "the plain average of all weights (0.05 and 0.1 are usual)"
        )
    # gamma + 1 = sigma_rel^2 (gamma + 2)^2 (gamma + 3): the cubic's largest root is the one from 0 on
    ratio = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio])
    return max(float(roots.real.max()), 0.0)


def power_decay(before: float, seen: float, gamma: float) -> float:
    """Decay factor of an update at ``seen`` after one at ``before`` (images, or any unit of time; before = 0: none).

    (1 - 1/t)^(gamma + 1) where time counts updates (Karras et al. 2024, section 3.1). Repeated, it gives exactly
    the integral of the profile over weights that are constant between updates.
    """
    return (before / seen) ** (gamma + 1)


@dataclass(frozen=True)
class PowerState:
    """Of power averages: their relative widths, and the images seen at the last update."""

    rel: tuple[float, ...]
    seen: int


class EMA:
    """A running average beside the network; ``average`` is a module of its own, in evaluation mode.

    ``copied`` makes it from the network.
    """

    def __init__(self, network: nn.Module, copied: Callable[[nn.Module], nn.Module] = copy.deepcopy) -> None:
        self.average = copied(network).eval().requires_grad_(False)
        self._ours: list[torch.Tensor] = list(self.average.parameters())
        self._theirs = list(network.parameters())
        self._buffers = list(zip(self.average.buffers(), network.buffers()))

    @property
    def averages(self) -> list[nn.Module]:
        """All that is tracked, ``average`` first."""
        return [self.average]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * network; buffers are copied."""
        torch._foreach_lerp_([local(p) for p in self._ours], [local(p.detach()) for p in self._theirs], 1 - decay)
        for ours, theirs in self._buffers:
            ours.copy_(theirs)

    def held(self) -> PowerState | None:
        """What a saved state must hold besides the weights of the averages."""
        return None

    def restore(self, held: PowerState | None) -> None:
        """Take up what ``held`` gave. Errors: UserError if the state is of another kind of average."""
        if held is not None:
            raise UserError(
                f"the training state holds power averages of widths {list(held.rel)}, and ema is 'halflife': "
                "set ema to 'power', or train in another folder"
            )


class PowerEMA:
    """Averages with power-function profiles of several widths (Karras et al. 2024, section 3.1).

    ``average`` is the first of them. ``seen`` is the time of the last update, in images.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_rel: Sequence[float],
        copied: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    ) -> None:
        self.sigma_rel = tuple(sigma_rel)
        self.gammas = [power_exponent(width) for width in self.sigma_rel]
        self.seen = 0
        self._parts = [EMA(network, copied) for _ in self.sigma_rel]

    @property
    def average(self) -> nn.Module:
        return self._parts[0].average

    @property
    def averages(self) -> list[nn.Module]:
        """All that is tracked, in the order of ``sigma_rel``."""
        return [part.average for part in self._parts]

    def update(self, seen: int) -> None:
        """Take the network's weights in, which it has had since the last update and until ``seen`` images."""
        for gamma, part in zip(self.gammas, self._parts):
            part.update(power_decay(self.seen, seen, gamma))
        self.seen = seen

    def held(self) -> PowerState | None:
        """What a saved state must hold besides the weights of the averages."""
        return PowerState(self.sigma_rel, self.seen)

    def restore(self, held: PowerState | None) -> None:
        """Take up what ``held`` gave. Errors: UserError if the state is of other averages."""
        if held is None or held.rel != self.sigma_rel:
            what = "an average with a half-life" if held is None else f"power averages of widths {list(held.rel)}"
            raise UserError(
                f"the training state holds {what}, and this run tracks widths {list(self.sigma_rel)}: "
                "use the options it was made with, or train in another folder"
            )
        self.seen = held.seen
