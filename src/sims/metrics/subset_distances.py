"""Fréchet distances of many subsets of one set of features to one reference, in one pass over the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments, covariance_root
from sims.metrics.matrices import Array, as_matrix, float64_device

HELD = 1 << 27  # float64 numbers of subsets' scatters held at once: 1 GiB


def subset_distances(
    features: Array | Tensor,
    reference: Moments,
    blocks: Sequence[Array],
    subsets: Array,
    device: str | torch.device = "cpu",
) -> Array:
    """The squared Fréchet distance (S,) of each subset of features (N, D) to the reference.

    A subset is a union of blocks: ``blocks`` are G disjoint lists of rows, ``subsets`` (S, G) bool says which it takes.
    With C_r = R R^T factored once, tr (C_s C_r)^½ is the sum of the roots of the eigenvalues of R^T C_s R, which are
    sums over blocks, or of the Gram matrix of the subset's rows of X R where these are fewer. Squaring costs half of
    the digits (frechet_distance costs none): enough for intervals and lines through several distances. UserError
    where widths differ, a subset has less than two rows or a value is not finite.
    """
    if features.shape[1] != reference.num_features:
        raise UserError(
            f"Features of {features.shape[1]} numbers and moments of {reference.num_features} cannot be compared; "
            "measure both with the same extractor."
        )
    counts = np.array([len(rows) for rows in blocks])
    sizes = subsets @ counts  # (S,)
    if sizes.min() < 2:
        raise UserError(f"A subset of {sizes.min()} samples; at least 2 are needed: use more samples.")
    place = float64_device(device)
    root = torch.from_numpy(covariance_root(reference.covariance)).to(place)  # (D, r)
    centre = torch.from_numpy(reference.mean).to(place)
    sums, squares = np.empty((len(blocks), len(reference.mean))), np.empty(len(blocks))

    def projected(index: int) -> Tensor:
        """Rows of one block (n, r), seen from the reference's mean and times R; notes their sum and squares."""
        x = torch.from_numpy(as_matrix(features[blocks[index]])).to(place) - centre
        sums[index], squares[index] = x.sum(dim=0).cpu().numpy(), float(x.square().sum())
        return x @ root

    if sizes.max() <= root.shape[1]:
        cross = _by_rows([projected(index) for index in range(len(blocks))], subsets)
    else:
        cross = _by_scatters(projected, counts, subsets, root.shape[1], place)
    shifts = subsets @ sums / sizes[:, None]  # (S, D)
    shift = np.square(shifts).sum(axis=1)
    trace = (subsets @ squares - sizes * shift) / (sizes - 1)
    return np.maximum(0.0, shift + trace + np.trace(reference.covariance) - 2 * cross)


def _root_sum(gram: Tensor, size: int) -> float:
    """The sum of the roots of a semidefinite matrix's eigenvalues over size - 1; rounding below zero counts as zero."""
    if not len(gram):
        return 0.0
    values = torch.linalg.eigvalsh(gram)
    noise = values[-1] * len(values) * torch.finfo(torch.float64).eps
    return float(torch.where(values > noise, values, 0.0).sqrt().sum()) / (size - 1) ** 0.5


def _by_rows(rows: list[Tensor], subsets: Array) -> Array:
    """tr (C_s C_r)^½ (S,) from the Gram matrix of all rows (n, r) of X R, for subsets of at most r rows."""
    y = torch.cat(rows)
    owner = np.repeat(np.arange(len(rows)), [len(part) for part in rows])  # (N,) block of each row
    gram = y @ y.T  # (N, N)
    result = []
    for subset in subsets:
        chosen = torch.from_numpy(np.flatnonzero(subset[owner])).to(gram.device)
        part = gram[chosen][:, chosen]
        part = part - part.mean(dim=0)
        result.append(_root_sum(part - part.mean(dim=1, keepdim=True), len(chosen)))
    return np.array(result)


def _by_scatters(
    projected: Callable[[int], Tensor], counts: Array, subsets: Array, rank: int, place: torch.device
) -> Array:
    """tr (C_s C_r)^½ (S,) from sums of the blocks' scatters of X R, for as many subsets at once as memory allows."""
    at_once, sizes, result = max(1, HELD // max(1, rank**2)), subsets @ counts, []
    for start in range(0, len(subsets), at_once):
        chosen = subsets[start : start + at_once]
        scatters = torch.zeros(len(chosen), rank, rank, dtype=torch.float64, device=place)
        totals = torch.zeros(len(chosen), rank, dtype=torch.float64, device=place)
        for index in range(len(counts)):
            y = projected(index)
            scatter, total = y.T @ y, y.sum(dim=0)
            for row in np.flatnonzero(chosen[:, index]).tolist():
                scatters[row] += scatter
                totals[row] += total
        for scatter, total, size in zip(scatters, totals, sizes[start : start + at_once].tolist()):
            result.append(_root_sum(scatter.addr_(total, total, alpha=-1 / size), size))
    return np.array(result)
