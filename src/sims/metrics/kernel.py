"""Kernel distance: unbiased squared MMD with the cubic polynomial kernel (KID: Binkowski et al. 2018).

k(x, y) = (x·y / D + 1)³ on features as they are. Values are not scaled; some tables print them times 100 or 1000.
Kernels are computed in the type of `working_type`, sums over them in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.metrics.intervals import Interval, error_interval
from sims.metrics.matrices import BLOCK_ELEMENTS, Array, as_matrix, float64_device, same_width, working_type


@dataclass(frozen=True)
class KernelDistance:
    """Squared MMD over all pairs and its standard error over draws of both sets."""

    value: float
    standard_error: float

    def interval(self, level: float = 0.95) -> Interval:
        """The normal interval; for equal distributions the estimate is not normal, and it is approximate."""
        return error_interval(self.value, self.standard_error, level)


@dataclass(frozen=True)
class _Sums:
    """Sums of a kernel matrix (n, m): over each row (n,), over each column (m,), and of its squares."""

    rows: Tensor
    columns: Tensor
    squares: float
    pairs: int

    @property
    def mean(self) -> float:
        return float(self.rows.sum()) / self.pairs

    @property
    def variance(self) -> float:
        return max(0.0, self.squares / self.pairs - self.mean**2)


def _across(a: Tensor, b: Tensor) -> _Sums:
    """The sums of k(x, y) over rows x of a (n, D) and y of b (m, D), in blocks."""
    rows, columns, squares = [], torch.zeros(len(b), dtype=torch.float64, device=a.device), 0.0
    for start in range(0, len(a), _step(b)):
        kernel = _kernel(a[start : start + _step(b)], b)  # (step, m)
        rows.append(kernel.sum(dim=1, dtype=torch.float64))
        columns += kernel.sum(dim=0, dtype=torch.float64)
        squares += float(torch.linalg.vector_norm(kernel, dtype=torch.float64)) ** 2
    return _Sums(torch.cat(rows), columns, squares, len(a) * len(b))


def _step(b: Tensor) -> int:
    """Rows of a block of the kernel matrix with b's columns."""
    return max(1, BLOCK_ELEMENTS // len(b))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """k(x, y) (n, m) of rows x of a (n, D) and y of b (m, D)."""
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)


def _within(a: Tensor) -> _Sums:
    """The sums of k(x_i, x_j) over pairs i != j; the kernel is symmetric, so each pair is computed once."""
    rows, squares = torch.zeros(len(a), dtype=torch.float64, device=a.device), 0.0
    step = _step(a)
    for start in range(0, len(a), step):
        stop = min(start + step, len(a))
        kernel = _kernel(a[start:stop], a[start:])  # (step, N - start)
        kernel.fill_diagonal_(0)
        rest = kernel[:, stop - start :]
        rows[start:stop] += kernel.sum(dim=1, dtype=torch.float64)
        rows[stop:] += rest.sum(dim=0, dtype=torch.float64)
        norms = (float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (kernel, rest))
        squares += sum(norm**2 for norm in norms)
    return _Sums(rows, rows, squares, len(a) * (len(a) - 1))


def _variance(xx: _Sums, yy: _Sums, xy: _Sums) -> float:
    """The variance of the estimate from its Hoeffding decomposition, in which all terms are uncorrelated.

    With g(x) = E k(x, x') - E k(x, y), and s² the variance of what is left of a kernel without its row and column
    means, it is 4 Var g(x) / n + 4 Var g(y) / m + 2 s²_xx / n(n-1) + 2 s²_yy / m(m-1) + 4 s²_xy / nm
    (Serfling 1980, section 5.2; for MMD: Bounliphone et al. 2016, who keep the first two terms; those vanish for equal
    distributions). Each variance is freed of what estimating its row means from a sample adds to it.
    """
    n, m = len(xx.rows), len(yy.rows)

    def left_over(sums: _Sums, count: int) -> float:  # within one set
        means = float((sums.rows / (count - 1)).var())
        return max(0.0, (sums.variance - 2 * means) / (1 - 2 / (count - 1)))

    s_xx, s_yy = left_over(xx, n), left_over(yy, m)
    by_row, by_column = float((xy.rows / m).var()), float((xy.columns / n).var())
    s_xy = max(0.0, (xy.variance - by_row - by_column) / (1 - 1 / n - 1 / m))
    first_x = float((xx.rows / (n - 1) - xy.rows / m).var()) - s_xx / (n - 1) - s_xy / m
    first_y = float((yy.rows / (m - 1) - xy.columns / n).var()) - s_yy / (m - 1) - s_xy / n
    degenerate = 2 * s_xx / (n * (n - 1)) + 2 * s_yy / (m * (m - 1)) + 4 * s_xy / (n * m)
    return 4 * max(0.0, first_x) / n + 4 * max(0.0, first_y) / m + degenerate


def _tensors(a: Array | Tensor, b: Array | Tensor, device: str | torch.device) -> tuple[Tensor, Tensor]:
    x, y = as_matrix(a, "samples' features", 4), as_matrix(b, "reference features", 4)
    same_width(x, y)
    place, kind = float64_device(device), working_type(a, b)
    return torch.from_numpy(x).to(place, kind), torch.from_numpy(y).to(place, kind)


def kernel_distance(a: Array | Tensor, b: Array | Tensor, device: str | torch.device = "cpu") -> KernelDistance:
    """Unbiased squared MMD of features a (N, D) and b (M, D) over all pairs, with its standard error.

    UserError where N or M < 4, below which the standard error cannot be estimated.

    >>> import numpy, sims
    >>> a, b = (numpy.random.default_rng(seed).normal(size=(500, 8)) for seed in (0, 1))
    >>> sims.metrics.kernel_distance(a, b + 1).value > 10 * sims.metrics.kernel_distance(a, b).value
    True
    """
    x, y = _tensors(a, b, device)
    xx, yy, xy = _within(x), _within(y), _across(x, y)
    return KernelDistance(xx.mean + yy.mean - 2 * xy.mean, float(np.sqrt(_variance(xx, yy, xy))))
