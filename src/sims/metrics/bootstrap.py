"""Intervals of figures whose expectation depends on the number of samples, such as the Fréchet distance.

Drawing with replacement repeats samples, which biases such figures; subsampling does not (Politis and Romano 1994).
Here a figure is computed on subsets of m of the n samples, without replacement. Its spread is rescaled to n
samples by √(m / (n - m)), that is √(m / n) with the correction for subsets that are no small part of the whole
(the delete-d jackknife: Shao and Wu 1989), and laid around the figure of all samples. The subsets' own bias drops out,
because spread is taken around their mean: the interval is one for the expected figure *at n samples*, bias included.
The reference is held fixed. Figures with a standard error of order 1/√n are covered; a distance so near zero that its
first-order term vanishes has a smaller and skewed error, and then the interval is too wide rather than too narrow.

Subsets for the Fréchet distance are halves made of blocks: shuffled samples are cut into G blocks, and each subset
takes G/2 of them, chosen by a row of a Hadamard matrix (balanced half-samples: McCarthy 1969). Any two such halves
share G/4 blocks, so what they add to a mean is uncorrelated, as if they had been drawn independently; and all of their
moments are sums over blocks, which takes one pass over the features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.intervals import Interval, error_interval
from sims.metrics.matrices import Array
from sims.metrics.subset_distances import subset_distances

Statistic = Callable[[Array], float]  # indices (m,) of the samples to use -> the figure
BLOCK_ROWS = 2  # samples in a block, at least


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


def balanced_halves(count: int, num_subsets: int) -> Array:
    """Which blocks (num_subsets, G) of ``count`` samples each half-sample takes: bool, G/2 in every row.

    G is the least power of two above num_subsets; fewer blocks and subsets where a block would have below two samples.
    """
    num_blocks = 1 << num_subsets.bit_length()
    while num_blocks > 4 and count < BLOCK_ROWS * num_blocks:
        num_blocks //= 2
    if count < BLOCK_ROWS * num_blocks:
        raise UserError(f"{count} samples are too few for an interval from subsets: give at least {BLOCK_ROWS * 4}.")
    return np.asarray(hadamard(num_blocks)[1 : num_subsets + 1] > 0)  # its first row takes all


def _half_interval(
    distances: Callable[[list[Array], Array], Array], count: int, num_resamples: int, seed: int, level: float
) -> Interval:
    """The interval of a figure that ``distances`` computes for blocks of rows and subsets of these blocks."""
    if num_resamples < 2:
        raise UserError(f"{num_resamples} resample(s); at least 2 are needed, better 20.")
    halves = balanced_halves(count, num_resamples)
    used = count // halves.shape[1] * halves.shape[1]  # in blocks of one size: a figure depends on a subset's number
    order = np.random.default_rng(seed).permutation(count)  # sets are often sorted by class
    blocks = [np.sort(rows) for rows in (*np.split(order[:used], halves.shape[1]), order[used:]) if len(rows)]
    subsets = np.zeros((1 + len(halves), len(blocks)), bool)
    subsets[0], subsets[1:, : halves.shape[1]] = True, halves
    full, *values = distances(blocks, subsets)
    error = float(np.std(values, ddof=1)) * np.sqrt(used / count)  # of `used` samples -> of all
    return error_interval(float(full), float(error), level, len(values), len(values) - 1)


def frechet_interval(
    features: Array | Tensor,
    reference: Moments,
    num_resamples: int = 20,
    seed: int = 0,
    level: float = 0.95,
    device: str | torch.device = "cpu",
) -> Interval:
    """The Fréchet distance of features (N, D) to a reference, with its interval from balanced half-samples."""

    def distances(blocks: list[Array], subsets: Array) -> Array:
        return subset_distances(features, reference, blocks, subsets, device)

    return _half_interval(distances, len(features), num_resamples, seed, level)


def paired_frechet_interval(
    a: Array | Tensor,
    b: Array | Tensor,
    reference: Moments,
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

    def differences(blocks: list[Array], subsets: Array) -> Array:
        left, right = (subset_distances(x, reference, blocks, subsets, device) for x in (a, b))
        return left - right

    return _half_interval(differences, len(a), num_resamples, seed, level)
