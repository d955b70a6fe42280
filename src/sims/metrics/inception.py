"""Inception Score and its like: how sure and how varied a classifier's answers are (Salimans et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy
from torch import Tensor

from sims.errors import UserError
from sims.metrics.matrices import Array, as_matrix

SUM_TOLERANCE = 1e-2  # of a row of probabilities, which half precision may have rounded


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (divided by the number) of the score over splits; each lies in [1, K]."""

    mean: float
    std: float
    num_splits: int


class InceptionAccumulator:
    """The score of class probabilities that stream by: per split their sum and the entropy of the answers, in float64.

    `splits` (N,) says to which split the i-th sample belongs; memory does not grow with the number of classes times N.
    """

    def __init__(self, splits: Array) -> None:
        self.splits, self.seen = splits, 0
        self.num_splits = int(splits.max()) + 1
        self.entropies = np.zeros(self.num_splits)
        self.sums: Array | None = None  # (num_splits, K)

    def update(self, probabilities: Array | Tensor) -> None:
        """Add the next rows (n, K); UserError where they are no probabilities."""
        p = as_matrix(probabilities, "class probabilities")
        sums = p.sum(axis=1)
        if (p < 0).any() or np.abs(sums - 1).max() > SUM_TOLERANCE:
            raise UserError(
                f"Rows of class probabilities sum to {sums.min():.4g} up to {sums.max():.4g} with least entry "
                f"{p.min():.4g}; they must be at least 0 and sum to 1: apply a softmax to logits first."
            )
        p = p / sums[:, None]
        belongs = np.equal.outer(np.arange(self.num_splits), self.splits[self.seen : self.seen + len(p)]).astype(float)
        self.sums = belongs @ p + (0 if self.sums is None else self.sums)
        self.entropies -= belongs @ xlogy(p, p).sum(axis=1)
        self.seen += len(p)

    def score(self) -> InceptionScore:
        """The score of all that was added, which must be as many rows as there are entries of `splits`."""
        assert self.sums is not None and self.seen == len(self.splits)
        counts = np.bincount(self.splits)
        mean = self.sums / counts[:, None]
        scores = np.exp(-xlogy(mean, mean).sum(axis=1) - self.entropies / counts)
        return InceptionScore(float(scores.mean()), float(scores.std()), self.num_splits)


def consecutive_splits(count: int, num_splits: int) -> Array:
    """The split (count,) of each sample, where splits follow one another; UserError where count < num_splits."""
    if not 1 <= num_splits <= count:
        raise UserError(f"{num_splits} splits of {count} samples; give between 1 and {count}.")
    return np.repeat(np.arange(num_splits), [len(part) for part in np.array_split(np.arange(count), num_splits)])


def inception_score(probabilities: Array | Tensor, num_splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))) of class probabilities (N, K), over consecutive splits of the samples as they come.

    p(y) is the mean within a split, so the score grows with the samples per split: compare it at equal numbers only.
    Sums and logarithms in float64. UserError where N < num_splits or rows are no probabilities.

    >>> import numpy, sims
    >>> round(sims.metrics.inception_score(numpy.eye(4)[[0, 1, 2, 3] * 5], num_splits=5).mean, 6)
    4.0
    """
    accumulator = InceptionAccumulator(consecutive_splits(len(probabilities), num_splits))
    accumulator.update(probabilities)
    return accumulator.score()
