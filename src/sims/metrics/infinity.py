"""Fréchet distance extrapolated to infinitely many samples (Chong and Forsyth 2020).

The Fréchet distance of n samples exceeds its limit by about c / n with a c of the model's own, so two models can swap
places as n changes. A straight line in 1/n, carried on to zero, gives a figure that does not depend on n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.intervals import Interval, error_interval
from sims.metrics.matrices import Array
from sims.metrics.subset_distances import subset_distances

PARTS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class FrechetInfinity:
    """The intercept of the line with its interval, its slope in 1/n, and the points (sizes, values) it runs through."""

    intercept: Interval
    slope: float
    sizes: tuple[float, ...]
    values: tuple[float, ...]


def frechet_infinity(
    features: Array | Tensor,
    reference: Moments,
    parts: Sequence[int] = PARTS,
    seed: int = 0,
    level: float = 0.95,
    device: str | torch.device = "cpu",
) -> FrechetInfinity:
    """FD of features (N, D) to a reference, extrapolated in 1/n from N/1, N/2, ... N/5 samples, evenly spaced in 1/n.

    At each size the shuffled samples are cut into that many disjoint parts and the distances averaged, so every point
    has seen all samples and their common error does not tilt the line (the paper draws one subset per size). The error
    of the intercept is that of a mean over the smallest parts, which are independent: Student's t with one degree less
    than there are parts. Only the samples' bias is removed: the reference keeps that of its own number. Smallest parts
    below some times D samples bend the line. UserError below two sizes or two samples per part.

    >>> import numpy, sims
    >>> a, b = (numpy.random.default_rng(seed).normal(size=(5000, 4)) for seed in (0, 1))
    >>> sims.metrics.frechet_infinity(a, sims.metrics.Moments.of(b)).intercept.mean < 0.01
    True
    """
    counts = sorted(set(parts))
    if len(counts) < 2 or counts[0] < 1:
        raise UserError(f"Parts {tuple(parts)}; give at least two different numbers of parts, for example 1, 2, 3.")
    if len(features) < 2 * counts[-1]:
        raise UserError(f"{len(features)} samples in {counts[-1]} parts; at least 2 per part are needed.")
    order = np.random.default_rng(seed).permutation(len(features))
    pieces = [(count, piece) for count in counts for piece in np.array_split(np.arange(len(order)), count)]
    cuts = sorted({int(piece[0]) for _, piece in pieces})  # every piece is a run of the segments between them
    segments = [np.sort(rows) for rows in np.split(order, cuts[1:])]
    takes = np.array([[piece[0] <= cut <= piece[-1] for cut in cuts] for _, piece in pieces])
    every = subset_distances(features, reference, segments, takes, device)
    inverse, means, values = [], [], np.empty(0)
    for count in counts:
        mine = [index for index, (of, _) in enumerate(pieces) if of == count]
        values = every[mine]
        inverse.append(float(np.mean([1 / len(pieces[index][1]) for index in mine])))
        means.append(float(values.mean()))
    slope, intercept = np.polyfit(inverse, means, 1)
    error = float(values.std(ddof=1)) / np.sqrt(counts[-1])
    interval = error_interval(float(intercept), error, level, counts[-1], counts[-1] - 1)
    return FrechetInfinity(interval, float(slope), tuple(1 / value for value in inverse), tuple(means))
