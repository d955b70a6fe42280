"""Fréchet distance between Gaussians fitted to features (Dowson and Landau 1982; FID: Heusel et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D), both float64, of `count` feature vectors."""

    mean: Array
    covariance: Array
    count: int

    @property
    def num_features(self) -> int:
        """The number D of features."""
        return len(self.mean)

    @classmethod
    def of(cls, features: Array | Tensor) -> Moments:
        """The moments of features (N, D); UserError where N < 2 or a value is not finite."""
        x = as_matrix(features, minimum=2)
        mean = x.mean(axis=0)
        centred = x - mean
        return cls(mean, centred.T @ centred / (len(x) - 1), len(x))


def _root(covariance: Array) -> Array:
    """A factor R (D, D) with R R^T = covariance; eigenvalues within rounding of zero count as zero."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    noise = values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > noise, values, 0))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½) of two Gaussians; >= 0.

    With C = R R^T from eigendecompositions, tr (C_a C_b)^½ is the sum of the singular values of R_a^T R_b: no matrix
    square root of a non-symmetric product, hence stable for rank-deficient covariances at any number of samples.
    Exactly zero for equal moments. UserError where the numbers of features differ or a moment is not finite.
    """
    if a.num_features != b.num_features:
        raise UserError(
            f"Moments of {a.num_features} and of {b.num_features} features cannot be compared; "
            "measure both with the same extractor."
        )
    for moments in (a, b):
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.covariance).all()):
            raise UserError("Moments hold NaN or infinity; measure the features again.")
    if np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance):
        return 0.0
    cross = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    shift = np.square(a.mean - b.mean).sum()
    return max(0.0, float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))
