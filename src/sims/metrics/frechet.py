"""Fréchet distance between Gaussians fitted to features (Dowson and Landau 1982; FID: Heusel et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack, svdvals
from torch import Tensor

from sims.errors import UserError
from sims.metrics.matrices import Array, as_matrix, float64_device

POLAR_STEPS = 90  # 1.5^90 = 7e15: singular values down to 1e-14 of the largest count in full


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D), both float64, of `count` feature vectors (0: unknown).

    >>> import numpy, sims
    >>> sims.metrics.Moments.of(numpy.eye(3)).mean.round(2)
    array([0.33, 0.33, 0.33])
    """

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


Given = Moments | Array | Tensor


def _moments(given: Given, extractor: str | Callable[[Tensor], Tensor] | None) -> Moments:
    if isinstance(given, Moments):
        return given
    if extractor is not None:
        from sims.metrics.pretrained import features  # which stands on this module

        given = features(given, extractor)
    return Moments.of(given)


def _eigenroot(covariance: Array) -> Array:
    """A factor R (D, D) with R R^T = covariance, where eigenvalues below rounding and below zero count as zero."""
    values, vectors = np.linalg.eigh(covariance, UPLO="U")
    noise = values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors * np.sqrt(np.where(values > noise, values, 0))


def covariance_root(covariance: Array) -> Array:
    """A factor R (D, r) with R R^T = covariance (D, D), r its numerical rank: Cholesky with pivots (Higham 1990).

    It reads the upper triangle, and stops where what is left of the diagonal is rounding, so that noise does not enter
    as directions of its own. The eigendecomposition, ten times slower, takes over where the matrix is not positive
    semidefinite to that precision (for example because it was stored as float32).
    """
    diagonal = covariance.diagonal()
    size, largest = len(diagonal), float(diagonal.max())
    if largest <= 0:
        return _eigenroot(covariance)
    tolerance = (size + 64) * np.finfo(np.float64).eps * largest
    lower, pivots, rank, _ = lapack.dpstrf(covariance.T, lower=1, tol=tolerance)  # .T: LAPACK's order
    root = np.empty((size, rank))
    root[pivots - 1] = np.tril(lower[:, :rank])
    rest = diagonal - np.square(root).sum(axis=1)  # of a semidefinite matrix: between zero and the tolerance
    return root if np.abs(rest).max() <= 2 * tolerance else _eigenroot(covariance)


def polar_nuclear_norm(matrix: Tensor) -> Tensor:
    """The sum of the singular values of a matrix (r, s) by matrix products alone, as graphics cards like it.

    It is tr(U^T M) with the polar factor U of M; the Newton-Schulz iteration U <- U (3 I - U^T U) / 2 (Higham 2008,
    eq. 8.20) takes every singular value to 1 from below, so an error can only come from those near rounding.
    """
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    norm = torch.linalg.matrix_norm(matrix)
    factor = matrix / torch.where(norm > 0, norm, 1.0)
    for _ in range(POLAR_STEPS):
        factor = torch.addmm(factor, factor, factor.T @ factor, beta=1.5, alpha=-0.5)
    return (factor * matrix).sum()


def _nuclear_norm(left: Array, right: Array, device: str | torch.device) -> float:
    """The sum of the singular values of left^T right for left (D, r) and right (D, s)."""
    place = float64_device(device)
    if place.type == "cpu":
        if not (left.size and right.size):
            return 0.0
        product = (right.T @ left).T  # in LAPACK's order: no copy of it is needed
        return float(svdvals(product, overwrite_a=True, check_finite=False).sum())
    return float(polar_nuclear_norm(torch.from_numpy(left).to(place).T @ torch.from_numpy(right).to(place)))


def frechet_distance(
    a: Given, b: Given, *, extractor: str | Callable[[Tensor], Tensor] | None = None, device: str | torch.device = "cpu"
) -> float:
    """The squared 2-Wasserstein distance |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½) of two Gaussians; >= 0.

    Of moments, of features (N, D), or, with an ``extractor`` (see `get_extractor`), of images (N, C, H, W) in [-1, 1].
    With C = R R^T for any factor R, tr (C_a C_b)^½ is the sum of the singular values of R_a^T R_b: no matrix square
    root of a non-symmetric product, hence stable for rank-deficient covariances at any number of samples.
    Exactly zero for equal moments. UserError where the numbers of features differ or a moment is not finite.

    >>> import numpy, sims
    >>> a, b = (numpy.random.default_rng(seed).normal(size=(500, 8)) for seed in (0, 1))
    >>> round(sims.metrics.frechet_distance(a, b + 1), 1)
    8.1
    """
    a, b = (_moments(given, extractor) for given in (a, b))
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
    cross = _nuclear_norm(covariance_root(a.covariance), covariance_root(b.covariance), device)
    shift = np.square(a.mean - b.mean).sum()
    return max(0.0, float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))
