"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features.

Each set of features stands for a manifold: the union of balls around its points that reach to their k-th neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix, distance_blocks, same_width


@dataclass(frozen=True)
class Manifold:
    """Precision, recall and coverage lie in [0, 1]; density is >= 0 and 1 in expectation for equal distributions."""

    precision: float
    recall: float
    density: float
    coverage: float


def radii(features: Array, k: int, rows: int | None = None) -> Array:
    """Distance (N,) from each feature vector (N, D) to its k-th nearest neighbour, itself not counted; N > k."""
    features = as_matrix(features)
    if not 1 <= k < len(features):
        raise UserError(f"k = {k} neighbours of {len(features)} samples; k must lie between 1 and N - 1.")
    result = np.empty(len(features))
    for part, distances in distance_blocks(features, features, rows):
        # The point itself is the first neighbour; by index rather than by value, since rounding could move it.
        distances[range(part.stop - part.start), range(part.start, part.stop)] = 0.0
        result[part] = distances.kthvalue(k + 1, dim=1).values.numpy()
    return result


def manifold(
    real: Array | Tensor, samples: Array | Tensor, k: int = 3, k_coverage: int = 5, rows: int | None = None
) -> Manifold:
    """Compare samples' features (M, D) with real ones (N, D): distances in float64, `rows` at a time.

    precision: share of samples within a real ball; recall: share of real points within a sample's ball (both with k);
    density: mean number of real balls around a sample, over k; coverage: share of real balls that hold a sample
    (both with k_coverage). UserError where k is not below N and M.
    """
    x, y = as_matrix(real, "real features", 2), as_matrix(samples, "samples' features", 2)
    same_width(x, y)
    real_radii, sample_radii, wide_radii = radii(x, k, rows), radii(y, k, rows), radii(x, k_coverage, rows)
    inside_real, recalled, covered = np.zeros(len(y), bool), np.zeros(len(x), bool), np.zeros(len(x), bool)
    in_balls = 0
    for part, block in distance_blocks(x, y, rows):
        distances = block.numpy()  # (n, M): real by samples
        inside_real |= (distances < real_radii[part, None]).any(axis=0)
        recalled[part] = (distances < sample_radii[None, :]).any(axis=1)
        within = distances < wide_radii[part, None]
        in_balls += int(within.sum())
        covered[part] = within.any(axis=1)
    return Manifold(
        precision=float(inside_real.mean()),
        recall=float(recalled.mean()),
        density=in_balls / (k_coverage * len(y)),
        coverage=float(covered.mean()),
    )
