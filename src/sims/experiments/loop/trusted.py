"""Choosing the strength without clean data: by a few images that are known to be real.

Nobody who has a polluted set has a clean one to measure a Fréchet distance with; a person can look through some dozens
of images. So few have no usable covariance, but the energy distance (Szekely and Rizzo 2013) asks for none: between
samples S of a candidate and trusted images R it is

    2 E|s - r| - E|s - s'| - E|r - r'|,

whose last term is the same for all candidates, and whose first is a mean over the trusted images, one by one. All
candidates use the same noise seeds, so that most of what is random is common to them.

Distances are taken between features that need nothing clean either: principal components of the polluted training set
(or a classifier trained on its labels), each divided by its standard deviation there, with a tenth of the mean variance
added. The choice is the mean of those made with resampled trusted images (bagging: Breiman 1996), which few images
profit from most. Measured on polluted digits with 100 trusted images, this came within 3 % of the oracle's FD on
average; the cubic kernel of KID, a Fréchet distance with a shrunk covariance or with few components, or the weakest
strength within one standard error of the best, lost 10 to 80 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix, distance_blocks
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor
from sims.metrics.pretrained import FITTED
from sims.training.classifier import train_classifier
from sims.verbs.evaluate import EvaluationOptions

FLOOR = 0.1  # of the mean variance, added to every feature's
RESAMPLES = 200


@dataclass(frozen=True)
class Choice:
    """The strength chosen, the energy distance at each (but for a constant), and how often resamples chose it."""

    w: float
    distances: dict[float, float]
    shares: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        distances, shares = ({f"{w:g}": value for w, value in x.items()} for x in (self.distances, self.shares))
        return {"w": self.w, "distances": distances, "shares": shares}


def rule_extractor(data: Dataset, judge: Extractor, options: EvaluationOptions) -> Extractor:
    """Features from the polluted training set alone; those of the judge where it is a ready-made one.

    A classifier trained on its labels where all of it is labelled, else principal components.
    """
    if options.extractor not in ("auto", *FITTED):
        return judge
    x, labels = data.all()
    if labels is None or options.extractor == "pca" or int(labels.min()) < 0:
        return PCAExtractor.fit(x)
    extractor: ClassifierExtractor = train_classifier(
        x, labels, x[:1], labels[:1], num_classes=data.num_classes, seed=options.extractor_seed
    )[0]
    return extractor


class Candidates:
    """Samples of one model at several strengths, as features; ``training`` are those of the polluted training set.

    features  strength -> (n, D), the same seeds at each strength
    """

    def __init__(self, features: Mapping[float, Array], training: Array) -> None:
        if not features:
            raise UserError("there are no strengths to choose from: give at least one")
        variance = as_matrix(training, "features of the training set", 2).var(axis=0)
        self.scale = np.sqrt(variance + FLOOR * max(float(variance.mean()), 1e-12))
        self.strengths = sorted(features)
        self.samples = [as_matrix(features[w], f"features at w = {w:g}", 2) / self.scale for w in self.strengths]
        self.within = np.array([_mean_distance(x, x).sum() / (len(x) - 1) for x in self.samples])  # without itself

    def choose(self, trusted: Array, seed: int = 0) -> Choice:
        """The strength that trusted images (n, D) of the same features speak for."""
        return self._choose(self.across(trusted), seed)

    def across(self, images: Array) -> Array:
        """The mean distance (strengths, n) of each image (n, D) to the samples of each strength."""
        x = as_matrix(images, "features of trusted images") / self.scale
        return np.stack([_mean_distance(x, samples) for samples in self.samples])

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


def _mean_distance(x: Array, y: Array) -> Array:
    """The mean distance (n,) of each row of x (n, D) to the rows of y (m, D)."""
    found = torch.cat([distances.mean(dim=1) for _, distances in distance_blocks(x, y)])
    return found.numpy()
