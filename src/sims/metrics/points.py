"""Distances between sets of points, and coverage of known modes: for two-dimensional data and other low dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.matrices import Array, as_matrix, distance_blocks, same_width

MEDIAN_POINTS = 2000  # of the reference, for the median distance
ITERATIONS = 10_000_000


@dataclass(frozen=True)
class ModeCoverage:
    """How many known modes samples reach, and how many samples lie at one.

    hit: number of modes with enough samples within the radius;
    high_quality: share of all samples within the radius of their nearest mode; counts: those samples per mode.
    """

    hit: int
    high_quality: float
    counts: tuple[int, ...]


def _pair(samples: Array | Tensor, reference: Array | Tensor, minimum: int = 1) -> tuple[Array, Array]:
    x, y = as_matrix(samples, "samples", minimum), as_matrix(reference, "reference points", minimum)
    same_width(x, y)
    return x, y


def wasserstein(samples: Array | Tensor, reference: Array | Tensor) -> float:
    """The exact 2-Wasserstein distance of points (N, D) and (M, D), in their own units, by linear programming.

    Memory grows with N M, time about with its power 1.5: some thousand points a side. It does not vanish for equal
    distributions, so compare at equal numbers. UserError where POT is missing or does not converge.
    """
    try:
        import ot
    except ImportError as error:
        raise UserError(
            "The exact Wasserstein distance needs the package POT: pip install 'sims-diffusion[points]'."
        ) from error
    x, y = _pair(samples, reference)
    cost, log = ot.emd2([], [], ot.dist(x, y), numItermax=ITERATIONS, log=True)
    if log["warning"] is not None:
        raise UserError(f"The optimal transport of {len(x)} to {len(y)} points failed: {log['warning']}; use fewer.")
    return float(np.sqrt(max(0.0, cost)))


def _quantile_cost(a: Array, b: Array) -> Array:
    """The squared 2-Wasserstein distance (P,) between columns of a (N, P) and of b (M, P): their quantile functions."""
    a, b = np.sort(a, axis=0), np.sort(b, axis=0)
    n, m = len(a), len(b)
    steps = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # in units of 1 / (n m)
    widths = np.diff(steps, prepend=0) / (n * m)
    rows_a, rows_b = (steps - 1) // m, (steps - 1) // n
    return widths @ np.square(a[rows_a] - b[rows_b])


def sliced_wasserstein(
    samples: Array | Tensor, reference: Array | Tensor, num_projections: int = 128, seed: int = 0
) -> float:
    """Root mean squared 2-Wasserstein distance of points (N, D) and (M, D) projected on lines (Bonneel et al. 2015).

    In two dimensions the directions are evenly spaced over the half circle and the seed is not used; otherwise they
    are uniform on the sphere, drawn with the seed.
    """
    if num_projections < 1:
        raise UserError(f"{num_projections} projections; at least 1 is needed.")
    x, y = _pair(samples, reference)
    if x.shape[1] == 2:
        angles = np.arange(num_projections) * np.pi / num_projections
        directions = np.stack([np.cos(angles), np.sin(angles)])  # (2, P)
    else:
        directions = np.random.default_rng(seed).normal(size=(x.shape[1], num_projections))
        directions /= np.linalg.norm(directions, axis=0)
    return float(np.sqrt(_quantile_cost(x @ directions, y @ directions).mean()))


def median_distance(reference: Array | Tensor) -> float:
    """The median distance between pairs of (at most the first 2,000) reference points (M, D), M >= 2."""
    from scipy.spatial.distance import pdist  # here, because importing it takes time

    found = float(np.median(pdist(as_matrix(reference, "reference points", 2)[:MEDIAN_POINTS])))
    if found <= 0:
        raise UserError("The median distance between reference points is 0: more than half of them coincide.")
    return found


def gaussian_mmd(samples: Array | Tensor, reference: Array | Tensor, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD (Gretton et al. 2012, eq. 3) of points (N, D) and (M, D), N, M >= 2; it can be below zero.

    k(x, y) = exp(-|x - y|² / 2 h²). The bandwidth h is by default the median distance between reference points, not
    between all points, so that every model is measured with the same kernel.
    """
    x, y = _pair(samples, reference, 2)
    width = median_distance(y) if bandwidth is None else bandwidth
    if not width > 0:
        raise UserError(f"Bandwidth {width} must be above 0.")

    def total(a: Array, b: Array) -> float:
        return sum(float(torch.exp(d.square() / (-2 * width**2)).sum()) for _, d in distance_blocks(a, b))

    def within(a: Array) -> float:
        return (total(a, a) - len(a)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def mode_coverage(
    samples: Array | Tensor, centres: Array | Tensor, spread: float | Array, radius: float = 3.0, minimum: int = 1
) -> ModeCoverage:
    """Assign samples (N, D) to the nearest of known modes (K, D) and count those within `radius` times its spread.

    spread: standard deviation of a mode per axis, one number or (K,); distances are measured in it, for "nearest" too.
    A mode is hit by `minimum` samples. Radius 3 is that of Srivastava et al. 2017 (VEEGAN).
    """
    x, modes = _pair(samples, centres)
    scale = np.broadcast_to(np.asarray(spread, np.float64), len(modes))
    if not (scale > 0).all() or not radius > 0 or minimum < 1:
        raise UserError(f"Spread {spread}, radius {radius} and minimum {minimum} must be above 0.")
    counts = np.zeros(len(modes), np.int64)
    for _, distances in distance_blocks(x, modes):
        least, owner = (distances / torch.from_numpy(scale.copy())).min(dim=1)
        counts += np.bincount(owner[least <= radius].numpy(), minlength=len(modes))
    hit = int((counts >= minimum).sum())
    return ModeCoverage(hit, float(counts.sum() / len(x)), tuple(int(c) for c in counts))
