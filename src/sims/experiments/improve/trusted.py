"""Choosing the strength without clean data: by a few images that are known to be real.

Nobody who has a polluted set has a clean one to measure a Fréchet distance with; a person can look through some dozens
of images. So few have no usable covariance, but the energy distance (Szekely and Rizzo 2013) asks for none: between
samples S of a candidate and trusted images R it is

    2 E|s - r| - E|s - s'| - E|r - r'|,

whose last term is the same for all candidates, and whose first is a mean over the trusted images, one by one. All
candidates use the same noise seeds, so that most of what is random is common to them.

Two things that the polluted set knows better than so few images are taken from it:

- *Shares of kinds.* Chance is mostly which kinds of images happen to be among the few. The polluted set is sorted into
  kinds (k-means), and a trusted image counts by how its distances differ from the mean of its kind, the kinds having
  their shares in the polluted set (post-stratification). The more the trusted images' own shares differ from these, by
  a chi-squared statistic, the less of this is done (as James and Stein 1961 shrink): pollution changes shares too.
- *The Fréchet distance.* Its best strength is not quite that of the energy distance, but differs from it as much on the
  polluted set, where both are known: w = w_FD(polluted) + w_energy(trusted) - w_energy(polluted). Where nothing is
  polluted, this is the choice by the Fréchet distance itself.

What trusted images choose is the mean over resampled sets of them (bagging: Breiman 1996).

Features are those that the Fréchet distance is reported in: the best strength depends on them, by a factor of two on
CIFAR-10, so a rule in others looks for another one. FD at the strength chosen over the oracle's, with 100 trusted
images, on digits and CIFAR-10 polluted by 0 to 200 %, mean (and worst level): 1.03 (1.10); without the Fréchet distance
1.05 (1.23), without kinds 1.14 (1.38); by the FD to the polluted set 1.09 (1.43). On a repeat that had no part in
making the rule: digits 1.10 (1.16), CIFAR-10 1.01 (1.03). The kernel of KID and shrunk covariances lost 10 to 80 %.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from sims.data.dataset import Dataset
from sims.data.sources import SourceOptions, load
from sims.errors import UserError
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.matrices import Array, as_matrix, distance_blocks
from sims.results.common import TrustedChoice
from sims.results.loop import Reliability

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
        moments = Moments.of(polluted)
        self.by_data = _lowest(self.strengths, [frechet_distance(Moments.of(x), moments) for x in self.samples])
        self.by_energy = _lowest(self.strengths, 2 * distances.mean(axis=1) - self.within)

    def choose(self, trusted: Array, seed: int = 0) -> TrustedChoice:
        """The strength that trusted images (n, D) of the same features speak for.

        With the energy distance at each (but for a constant), and how often resamples preferred it.
        """
        x = as_matrix(trusted, "features of trusted images")
        return self._choose(self.distances(x), self.kinds(x), seed)

    def distances(self, x: Array) -> Array:
        """The mean distance (strengths, n) of each row of x (n, D) to the samples of each strength."""
        return np.stack([_mean_distance(x, samples) for samples in self.samples])

    def kinds(self, x: Array) -> Array:
        """The kind (n,) of each row of x (n, D)."""
        return vq(x, self.centres)[0]  # type: ignore[no-any-return]

    def corrected(self, distances: Array, kinds: Array) -> Array:
        """Distances (strengths, n) of trusted images, freed of chance among their kinds (n,)."""
        seen = np.bincount(kinds, minlength=len(self.shares)) / len(kinds)
        apart = len(kinds) * float(((seen - self.shares) ** 2 / self.shares).sum())
        trust = min(1.0, (len(self.shares) - 1) / apart) if apart else 1.0
        return distances + trust * ((self.means @ self.shares)[:, None] - self.means[:, kinds])

    def _choose(self, distances: Array, kinds: Array, seed: int) -> TrustedChoice:
        across, count = self.corrected(distances, kinds), len(kinds)
        energy = 2 * across.mean(axis=1) - self.within
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
        picked = (2 * across @ weights.T - self.within[:, None]).argmin(axis=0)  # (RESAMPLES,)
        strengths = np.asarray(self.strengths)
        wanted = self.by_data + strengths[picked].mean() - self.by_energy
        w = self.strengths[int(np.abs(strengths - wanted).argmin())]
        shares = np.bincount(picked, minlength=len(strengths)) / RESAMPLES
        names = [f"{strength:g}" for strength in self.strengths]
        return TrustedChoice(w, dict(zip(names, energy.tolist())), dict(zip(names, shares.tolist())), count)

    def reliability(
        self, pool: Array, sizes: Sequence[int], draws: int, scores: Mapping[float, float], best: float, seed: int
    ) -> list[Reliability]:
        """How good the choice is with random sets of trusted images of each size, drawn from a pool (n, D).

        ``scores`` are the true distances at each strength and ``best`` the oracle's. By size: the mean ratio of the
        score at the strength chosen to the oracle's, its 90th percentile, the share of sets within 10 %, the median w.
        """
        x = as_matrix(pool, "features of trusted images")
        distances, kinds, generator = self.distances(x), self.kinds(x), np.random.default_rng(seed)
        found = []
        for size in sizes:
            sets = [generator.permutation(len(x))[:size] for _ in range(draws)]
            chosen = [self._choose(distances[:, rows], kinds[rows], seed).w for rows in sets]
            ratios = np.array([scores[w] / best for w in chosen])
            found.append(
                Reliability(
                    size=size,
                    ratio=float(ratios.mean()),
                    ratio_90=float(np.percentile(ratios, 90)),
                    within_10_percent=float((ratios <= 1.1).mean()),
                    w=float(np.median(chosen)),
                )
            )
        return found


def _lowest(strengths: Sequence[float], values: Sequence[float] | Array) -> float:
    """Where the parabola through the lowest value and its neighbours is lowest; that strength itself at an end."""
    place = int(np.argmin(values))
    if not 0 < place < len(strengths) - 1:
        return float(strengths[place])
    a, b, _ = np.polyfit(strengths[place - 1 : place + 2], values[place - 1 : place + 2], 2)
    return float(-b / (2 * a)) if a > 0 else float(strengths[place])


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
