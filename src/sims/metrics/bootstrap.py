"""Intervals of figures whose expectation depends on the number of samples, such as the Fréchet distance.

Drawing with replacement repeats samples, which biases such figures; subsampling does not (Politis and Romano 1994).
Here a figure is computed on random subsets of m of the n samples, without replacement. Its spread is rescaled to n
samples by √(m / (n - m)), that is √(m / n) with the correction for subsets that are no small part of the whole
(the delete-d jackknife: Shao and Wu 1989), and laid around the figure of all samples. The subsets' own bias drops out,
because spread is taken around their mean: the interval is one for the expected figure *at n samples*, bias included.
The reference is held fixed. Figures with a standard error of order 1/√n are covered; a distance so near zero that its
first-order term vanishes has a smaller and skewed error, and then the interval is too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.accumulate import moments_of
from sims.metrics.arrays import Array
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.intervals import Interval, error_interval

Statistic = Callable[[Array], float]  # indices (m,) of the samples to use -> the figure


def subsample_interval(
    statistic: Statistic,
    count: int,
    size: int | None = None,
    num_resamples: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of a figure of `count` samples, from subsets of `size` (default: half of them).

    Limits are Student's t with num_resamples - 1 degrees of freedom, so few resamples widen it but keep it honest.
    `statistic` is called once with all indices and num_resamples times with a subset.
    """
    size = count // 2 if size is None else size
    if not 2 <= size < count:
        raise UserError(f"Subsets of {size} of {count} samples; the size must lie between 2 and {count - 1}.")
    if num_resamples < 2:
        raise UserError(f"{num_resamples} resample(s); at least 2 are needed, better 20.")
    rng = np.random.default_rng(seed)
    full = statistic(np.arange(count))
    values = [statistic(np.sort(rng.choice(count, size, replace=False))) for _ in range(num_resamples)]
    error = float(np.std(values, ddof=1)) * np.sqrt(size / (count - size))
    return error_interval(full, error, level, num_resamples, num_resamples - 1)


def frechet_interval(
    features: Array | Tensor,
    reference: Moments,
    size: int | None = None,
    num_resamples: int = 20,
    seed: int = 0,
    level: float = 0.95,
    device: str | torch.device = "cpu",
) -> Interval:
    """The Fréchet distance of features (N, D) to a reference, with its subsampling interval."""

    def distance(indices: Array) -> float:
        return frechet_distance(moments_of(features[indices], device), reference, device=device)

    return subsample_interval(distance, len(features), size, num_resamples, seed, level)


def paired_frechet_interval(
    a: Array | Tensor,
    b: Array | Tensor,
    reference: Moments,
    size: int | None = None,
    num_resamples: int = 20,
    seed: int = 0,
    level: float = 0.95,
    device: str | torch.device = "cpu",
) -> Interval:
    """The difference of Fréchet distances, a minus b, for features (N, D) where a[i] and b[i] come from one seed.

    Both are measured on the same subsets, so what they share through their seeds drops out of the interval.
    """
    if len(a) != len(b):
        raise UserError(f"{len(a)} and {len(b)} samples; a paired difference needs one of each per seed.")

    def difference(indices: Array) -> float:
        left, right = (frechet_distance(moments_of(x[indices], device), reference, device=device) for x in (a, b))
        return left - right

    return subsample_interval(difference, len(a), size, num_resamples, seed, level)
