"""Are samples copies of training images? Nearest-neighbour distances against those of real held-out images."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix, distance_blocks, same_width


@dataclass(frozen=True)
class Memorization:
    """How much nearer to the training images samples are than real held-out images are.

    share_1, share_5: share of samples nearer to a training image than the 1st (5th) percentile of held-out images is;
    a model that learned the distribution and copied nothing scores about 0.01 (0.05).
    median_ratio: the samples' median distance over that of held-out images; well below 1 means copying.
    threshold_1, threshold_5, median_samples, median_held_out: those distances, in the units of the data.
    """

    share_1: float
    share_5: float
    median_ratio: float
    threshold_1: float
    threshold_5: float
    median_samples: float
    median_held_out: float

    def to_json(self) -> dict[str, float]:
        """The fields as a dictionary that json can write."""
        return asdict(self)


def nearest_distances(queries: Array | Tensor, references: Array | Tensor, chunk: int = 4096) -> Array:
    """Euclidean distance (N,) float64 from each query (N, ...) to the nearest reference (M, ...).

    Rows are flattened and compared as they are: give both in model space (images in [-1, 1]), so that a distance is the
    root of the sum of squared differences over all channels and pixels. At most `chunk` references are held in float64.
    """
    if chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1.")
    x = as_matrix(queries, "queries")
    if len(references) == 0:
        raise UserError("There are no reference images; the training set is empty.")
    nearest = np.full(len(x), np.inf)
    for start in range(0, len(references), chunk):
        part = as_matrix(references[start : start + chunk], "references")
        same_width(x, part)
        for rows, distances in distance_blocks(x, part):
            nearest[rows] = np.minimum(nearest[rows], distances.amin(dim=1).numpy())
    return nearest


def memorization(sample_distances: Array, test_distances: Array) -> Memorization:
    """Compare distances to the nearest training image of samples (N,) with those of real held-out images (M,).

    Both come from `nearest_distances(..., training images)`. UserError where either is empty.
    """
    samples, held_out = np.asarray(sample_distances, np.float64), np.asarray(test_distances, np.float64)
    if samples.size == 0 or held_out.size == 0:
        raise UserError(f"{samples.size} samples and {held_out.size} held-out images; both need at least one.")
    threshold_1, threshold_5, median = (float(v) for v in np.percentile(held_out, [1, 5, 50]))
    median_samples = float(np.median(samples))
    return Memorization(
        share_1=float((samples < threshold_1).mean()),
        share_5=float((samples < threshold_5).mean()),
        median_ratio=median_samples / median if median > 0 else float("nan"),
        threshold_1=threshold_1,
        threshold_5=threshold_5,
        median_samples=median_samples,
        median_held_out=median,
    )
