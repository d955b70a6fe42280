"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features.

Each set of features stands for a manifold: the union of balls around its points that reach to their k-th neighbour.
Kynkäänniemi et al. use k = 3 for precision and recall; Naeem et al. use k = 5 for all four, as the prdc package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.matrices import Array, as_matrix, distance_blocks, same_width, working_type


@dataclass(frozen=True)
class Manifold:
    """Precision, recall and coverage lie in [0, 1]; density is >= 0 and 1 in expectation for equal distributions."""

    precision: float
    recall: float
    density: float
    coverage: float


def radii_at(
    features: Array | Tensor, ks: Sequence[int], rows: int | None = None, device: str | torch.device = "cpu"
) -> Array:
    """Distances (len(ks), N) from each feature vector (N, D) to its k-th nearest neighbours, itself not counted.

    UserError unless every k lies between 1 and N - 1.
    """
    x = as_matrix(features)
    for k in ks:
        if not 1 <= k < len(x):
            raise UserError(f"k = {k} neighbours of {len(x)} samples; k must lie between 1 and N - 1.")
    result = np.empty((len(ks), len(x)))
    for part, distances in distance_blocks(x, x, rows, device, working_type(features)):
        # The point itself is the first neighbour; by index rather than by value, since rounding could move it.
        distances[range(part.stop - part.start), range(part.start, part.stop)] = 0.0
        nearest = distances.topk(max(ks) + 1, dim=1, largest=False, sorted=True).values  # (n, max(ks) + 1)
        result[:, part] = nearest[:, list(ks)].T.cpu().numpy()
    return result


def manifolds(
    real: Array | Tensor,
    samples: Array | Tensor,
    ks: Sequence[int] = (3, 5),
    rows: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[int, Manifold]:
    """Compare samples' features (M, D) with real ones (N, D) for every k, `rows` of the distances at a time.

    Distances of wide float32 features are computed in float32 (see `working_type`): whether one lies within a radius is
    then up to rounding where the two differ by about a millionth.

    precision: share of samples within a real ball; recall: share of real points within a sample's ball;
    density: mean number of real balls around a sample, over k; coverage: share of real balls that hold a sample.
    UserError where a k is not below N and M.
    """
    x, y = as_matrix(real, "real features", 2), as_matrix(samples, "samples' features", 2)
    same_width(x, y)
    kind = working_type(real, samples)
    # (K, N) and (K, M), in the type of the distances that they are compared with
    real_radii, sample_radii = (torch.from_numpy(radii_at(z, ks, rows, device)).to(kind) for z in (real, samples))
    inside = torch.zeros(len(ks), len(y), dtype=torch.int64)  # real balls around each sample
    recalled, covered = (torch.zeros(len(ks), len(x), dtype=torch.bool) for _ in range(2))
    for part, distances in distance_blocks(x, y, rows, device, kind):  # (n, M): real by samples
        for index in range(len(ks)):
            within = distances < real_radii[index, part, None].to(distances.device)
            inside[index] += within.sum(dim=0).cpu()
            covered[index, part] = within.any(dim=1).cpu()
            recalled[index, part] = (distances < sample_radii[index].to(distances.device)).any(dim=1).cpu()
    return {
        k: Manifold(
            precision=float((inside[index] > 0).double().mean()),
            recall=float(recalled[index].double().mean()),
            density=int(inside[index].sum()) / (k * len(y)),
            coverage=float(covered[index].double().mean()),
        )
        for index, k in enumerate(ks)
    }


def manifold(
    real: Array | Tensor,
    samples: Array | Tensor,
    k: int = 3,
    k_coverage: int = 5,
    rows: int | None = None,
    device: str | torch.device = "cpu",
) -> Manifold:
    """Precision and recall with k neighbours, density and coverage with k_coverage: each as its paper has it.

    >>> import numpy, sims
    >>> a, b = (numpy.random.default_rng(seed).normal(size=(500, 2)) for seed in (0, 1))
    >>> found = sims.metrics.manifold(real=a, samples=b / 2)  # samples that lie well, and not everywhere
    >>> found.precision > 0.9 > found.recall
    True
    """
    found = manifolds(real, samples, (k, k_coverage), rows, device)
    pair, cover = found[k], found[k_coverage]
    return Manifold(pair.precision, pair.recall, cover.density, cover.coverage)
