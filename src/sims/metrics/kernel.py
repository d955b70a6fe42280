"""Kernel distance: unbiased squared MMD with the cubic polynomial kernel (KID: Binkowski et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.arrays import BLOCK_ELEMENTS, Array, as_matrix, same_width


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared MMD (can be below zero), and its standard error estimated from disjoint blocks."""

    value: float
    standard_error: float
    num_blocks: int


def _kernel_sum(a: Array, b: Array) -> float:
    """The sum of k(x, y) = (x·y / D + 1)³ over all rows x of a (N, D) and y of b (M, D)."""
    right = torch.from_numpy(b)
    rows = max(1, BLOCK_ELEMENTS // len(b))
    total = 0.0
    for start in range(0, len(a), rows):
        inner = torch.from_numpy(a[start : start + rows]) @ right.T  # (n, M)
        total += float((inner / a.shape[1] + 1).pow_(3).sum())
    return total


def _within(a: Array) -> float:
    """The mean of k(x_i, x_j) over pairs i != j."""
    diagonal = np.power(np.square(a).sum(axis=1) / a.shape[1] + 1, 3).sum()
    return float((_kernel_sum(a, a) - diagonal) / (len(a) * (len(a) - 1)))


def mmd_squared(a: Array | Tensor, b: Array | Tensor) -> float:
    """Unbiased squared MMD of features a (N, D) and b (M, D) over all pairs; memory is bounded, N and M >= 2."""
    x, y = as_matrix(a, "samples' features", 2), as_matrix(b, "reference features", 2)
    same_width(x, y)
    return _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def kernel_distance(a: Array | Tensor, b: Array | Tensor, num_blocks: int = 10, seed: int = 0) -> KernelDistance:
    """KID between features a (N, D) and b (M, D): the estimate from all pairs, without subsets (Binkowski 2018, eq. 4).

    The standard error is that of the mean of estimates from disjoint blocks (a shuffled split by `seed`) of both sides;
    it slightly overstates that of the full estimate. UserError where N or M < 4.
    """
    x, y = as_matrix(a, "samples' features", 4), as_matrix(b, "reference features", 4)
    same_width(x, y)
    if num_blocks < 2:
        raise UserError(f"num_blocks is {num_blocks}; a standard error needs at least 2 blocks.")
    num_blocks = min(num_blocks, len(x) // 2, len(y) // 2)
    order = np.random.default_rng(seed)
    left = np.array_split(order.permutation(len(x)), num_blocks)
    right = np.array_split(order.permutation(len(y)), num_blocks)
    blocks = [mmd_squared(x[i], y[j]) for i, j in zip(left, right)]
    return KernelDistance(mmd_squared(x, y), float(np.std(blocks, ddof=1) / np.sqrt(num_blocks)), num_blocks)
