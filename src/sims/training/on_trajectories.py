"""Learning from a teacher's trajectories: what it estimates at the states that its own samples come by.

A rule of guidance that remembers has no estimate apart from its trajectory. But sampling without noise along the way is
a flow: the state at a noise level decides what came before and so the estimate, which a network can learn there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sims.denoiser import Denoiser, expand
from sims.metrics.saved import read_tensors, write_tensors

FLOOR = 0.05  # in model space


@dataclass(frozen=True)
class Steps:
    """Some samples' ways: states and estimates (n, L, *data_shape) float16, noise levels (L,), labels (n,) or None."""

    states: np.ndarray
    estimates: np.ndarray
    levels: np.ndarray
    labels: np.ndarray | None = None

    def save(self, file: Path) -> None:
        """Write it to one safetensors file."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        write_tensors(file, arrays, {"kind": "steps"})

    @classmethod
    def load(cls, file: Path) -> Steps:
        """Read what ``save`` wrote."""
        tensors, _ = read_tensors(file)
        return cls(**{name: value.numpy() for name, value in tensors.items()})


class Trajectories:
    """Every step of all samples as training data, in the order of the samples."""

    def __init__(self, parts: Sequence[Steps]) -> None:
        self.parts, self.levels = parts, torch.from_numpy(parts[0].levels)
        self.first = np.cumsum([0, *(len(part.states) for part in parts)])

    def __len__(self) -> int:
        return int(self.first[-1]) * len(self.levels)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        """State and estimate of each step, (B, 2, *data_shape); labels (B, 2): the class, -1 = none, and the level."""
        samples, steps = np.divmod(np.asarray(indices), len(self.levels))
        places = np.searchsorted(self.first, samples, side="right") - 1
        shape = self.parts[0].states.shape[2:]
        packed = torch.empty(len(steps), 2, *shape)
        labels = torch.full((len(steps), 2), -1)
        labels[:, 1] = torch.from_numpy(steps)
        for place in np.unique(places):
            part, here = self.parts[place], np.flatnonzero(places == place)
            rows = samples[here] - self.first[place]
            packed[here, 0] = torch.from_numpy(part.states[rows, steps[here]]).float()
            packed[here, 1] = torch.from_numpy(part.estimates[rows, steps[here]]).float()
            if part.labels is not None:
                labels[here, 0] = torch.from_numpy(part.labels[rows])
        return packed, labels

    def loss(
        self,
        network: nn.Module,
        packed: Tensor,
        labels: Tensor,
        noise: Tensor,
        sigma: Tensor,
        teacher: Denoiser | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """The error of the network's estimate at the teacher's own states, a scalar.

        Noise and levels that training draws play no part: both are the teacher's. The weight is that of training,
        1 / c_out^2, but no more than 1 / FLOOR^2: what a memory adds is large beside c_out at low noise. With a floor
        of 0.02 to 0.1 the students of two teachers came to FD 24 and 16 on the digits, without one to 28 and 17.
        """
        inner: Any = getattr(network, "module", network)
        levels = self.levels.to(packed)[labels[:, 1]]
        classes = labels[:, 0] if inner.num_classes else None
        weight = 1 / (1 / inner.loss_weight(levels) + FLOOR**2)
        error = (network(packed[:, 0], levels, classes).float() - packed[:, 1]) ** 2
        return (expand(weight, error) * error).mean()
