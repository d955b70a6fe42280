"""The options of a LoRA: a low-rank change of a network whose own weights stay as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sims.errors import UserError


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank change of a network's layers, W + alpha / rank B A (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 16
    """Rank of the change of every layer."""
    alpha: float = 16.0
    """What the change is multiplied by, times the rank."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the layers it is laid on; those of attention, as in diffusers' training scripts, if not given."""  # noqa: E501
    dropped: float = 0.1
    """Share of the prompts that are dropped in training, so that the change is learned without a prompt too."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}: give at least 1")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}: give a positive number, such as the rank")
        if not 0 <= self.dropped < 1:
            raise UserError(f"lora.dropped is {self.dropped}: give a share from 0 up to below 1")
