"""Kernel distance: unbiased squared MMD with the cubic polynomial kernel (KID: Binkowski et al. 2018)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sims.metrics.arrays import BLOCK_ELEMENTS, Array, as_matrix, same_width


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
    """Unbiased squared MMD of features a (N, D) and b (M, D) over all pairs, without subsets (Binkowski 2018, eq. 4).

    It can be below zero; memory is bounded. UserError where N or M < 2.
    """
    x, y = as_matrix(a, "samples' features", 2), as_matrix(b, "reference features", 2)
    same_width(x, y)
    return _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))
