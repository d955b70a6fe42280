"""Random numbers and data order of training, keyed by (seed, global sample index) and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_BLOCK = 256  # samples that share one counter-based generator
_AUGMENT = 2**62  # where the keys of the augmentation begin, beyond those of the noise
_ORDER = 2**63  # where the keys of the data order begin, beyond those of the augmentation


class TrainingNoise:
    """Noise for the training samples start ... start + count - 1 of the whole run.

    Sample i gets the same numbers whatever the batch size, the number of processes or an interruption:
    block i // 256 has a Philox generator of its own with the key (seed, block).
    """

    def __init__(self, seed: int, data_shape: tuple[int, ...]) -> None:
        self.seed = seed
        self.data_shape = data_shape
        self.width = math.prod(data_shape) + 1

    def draw(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Standard normal noise (count, *data_shape) and the normal variate of ln(sigma), (count,), float32."""
        chosen = torch.from_numpy(_rows(self._block, start, count))  # (count, width)
        return chosen[:, 1:].reshape(count, *self.data_shape), chosen[:, 0]

    def _block(self, block: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, block]))
        return generator.standard_normal((_BLOCK, self.width), dtype=np.float32)


class AugmentNoise:
    """Random numbers of the augmentation, keyed like the training noise and independent of it."""

    def __init__(self, seed: int, uniforms: int, normals: int) -> None:
        self.seed = seed
        self.uniforms = uniforms
        self.normals = normals

    def draw(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For samples start ... start + count - 1: numbers in [0, 1) (count, uniforms), normals (count, normals)."""
        rows = _rows(self._block, start, count)
        return rows[:, : self.uniforms], rows[:, self.uniforms :]

    def _block(self, block: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, _AUGMENT + block]))
        return np.hstack([generator.random((_BLOCK, self.uniforms)), generator.standard_normal((_BLOCK, self.normals))])


def _rows(make: Callable[[int], np.ndarray], start: int, count: int) -> np.ndarray:
    """Rows start ... start + count - 1 of the blocks that ``make`` gives."""
    first, last = start // _BLOCK, (start + count - 1) // _BLOCK
    blocks = [make(block) for block in range(first, last + 1)]
    numbers = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    offset = start - first * _BLOCK
    return numbers[offset : offset + count]


class DataOrder:
    """Which image is seen at each position of the run: a fresh permutation an epoch, a function of the position."""

    def __init__(self, seed: int, size: int) -> None:
        self.seed = seed
        self.size = size
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def indices(self, start: int, count: int) -> np.ndarray:
        """Image indices (count,) for the positions start ... start + count - 1."""
        positions = np.arange(start, start + count)
        epochs, within = positions // self.size, positions % self.size
        if epochs[0] == epochs[-1]:
            return self._of(int(epochs[0]))[within]
        chosen = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self._of(int(epoch))[within[here]]
        return chosen

    def _of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, _ORDER + epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self.size)
        return self._permutation
