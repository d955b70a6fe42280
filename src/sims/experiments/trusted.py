"""Choosing the strength without clean data: by a few images that are known to be real.

Nobody who has a polluted set has a clean one to measure a Fréchet distance with; a person can look through some dozens
of images. So few have no usable covariance, but the energy distance (Szekely and Rizzo 2013) asks for none: between
samples S of a candidate and trusted images R it is

    2 E|s - r| - E|s - s'| - E|r - r'|,

whose last term is the same for all candidates, and whose first is a mean over the trusted images, one by one. All
candidates use the same noise seeds, so that most of what is random is common to them.

What is left of chance is mostly which kinds of images happen to be among the few. Of these the polluted set knows more:
it is sorted into kinds (k-means), each trusted image counts by how its distances differ from the mean of its kind in
the polluted set, and the kinds have the shares they have there (post-stratification; what pollution does to the shares
is overlooked). The choice is the mean of those made with resampled trusted images (bagging: Breiman 1996).

Features are those that the Fréchet distance is reported in: the best strength depends on them, by a factor of two on
CIFAR-10, so a rule in others looks for another one. Measured on repeat 0 of polluted digits and CIFAR-10 with 100
trusted images, mean of the FD at the strength chosen over the oracle's: 1.04; without kinds 1.20; with the polluted set
itself in the trusted images' place 1.10 at 100 % pollution. In principal components it came within 10 % on the digits
and lost 50 to 70 % on CIFAR-10. The cubic kernel of KID, a Fréchet distance with a shrunk covariance or with few
components, or the weakest strength within one standard error of the best, lost 10 to 80 % on the digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from sims.data.dataset import Dataset
from sims.data.sources import SourceOptions, load
from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix, distance_blocks

LEAST = 10  # trusted images below which no rule can tell strengths apart
MOST = 5_000  # images of the polluted set that are looked at
KINDS = 30
PER_KIND = 10  # images of the polluted set, on average at least
RESAMPLES = 200


def read_trusted(path: str, like: Dataset, source: SourceOptions) -> Dataset:
    """The images of a path, which are known to be real. UserError for too few, or of another shape than the data's."""
    found = load(path, options=source)
    if len(found) < LEAST or (like.codec.kind == "pixels" and found.data_shape != like.data_shape):
        raise UserError(
            f"the trusted images {path} are {len(found):,} of shape {found.data_shape}: give at least {LEAST} of shape "
            f"{like.data_shape}, as {like.name} has them"
        )
    return found


@dataclass(frozen=True)
class Choice:
    """The strength chosen, the energy distance at each (but for a constant), and how often resamples chose it."""

    w: float
    distances: dict[float, float]
    shares: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        distances, shares = ({f"{w:g}": value for w, value in x.items()} for x in (self.distances, self.shares))
        return {"w": self.w, "distances": distances, "shares": shares}


class Candidates:
    """Samples of one model at several strengths, as features; ``training`` are those of the polluted training set.

    features  strength -> (n, D), the same seeds at each strength
    """

    def __init__(self, features: Mapping[float, Array], training: Array) -> None:
        if not features:
            raise UserError("there are no strengths to choose from: give at least one")
        self.strengths = sorted(features)
        self.samples = [as_matrix(features[w], f"features at w = {w:g}", 2) for w in self.strengths]
        self.within = np.array([_mean_distance(x, x).sum() / (len(x) - 1) for x in self.samples])  # without itself
        polluted = as_matrix(training, "features of the training set", 2)
        self.centres, kinds = _kinds(polluted, max(1, min(KINDS, len(polluted) // PER_KIND)))
        self.shares = np.bincount(kinds) / len(kinds)  # (kinds,)
        distances = self.distances(polluted)
        self.means = np.stack([distances[:, kinds == kind].mean(axis=1) for kind in range(len(self.centres))], axis=1)

    def choose(self, trusted: Array, seed: int = 0) -> Choice:
        """The strength that trusted images (n, D) of the same features speak for."""
        return self._choose(self.across(trusted), seed)

    def distances(self, x: Array) -> Array:
        """The mean distance (strengths, n) of each row of x (n, D) to the samples of each strength."""
        return np.stack([_mean_distance(x, samples) for samples in self.samples])

    def across(self, images: Array) -> Array:
        """As ``distances``, but each image's (n, D) less the mean of its kind, plus the mean of all kinds."""
        x = as_matrix(images, "features of trusted images")
        return self.distances(x) - self.means[:, vq(x, self.centres)[0]] + (self.means @ self.shares)[:, None]

    def _choose(self, across: Array, seed: int) -> Choice:
        count = across.shape[1]
        energy = 2 * across.mean(axis=1) - self.within
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
        picked = (2 * across @ weights.T - self.within[:, None]).argmin(axis=0)  # (RESAMPLES,)
        strengths = np.asarray(self.strengths)
        w = self.strengths[int(np.abs(strengths - strengths[picked].mean()).argmin())]
        shares = np.bincount(picked, minlength=len(strengths)) / RESAMPLES
        return Choice(w, dict(zip(self.strengths, energy.tolist())), dict(zip(self.strengths, shares.tolist())))

    def reliability(
        self, pool: Array, sizes: Sequence[int], draws: int, scores: Mapping[float, float], best: float, seed: int
    ) -> dict[str, dict[str, float]]:
        """How good the choice is with random sets of trusted images of each size, drawn from a pool (n, D).

        ``scores`` are the true distances at each strength and ``best`` the oracle's. By size: the mean ratio of the
        score at the strength chosen to the oracle's, its 90th percentile, the share of sets within 10 %, the median w.
        """
        across, generator = self.across(pool), np.random.default_rng(seed)
        found = {}
        for size in sizes:
            chosen = [self._choose(across[:, generator.permutation(len(pool))[:size]], seed).w for _ in range(draws)]
            ratios = np.array([scores[w] / best for w in chosen])
            found[str(size)] = {
                "ratio": float(ratios.mean()),
                "ratio_90": float(np.percentile(ratios, 90)),
                "within_10_percent": float((ratios <= 1.1).mean()),
                "w": float(np.median(chosen)),
            }
        return found


def _kinds(x: Array, count: int) -> tuple[Array, Array]:
    """Centres (kinds, D) of x (n, D), and the kind (n,) of each row; fewer than ``count`` where some are empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an empty kind
        centres, _ = kmeans2(x, count, iter=20, minit="++", seed=0)
    used = np.unique(vq(x, centres)[0])
    return centres[used], vq(x, centres[used])[0]


def _mean_distance(x: Array, y: Array) -> Array:
    """The mean distance (n,) of each row of x (n, D) to the rows of y (m, D)."""
    found = torch.cat([distances.mean(dim=1) for _, distances in distance_blocks(x, y)])
    return found.numpy()
