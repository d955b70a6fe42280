"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_decay(batch: int, seen: int, halflife: float, rampup: float) -> float:
    """Decay factor of one update: half-life min(halflife, rampup * seen) images (Karras et al. 2022, appendix F.2)."""
    effective = min(halflife, rampup * seen) if rampup > 0 else halflife
    return 0.5 ** (batch / max(effective, 1e-8))


class EMA:
    """A running average beside the network; ``average`` is a module of its own, in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self._ours: list[torch.Tensor] = list(self.average.parameters())
        self._theirs = list(network.parameters())
        self._buffers = list(zip(self.average.buffers(), network.buffers()))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * network; buffers are copied."""
        torch._foreach_lerp_(self._ours, [p.detach() for p in self._theirs], 1 - decay)
        for ours, theirs in self._buffers:
            ours.copy_(theirs)
