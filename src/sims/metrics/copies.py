"""Are samples copies of training images? Nearest-neighbour distances against those of real held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.intervals import Interval, error_interval, share_interval
from sims.metrics.matrices import Array, as_matrix, distance_blocks, same_width

QUANTILE = 0.01  # of held-out images' distances: what is nearer is suspiciously near


@dataclass(frozen=True)
class Memorization:
    """How much nearer to the training images samples are than real held-out images are.

    share_1: share of samples nearer to a training image than the 1st percentile of held-out images is; a model that
    learned the distribution and copied nothing scores about 0.01.
    median_ratio: the samples' median distance over that of held-out images; well below 1 means copying.
    """

    share_1: float
    median_ratio: float


@dataclass(frozen=True)
class Nearest:
    """Euclidean distance (N,) float64 from each query to its nearest reference, and that reference's index (N,)."""

    distances: Array
    indices: Array


def nearest(
    queries: Array | Tensor, references: Array | Tensor, chunk: int = 4096, device: str | torch.device = "cpu"
) -> Nearest:
    """The nearest of references (M, ...) for each of queries (N, ...), in pixels or in features.

    Rows are flattened and compared as they are: give both in model space (images in [-1, 1]), so that a distance is the
    root of the sum of squared differences over all channels and pixels. At most `chunk` references are held in float64.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1.")
    x = as_matrix(queries, "queries")
    if len(references) == 0:
        raise UserError("There are no reference images; the training set is empty.")
    best, indices = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    for start in range(0, len(references), chunk):
        part = as_matrix(references[start : start + chunk], "references")
        same_width(x, part)
        for rows, distances in distance_blocks(x, part, device=device):
            values, places = (found.cpu().numpy() for found in distances.min(dim=1))
            nearer = values < best[rows]
            indices[rows] = np.where(nearer, places + start, indices[rows])
            best[rows] = np.minimum(best[rows], values)
    return Nearest(best, indices)


def nearest_distances(
    queries: Array | Tensor, references: Array | Tensor, chunk: int = 4096, device: str | torch.device = "cpu"
) -> Array:
    """The distances (N,) of `nearest`.

    >>> import numpy, sims
    >>> sims.metrics.nearest_distances(numpy.array([[0.0, 0.0]]), numpy.array([[3.0, 4.0], [6.0, 8.0]]))
    array([5.])
    """
    return nearest(queries, references, chunk, device).distances


def memorization(sample_distances: Array, test_distances: Array) -> Memorization:
    """Compare distances to the nearest training image of samples (N,) with those of real held-out images (M,).

    Both come from `nearest_distances(..., training images)`. UserError where either is empty.

    >>> import numpy, sims
    >>> found = sims.metrics.memorization(numpy.array([0.0, 1.0, 2.0]), numpy.array([1.0, 2.0, 3.0]))
    >>> round(found.share_1, 2), found.median_ratio  # the first is a copy, and half as far away as is usual
    (0.67, 0.5)
    """
    samples, held_out = np.asarray(sample_distances, np.float64), np.asarray(test_distances, np.float64)
    if samples.size == 0 or held_out.size == 0:
        raise UserError(f"{samples.size} samples and {held_out.size} held-out images; both need at least one.")
    threshold, median = (float(value) for value in np.percentile(held_out, [100 * QUANTILE, 50]))
    ratio = float(np.median(samples)) / median if median > 0 else float("nan")
    return Memorization(float((samples < threshold).mean()), ratio)


@dataclass(frozen=True)
class Copying:
    """What share of samples are copies of training images; two estimates with intervals, and a test.

    share_nearer: share of samples nearer to a training image than to any held-out image (ties count half);
    expected_nearer: what it is without copying, N / (N + M) for N training and M held-out images, because the sample
    then cannot tell them apart; excess_nearer: the share of copies that explains the difference. Images that are near
    to everything (plain, smooth ones) do not disturb it. Its interval counts samples with a common nearest image once.
    share_close: share of samples nearer to a training image than the given quantile of held-out images is;
    excess_close: the share of copies that explains more than that quantile, if samples that are no copies lie as near
    as held-out images. Sharper than excess_nearer for close copies, but plain or smooth samples raise it.
    median_ratio: median over samples of the distance to training images over that to held-out images.
    """

    share_nearer: float
    expected_nearer: float
    excess_nearer: Interval
    share_close: float
    quantile: float
    excess_close: Interval
    median_ratio: float


def _excess_nearer(train: Nearest, held_out: Nearest, expected: float, level: float) -> tuple[float, Interval]:
    """The share of samples nearer to training images, and the excess: p = c + (1 - c) expected, solved for c."""
    share = float(((train.distances < held_out.distances) + 0.5 * (train.distances == held_out.distances)).mean())
    ours = train.distances <= held_out.distances
    owners = np.where(ours, train.indices, -1 - held_out.indices)  # the nearest image of both sets
    _, counts = np.unique(owners, return_counts=True)
    # Which set an image is in decides over all its samples at once: they are worth (sum c)² / sum c² independent ones.
    found = share_interval(share, float(counts.sum() ** 2 / np.square(counts).sum()), level)
    mean, low, high = ((value - expected) / (1 - expected) for value in (found.mean, found.low, found.high))
    return share, Interval(mean, low, high, level, found.num_values)


def copying(
    samples_to_train: Nearest,
    samples_to_held_out: Nearest,
    held_out_to_train: Array,
    num_train: int,
    quantile: float = 0.05,
    level: float = 0.95,
) -> Copying:
    """Find copies among samples (n,): their nearest training and held-out images, and held-out images' distances (M,).

    Training and held-out images must come from one distribution. The estimates can be below zero by chance. UserError
    where a side is empty or the quantile is not between 0 and 1.
    """
    distances, honest = samples_to_train.distances, np.asarray(held_out_to_train, np.float64)
    n, m = len(distances), len(honest)
    if not n or not m or len(samples_to_held_out.distances) != n or num_train < 1:
        raise UserError(
            f"{n} samples against {num_train} training images, {len(samples_to_held_out.distances)} against {m} "
            "held-out images; give the same samples both times, and at least one image of each kind."
        )
    if not 0 < quantile < 1:
        raise UserError(f"Quantile {quantile} must lie between 0 and 1, for example 0.05.")
    expected = num_train / (num_train + m)
    share, nearer = _excess_nearer(samples_to_train, samples_to_held_out, expected, level)
    close = float((distances < np.quantile(honest, quantile)).mean())
    # The threshold is an estimate too: as many held-out images lie below it as samples would by chance.
    error = np.sqrt(close * (1 - close) / n + quantile * (1 - quantile) / m) / (1 - quantile)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = distances / samples_to_held_out.distances
    return Copying(
        share_nearer=share,
        expected_nearer=expected,
        excess_nearer=nearer,
        share_close=close,
        quantile=quantile,
        excess_close=error_interval((close - quantile) / (1 - quantile), float(error), level, n),
        median_ratio=float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else float("nan"),
    )
